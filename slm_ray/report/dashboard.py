"""A W&B dashboard made by code: sections of panels, each naming tracked figures or options of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.redact import redact
from slm_ray.records import metric_names as names

LINE, SCATTER, BARS, PARALLEL, COMPARER, TABLE, PICTURES = (
    "line", "scatter", "bars", "parallel", "comparer", "table", "pictures",
)  # fmt: skip
CONFIG = "config."  # before an option of a run
NAME, WORKSPACE, REPORT = "slm_ray", "workspace", "report"
_WIDE, _HALF, _HIGH = 24, 12, 8  # of the 24 columns of a report's grid


@dataclass(frozen=True)
class Panel:
    """One panel."""

    kind: str  # ``line``, ``scatter``, ``bars``, ``parallel`` (coordinates), ``comparer``, ``table`` or ``pictures``
    title: str  # Above it
    x: str | None = None  # What it is drawn against, for lines and scatters
    y: tuple[str, ...] = ()  # What is drawn; for a table its name
    log_x: bool = False  # A logarithmic axis
    log_y: bool = False  # A logarithmic axis


@dataclass(frozen=True)
class Section:
    """Some panels on the same runs."""

    name: str  # Above them
    text: str  # What they show, in a sentence
    job_types: tuple[str, ...]  # Whose runs they are about
    panels: tuple[Panel, ...]  # In order


def _lines(title: str, x: str, *y: str, log_y: bool = False) -> Panel:
    return Panel(LINE, title, x, y, log_y=log_y)


def _table(title: str, name: str) -> Panel:
    return Panel(TABLE, title, y=(name,))


SEARCHES = Section(
    "Searches", "Every candidate is a row of its search's run; the hypervolume is that of the front so far.",
    ("search",),
    (
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
)  # fmt: skip
PRETRAINING = Section(
    "Pretraining", "One run per model; FLOPs are the model's own and its teacher's.", ("pretrain",),
    (
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
)  # fmt: skip
COMPARISONS = Section(
    "Comparisons of starts", "What the models of one pretraining come to beside one another.", ("comparison",),
    (
        Panel(PICTURES, "Training curves", y=(names.TRAINING_PICTURE,)),
        _table("The models", names.MODELS_TABLE),
        _table("Tokens and FLOPs to match", names.MATCHING_TABLE),
        _table("At equal FLOPs", names.EQUAL_FLOPS_TABLE),
    ),
)  # fmt: skip
EVALUATION = Section(
    "Evaluation", "Figures of the first model of each evaluation; the tables have all of its models.", ("evaluate",),
    (
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
)  # fmt: skip
SWEEPS = Section(
    "Sweeps", "The runs of a sweep are a group: what was varied, and what it came to.", ("pretrain", "sweep"),
    (
        Panel(PARALLEL, "What was varied, and the last loss", y=(
            CONFIG + "params", CONFIG + "optimizer", CONFIG + "learning_rate", CONFIG + "batch_size",
            CONFIG + "distill", CONFIG + "temperature", CONFIG + "kd_weight", names.RESULT_TOKENS, names.RESULT_LOSS,
        )),
        Panel(SCATTER, "Last loss against learning rate", CONFIG + "learning_rate", (names.RESULT_LOSS,), True, False),
        Panel(SCATTER, "Last loss against parameters", CONFIG + "params", (names.RESULT_LOSS,), True, False),
        Panel(COMPARER, "Runs side by side"),
        _table("The sweep's table", names.SWEEP_TABLE),
    ),
)  # fmt: skip
SECTIONS = (SEARCHES, PRETRAINING, COMPARISONS, EVALUATION, SWEEPS)


def build(kind: str, entity: str, project: str) -> Any:
    """A workspace or a report; nothing is sent.

    ``entity``: The W&B user or team; empty where nothing is to be saved (a report then asks nobody for its project).
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'slm-ray[wandb]'") from error
    if kind == REPORT:
        return _report(reports, entity, project)
    found = [
        workspaces.Section(name=section.name, panels=[_panel(reports, panel) for panel in section.panels], is_open=True)
        for section in SECTIONS
    ]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=found)


def _report(reports: Any, entity: str, project: str) -> Any:
    blocks = [reports.TableOfContents()]
    for section in SECTIONS:
        kinds = ", ".join(f"'{kind}'" for kind in section.job_types)
        runs = reports.Runset(
            entity=entity, project=project, name=section.name, filters=f"Metric('JobType') in [{kinds}]"
        )
        panels = _lay_out(reports, section.panels)
        grid = reports.PanelGrid(runsets=[runs], panels=panels)
        blocks += [reports.H2(text=section.name), reports.P(text=section.text), grid]
    return reports.Report(
        entity=entity, project=project, title=NAME, blocks=blocks, width="fluid",
        description="Searches, trainings, evaluations and sweeps of slm_ray.",
    )  # fmt: skip


def _lay_out(reports: Any, panels: Sequence[Panel]) -> list[Any]:
    """Two panels in a row; tables take a whole one."""
    found, x, y = [], 0, 0
    for panel in panels:
        width = _WIDE if panel.kind in (TABLE, PARALLEL, COMPARER) else _HALF
        if x + width > _WIDE:
            x, y = 0, y + _HIGH
        made = _panel(reports, panel)
        made.layout = reports.Layout(x=x, y=y, w=width, h=_HIGH)
        found.append(made)
        x += width
    return found


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


def save(built: Any) -> str:
    """Save a workspace or a report, and return its address."""
    try:
        built.save()
        return str(built.url)
    except Exception as error:  # wandb raises many types: no network, no such entity, no permission
        reason = redact(f"{type(error).__name__}: {first_line(error, 160)}")
        raise UserError(
            f"W&B did not take the dashboard ({reason}): check the network, --entity and --project"
        ) from error


def default_entity() -> str:
    """The user's or the team's name that W&B knows the key by."""
    try:
        import wandb

        name = wandb.Api().default_entity
    except Exception as error:  # as in save
        raise UserError(f"W&B cannot be asked who you are ({type(error).__name__}): give --entity NAME") from error
    if not name:
        raise UserError("W&B does not say who you are: give --entity NAME")
    return str(name)
