"""Every name under which a figure is tracked: those who log it and the dashboard that shows it both read it here."""

from __future__ import annotations

from fnmatch import fnmatchcase

# What figures are drawn against.
EVALUATIONS, TOKENS, FLOPS, SECONDS = "evaluations", "tokens", "flops", "seconds"
AXES = (EVALUATIONS, TOKENS, FLOPS, SECONDS)

# Of a search: a row per candidate, and a row per generation with the hypervolume of the front so far.
OBJECTIVE, COST, BEST = "objective/", "cost/", "best/"  # and the name of the objective or cost
TRIAL, GENERATION, TRIAL_SECONDS, TRIAL_TOKENS = "trial/number", "trial/generation", "trial/seconds", "trial/tokens"
FAILED, HYPERVOLUME = "trial/failed", "front/hypervolume"

# Of a training: a row per step.
TRAIN = {
    "loss": "train/loss", "ce": "train/ce", "kd": "train/kd", "lr": "train/lr", "kd_weight": "train/kd_weight",
    "grad_norm": "train/grad_norm", "tokens_per_second": "train/tokens_per_second",
    "memory_bytes": "train/memory_bytes", "cpu_percent": "train/cpu_percent",
}  # fmt: skip
EVAL = {"loss": "eval/loss", "bits_per_byte": "eval/bits_per_byte"}

# What a finished run comes to, one figure each.
RESULT = "result/"
RESULT_PARAMS, RESULT_PERPLEXITY = RESULT + "params", RESULT + "perplexity"
RESULT_LOSS, RESULT_BITS = RESULT + "loss", RESULT + "bits_per_byte"
RESULT_TOKENS, RESULT_FLOPS, RESULT_SECONDS = RESULT + "tokens", RESULT + "flops", RESULT + "seconds"
RESULT_TASKS, RESULT_PREFILL, RESULT_DECODE = RESULT + "tasks_mean", RESULT + "prefill_rate", RESULT + "decode_rate"
RESULT_TASK = RESULT + "task/"  # and the task's name

# Tables and pictures.
FRONT_TABLE, BASELINE_TABLE, HYPERVOLUME_TABLE = "tables/front", "tables/baselines", "tables/hypervolume"
MODELS_TABLE, MATCHING_TABLE, COST_TABLE = "tables/models", "tables/matching", "tables/cost"
EQUAL_FLOPS_TABLE, CURVES_TABLE, SWEEP_TABLE = "tables/equal_flops", "tables/curves", "table"
TEXT_TABLE, TASKS_TABLE, DIFFERENCES_TABLE = "tables/text", "tables/tasks", "tables/differences"
SAMPLES_TABLE, GENERATION_TABLE = "tables/samples", "tables/generation"
EFFICIENCY_TABLE, SPEED_TABLE = "tables/efficiency", "tables/speed"
FRONT_PICTURE, TRAINING_PICTURE, EVALUATION_PICTURE = "pictures/front", "pictures/training", "pictures/evaluation"

# Which axis a figure is drawn against where nobody says otherwise.
AXIS_OF = {
    "objective/*": EVALUATIONS, "cost/*": EVALUATIONS, "best/*": EVALUATIONS, "trial/*": EVALUATIONS,
    "front/*": EVALUATIONS, "train/*": TOKENS, "eval/*": TOKENS,
}  # fmt: skip

TABLES = (
    FRONT_TABLE, BASELINE_TABLE, HYPERVOLUME_TABLE, MODELS_TABLE, MATCHING_TABLE, COST_TABLE, EQUAL_FLOPS_TABLE,
    CURVES_TABLE, SWEEP_TABLE, TEXT_TABLE, TASKS_TABLE, DIFFERENCES_TABLE, SAMPLES_TABLE, GENERATION_TABLE,
    EFFICIENCY_TABLE, SPEED_TABLE,
)  # fmt: skip
PICTURES = (FRONT_PICTURE, TRAINING_PICTURE, EVALUATION_PICTURE)
METRICS = (
    *AXES, TRIAL, GENERATION, TRIAL_SECONDS, TRIAL_TOKENS, FAILED, HYPERVOLUME, *TRAIN.values(),
    *EVAL.values(), RESULT_PARAMS, RESULT_PERPLEXITY, RESULT_LOSS, RESULT_BITS, RESULT_TOKENS, RESULT_FLOPS,
    RESULT_SECONDS, RESULT_TASKS, RESULT_PREFILL, RESULT_DECODE,
)  # fmt: skip
_OPEN = (OBJECTIVE + "*", COST + "*", BEST + "*", RESULT_TASK + "*")


def is_tracked(name: str) -> bool:
    """Whether anything is logged under this name."""
    return name in (*METRICS, *TABLES, *PICTURES) or any(fnmatchcase(name, pattern) for pattern in _OPEN)
