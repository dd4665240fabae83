"""``slm-ray proxies``: the command line."""

from __future__ import annotations

from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.records.proxies import ProxyReport
from slm_ray.records.search import Trial
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.stage import Stage
from slm_ray.search.candidates import FinishedSearch, choose_candidates
from slm_ray.studies.proxies_config import ProxiesConfig
from slm_ray.studies.proxies_report import TABLE_FILE


def check(config: ProxiesConfig) -> None:
    """Refuse what is wrong before anything heavy is imported."""
    search, _ = chosen(config)
    step = config.sequences_of_a_step(search.config.length) * search.config.length
    if config.tokens < step:
        raise UserError(
            f"--tokens {config.tokens} is below one step of {step:,} tokens: give more, or a smaller --batch-size"
        )


def chosen(config: ProxiesConfig) -> tuple[FinishedSearch, list[Trial]]:
    """The finished search, and the candidates of it that are looked at."""
    if not config.run:
        raise UserError("--run is missing: give the folder of a finished search")
    search = FinishedSearch.open(Path(config.run))
    objective = search.config.plan.objective_names[0]
    return search, choose_candidates(search.trials, search.front, objective, config.candidates, config.seed)


def execute(config: ProxiesConfig, folder: RunFolder) -> None:
    """Measure, train and correlate in a run's folder, or go on with it."""
    from slm_ray.studies.correlate import CorrelationRun

    search, trials = chosen(config)
    CorrelationRun(config, folder, search, trials).execute()


def show(run: Path) -> None:
    """Print the table of a finished report."""
    print((run / TABLE_FILE).read_text(encoding="utf-8"), end="")


def plan(config: ProxiesConfig) -> str:
    """The candidates and what their training takes."""
    search, trials = chosen(config)
    front, length = set(search.front), search.config.length
    lines = []
    for trial in trials:
        where = "front" if trial.trial in front else str(trial.decided)
        values = ", ".join(f"{name} {value:.6g}" for name, value in (trial.objectives or {}).items())
        lines.append(f"trial {trial.trial:>5}  {where:9}  {values}")
    teacher = search.result.teacher.cost.flops if config.distill == "full" else 0
    flops = config.tokens * sum(3 * trial.cost.flops + teacher for trial in trials)
    step = config.sequences_of_a_step(length) * length
    return "\n".join([
        *lines,
        f"{len(trials)} candidates x {config.tokens:,} tokens in steps of {step:,}: {format_count(flops)} FLOPs",
        f"proxies: {', '.join(config.proxies)}",
        "Nothing was loaded, started or written.",
    ])  # fmt: skip


PROXIES = Stage(
    name="proxies", summary="how well each proxy ranks a search's candidates as a short training does",
    config=ProxiesConfig, check=check, execute=execute, show=show, plan=plan, result_file=ProxyReport.FILE,
    may_change=("threads", "concurrent", "device", "address", "storage"),
    default_out=lambda _config, stamp: str(Path("runs") / f"proxies-{stamp}"),
)  # fmt: skip
main = PROXIES.main
