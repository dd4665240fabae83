"""What the dashboard shows, as plain data: sections of panels, each naming tracked figures or options of a run."""

from __future__ import annotations

from dataclasses import dataclass

from slm_ray.records import metric_names as names

LINE, SCATTER, BARS, PARALLEL, COMPARER, TABLE, PICTURES = (
    "line", "scatter", "bars", "parallel", "comparer", "table", "pictures",
)  # fmt: skip
CONFIG = "config."  # before an option of a run
# The options that panels name; a test holds them against the commands' own.
CONFIG_KEYS = (
    "learning_rate", "batch_size", "optimizer", "schedule", "distill", "kd_weight", "temperature", "params", "start",
    "seed", "tokens", "precision", "zero",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``line``, ``scatter``, ``bars``, ``parallel`` (coordinates), ``comparer``, ``table`` or ``pictures``.
        title: Above it.
        x: What it is drawn against, for lines and scatters.
        y: What is drawn; for a table its name.
        log_x: A logarithmic axis.
        log_y: A logarithmic axis.
    """

    kind: str
    title: str
    x: str | None = None
    y: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All figures and options that it names."""
        return (*((self.x,) if self.x else ()), *self.y)


@dataclass(frozen=True)
class Section:
    """Some panels on the same runs.

    Attributes:
        name: Above them.
        text: What they show, in a sentence.
        job_types: Whose runs they are about.
        panels: In order.
    """

    name: str
    text: str
    job_types: tuple[str, ...]
    panels: tuple[Panel, ...]


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


def unknown_keys(sections: tuple[Section, ...] = SECTIONS) -> list[str]:
    """What panels name that nothing logs: a panel on it would stay empty for ever."""
    keys = [key for section in sections for panel in section.panels for key in panel.keys]
    return [
        key for key in keys
        if (key.removeprefix(CONFIG) not in CONFIG_KEYS if key.startswith(CONFIG) else not names.is_tracked(key))
    ]  # fmt: skip
