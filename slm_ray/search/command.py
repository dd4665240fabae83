"""``slm-ray search``: the command line."""

from __future__ import annotations

import re
from pathlib import Path

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.units import format_bytes
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.records.base import read_record
from slm_ray.records.search import SearchResult
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.stage import Stage
from slm_ray.search.config import SearchConfig
from slm_ray.search.space import load_space

MAY_CHANGE = ("workers", "threads", "address", "storage", "tracker")


def check(config: SearchConfig) -> None:
    """Refuse what is wrong before anything heavy is imported.

    Raises:
        UserError: There is no such space, or no such teacher here while its name is not that of a hub model.
    """
    load_space(config.space.space)
    name = config.space.teacher
    path = Path(name).expanduser()
    if name == BUNDLED_NAME or path.exists():
        return
    if path.suffix == ".gguf" or name[0] in "./~" or (path.parent != Path() and path.parent.is_dir()):
        raise UserError(f"teacher {name} does not exist: check the path, or give a hub id (owner/model)")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        rule = "is no folder, no .gguf file and no hub id (owner/model)"
        raise UserError(f"teacher '{name}' {rule}: {nearest(name, [BUNDLED_NAME])}")


def execute(config: SearchConfig, folder: RunFolder) -> None:
    """Search in a run's folder, or go on with it.

    Raises:
        UserError: Something the user can fix.
    """
    from slm_ray.search.run import SearchRun

    SearchRun(config, folder).execute()


def show(run: Path) -> None:
    """Print what a finished run found, what it cost and what to do next."""
    from slm_ray.report import load_run, summary_text

    print(summary_text(load_run(run)))
    print(weights_text(result := read_record(run, SearchResult)))
    if text := ruin_text(run, result):
        print(text)


def weights_text(result: SearchResult) -> str:
    """The type and size of the exported weights."""
    sizes = ", ".join(f"{winner.folder} {format_bytes(winner.num_bytes)}" for winner in result.winners)
    return f"Weights in {result.winners[0].dtype}: {sizes}" if result.winners else "No weights were exported."


def ruin_text(run: Path, result: SearchResult) -> str | None:
    """What a ruined winner is and what helps; None where the winner writes."""
    ratio = result.ruin_of(result.best)
    if ratio is None:
        return None
    quantity = result.budget.quantity
    share = 2 * result.budget.high / result.teacher.cost[quantity]
    more = f"search with twice the size (--{quantity.replace('_', '-')} {share:.2f}), or " if share < 1 else ""
    return (
        f"Note: winner 0 has {ratio:,.0f} times the teacher's perplexity: what it writes is noise until it is trained. "
        f"To make it useful, {more}train it: slm-ray pretrain --student {run / 'winners' / '0'}"
    )


def plan(config: SearchConfig) -> str:
    """The text of ``--dry-run``."""
    from slm_ray.search.dry_run import plan_text

    return plan_text(config)


SEARCH = Stage(
    name="search", summary="search a teacher for its best sub-networks and extract them", config=SearchConfig,
    check=check, execute=execute, show=show, plan=plan, result_file=SearchResult.FILE, may_change=MAY_CHANGE,
    default_out=lambda config, stamp: str(Path("runs") / f"{Path(config.space.space).stem}-{stamp}"),
)  # fmt: skip
main = SEARCH.main
