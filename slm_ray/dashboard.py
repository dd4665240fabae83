"""``slm-ray dashboard``: a saved W&B workspace of searches, trainings, evaluations and sweeps, made by code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.parser import Parser
from slm_ray.config.redact import redact
from slm_ray.records import metric_names as names
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.trackers import has_key, wandb_project

LINE, SCATTER, BARS, PARALLEL, COMPARER, TABLE, PICTURES = (
    "line", "scatter", "bars", "parallel", "comparer", "table", "pictures",
)  # fmt: skip
CONFIG = "config."  # before an option of a run
NAME = "slm_ray"


@dataclass(frozen=True)
class Panel:
    """One panel of a kind: what is drawn (``y``; of a table its name), against what, and which axes are logarithmic."""

    kind: str
    title: str
    x: str | None = None
    y: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False


def _lines(title: str, x: str, *y: str, log_y: bool = False) -> Panel:
    return Panel(LINE, title, x, y, log_y=log_y)


def _table(title: str, name: str) -> Panel:
    return Panel(TABLE, title, y=(name,))


# Section to panels.
SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Searches": (
        Panel(SCATTER, "Winners: perplexity against parameters", names.RESULT_PARAMS, (names.RESULT_PERPLEXITY,), False,
              True),
        _lines("Hypervolume against evaluations", names.EVALUATIONS, names.HYPERVOLUME),
        _lines("Hypervolume against seconds", names.SECONDS, names.HYPERVOLUME),
        _lines("Best perplexity so far", names.EVALUATIONS, names.BEST + "perplexity", log_y=True),
        Panel(LINE, "Candidates: perplexity against parameters", names.COST + "params",
              (names.OBJECTIVE + "perplexity",), False, True),
        _lines("Seconds and tokens of a candidate", names.EVALUATIONS, names.TRIAL_SECONDS, names.TRIAL_TOKENS),
        Panel(PICTURES, "The front", y=(names.FRONT_PICTURE,)),
        _table("The front", names.FRONT_TABLE),
        _table("Baselines", names.BASELINE_TABLE),
    ),
    "Pretraining": (
        _lines("Held-out loss against tokens", names.TOKENS, names.EVAL["loss"]),
        _lines("Held-out loss against FLOPs", names.FLOPS, names.EVAL["loss"]),
        _lines("Bits per byte against tokens", names.TOKENS, names.EVAL["bits_per_byte"]),
        _lines("Training loss", names.TOKENS, names.TRAIN["loss"]),
        _lines("Cross-entropy and divergence", names.TOKENS, names.TRAIN["ce"], names.TRAIN["kd"]),
        _lines("Learning rate", names.TOKENS, names.TRAIN["lr"]),
        _lines("Gradient norm", names.TOKENS, names.TRAIN["grad_norm"], log_y=True),
        _lines("Throughput, tokens per second", names.TOKENS, names.TRAIN["tokens_per_second"]),
        _lines("Memory, bytes", names.TOKENS, names.TRAIN["memory_bytes"]),
        Panel(SCATTER, "Last loss against FLOPs", names.RESULT_FLOPS, (names.RESULT_LOSS,), True, False),
    ),
    "Comparisons of starts": (
        Panel(PICTURES, "Training curves", y=(names.TRAINING_PICTURE,)),
        _table("The models", names.MODELS_TABLE),
        _table("Tokens and FLOPs to match", names.MATCHING_TABLE),
        _table("At equal FLOPs", names.EQUAL_FLOPS_TABLE),
    ),
    "Evaluation": (
        Panel(BARS, "Perplexity on held-out text", y=(names.RESULT_PERPLEXITY,)),
        Panel(BARS, "Bits per byte", y=(names.RESULT_BITS,)),
        Panel(BARS, "Mean over tasks", y=(names.RESULT_TASKS,)),
        Panel(BARS, "Tokens per second: prefill and decode", y=(names.RESULT_PREFILL, names.RESULT_DECODE)),
        _table("Held-out text", names.TEXT_TABLE),
        _table("Tasks", names.TASKS_TABLE),
        _table("Differences", names.DIFFERENCES_TABLE),
        _table("Generation", names.GENERATION_TABLE),
        _table("Samples", names.SAMPLES_TABLE),
        _table("Efficiency", names.EFFICIENCY_TABLE),
        _table("Speed", names.SPEED_TABLE),
        Panel(PICTURES, "Pictures", y=(names.EVALUATION_PICTURE,)),
    ),
    "Sweeps": (
        Panel(PARALLEL, "What was varied, and the last loss", y=(
            CONFIG + "params", CONFIG + "optimizer", CONFIG + "learning_rate", CONFIG + "batch_size",
            CONFIG + "distill", CONFIG + "temperature", CONFIG + "kd_weight", names.RESULT_TOKENS, names.RESULT_LOSS,
        )),
        Panel(SCATTER, "Last loss against learning rate", CONFIG + "learning_rate", (names.RESULT_LOSS,), True, False),
        Panel(SCATTER, "Last loss against parameters", CONFIG + "params", (names.RESULT_LOSS,), True, False),
        Panel(COMPARER, "Runs side by side"),
        _table("The sweep's table", names.SWEEP_TABLE),
    ),
}  # fmt: skip


def build(entity: str, project: str) -> Any:
    """The workspace; nothing is sent.

    Raises:
        UserError: wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'slm-ray[wandb]'") from error
    found = [
        workspaces.Section(name=name, panels=[_panel(reports, panel) for panel in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=found)


def _figure(reports: Any, key: str) -> Any:
    """A figure of a run as a whole: one of its options, or the last value of what it logged."""
    if key.startswith(CONFIG):
        return reports.Config(key.removeprefix(CONFIG))
    return reports.SummaryMetric(key)


def _panel(reports: Any, panel: Panel) -> Any:
    log = {"log_x": panel.log_x or None, "log_y": panel.log_y or None}
    if panel.kind == LINE:
        return reports.LinePlot(title=panel.title, x=panel.x, y=list(panel.y), **log)
    if panel.kind == SCATTER:
        x, y = _figure(reports, str(panel.x)), _figure(reports, panel.y[0])
        return reports.ScatterPlot(title=panel.title, x=x, y=y, **log)
    if panel.kind == BARS:
        return reports.BarPlot(title=panel.title, metrics=list(panel.y))
    if panel.kind == PARALLEL:
        columns = [reports.ParallelCoordinatesPlotColumn(metric=_figure(reports, key)) for key in panel.y]
        return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    if panel.kind == COMPARER:
        return reports.RunComparer(diff_only=True)
    if panel.kind == TABLE:
        return reports.WeavePanelSummaryTable(table_name=panel.y[0])
    return reports.MediaBrowser(title=panel.title, media_keys=list(panel.y))


def _save(built: Any) -> str:
    """Save the workspace, and return its address."""
    try:
        built.save()
        return str(built.url)
    except Exception as error:  # wandb raises many types: no network, no such entity, no permission
        reason = redact(f"{type(error).__name__}: {first_line(error, 160)}")
        raise UserError(
            f"W&B did not take the dashboard ({reason}): check the network, --entity and --project"
        ) from error


def _default_entity() -> str:
    """The user's or the team's name that W&B knows the key by."""
    try:
        import wandb

        name = wandb.Api().default_entity
    except Exception as error:  # as in save
        raise UserError(f"W&B cannot be asked who you are ({type(error).__name__}): give --entity NAME") from error
    if not name:
        raise UserError("W&B does not say who you are: give --entity NAME")
    return str(name)


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="python -m slm_ray.dashboard", description="Make a W&B workspace of runs tracked with --tracker wandb."
    )
    parser.add_argument("--entity", default=None, help="W&B user or team [default: whom the key belongs to]")
    parser.add_argument("--project", default=wandb_project(), help="W&B project")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> int:
    """Make the dashboard and print its address."""
    given = make_parser().parse_args(list(argv))
    if not has_key():
        raise UserError(
            "there is no W&B key on this machine, so the workspace cannot be saved: run `wandb login`, or set "
            "WANDB_API_KEY"
        )
    print(_save(build(given.entity or _default_entity(), given.project)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
