"""``slm-ray search``: the command line."""

from __future__ import annotations

import re
from pathlib import Path

from slm_ray.config.errors import UserError, nearest
from slm_ray.models.bundled import BUNDLED
from slm_ray.records.search import SearchResult
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.stage import Stage
from slm_ray.search.config import SearchConfig
from slm_ray.search.space import load_space

MAY_CHANGE = ("workers", "threads", "address", "storage", "tracker")


def check(config: SearchConfig) -> None:
    """Refuse what is wrong before anything heavy is imported."""
    load_space(config.space.space)
    name = config.space.teacher
    path = Path(name).expanduser()
    if name in BUNDLED or path.exists():
        return
    if path.suffix == ".gguf" or name[0] in "./~" or (path.parent != Path() and path.parent.is_dir()):
        raise UserError(f"teacher {name} does not exist: check the path, or give a hub id (owner/model)")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        rule = "is no folder, no .gguf file and no hub id (owner/model)"
        raise UserError(f"teacher '{name}' {rule}: {nearest(name, list(BUNDLED))}")


def resolve(config: SearchConfig) -> SearchConfig:
    """The plan that ``--minutes`` has time for on this machine, and a population that suits it.

    The ranking's own choices are a third of the first population: few trials spread them over the whole budget.
    """
    if config.effort.minutes is not None:
        from slm_ray.search.estimates import fit_to_minutes

        config = fit_to_minutes(config, config.effort.minutes)
    return config.replace(population=min(config.plan.population, max(4, 3 * config.plan.trials)))


def execute(config: SearchConfig, folder: RunFolder) -> None:
    """Search in a run's folder, or go on with it."""
    from slm_ray.search.run import SearchRun

    SearchRun(config, folder).execute()


def show(run: Path) -> None:
    """Print what a finished run found, what it cost and what to do next."""
    from slm_ray.report.search import load_search
    from slm_ray.report.search_report import summary_text

    print(summary_text(load_search(run)))


def plan(config: SearchConfig) -> str:
    """The text of ``--dry-run``."""
    from slm_ray.search.dry_run import plan_text

    return plan_text(config)


SEARCH = Stage(
    name="search", summary="search a teacher for its best sub-networks and extract them", config=SearchConfig,
    check=check, resolve=resolve, execute=execute, show=show, plan=plan, result_file=SearchResult.FILE,
    may_change=MAY_CHANGE, may_grow=("trials",),
    default_out=lambda config, stamp: str(Path("runs") / f"{Path(config.space.space).stem}-{stamp}"),
)  # fmt: skip
main = SEARCH.main
