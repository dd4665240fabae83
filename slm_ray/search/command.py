"""``slm-ray search``: the command line."""

from __future__ import annotations

from pathlib import Path

from slm_ray.records.search import SearchResult
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.stage import Stage
from slm_ray.search.config import SearchConfig
from slm_ray.search.space import load_space

MAY_CHANGE = ("workers", "threads", "address", "storage", "tracker")


def check(config: SearchConfig) -> None:
    """Refuse what is wrong before anything heavy is imported.

    Raises:
        UserError: There is no such space.
    """
    load_space(config.space.space)


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
