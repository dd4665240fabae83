"""What a finished run leaves: a model folder and a result for each student, a table, the comparison of starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds, perplexity_of_loss
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.lineage import description_files, trained_lineage
from slm_ray.pretrain.state import write_weights
from slm_ray.pretrain.tracking import track_results
from slm_ray.records.base import find_record, read_lines, read_record, write_record
from slm_ray.records.files import whole_folder, write_text
from slm_ray.records.training import (
    EXPORT_FOLDER,
    TABLE_FILE,
    GrowthResult,
    ModelOutcome,
    ModelResult,
    TrainedModel,
    TrainEvaluation,
    TrainFailure,
    TrainResult,
    TrainStatus,
)
from slm_ray.report.matching import Curve, make_curve, table
from slm_ray.report.training_report import build_training_report
from slm_ray.runtime.progress import Console


@dataclass(frozen=True)
class Exported:
    """An exported checkpoint: its step, the type of its weights, and their bytes."""

    step: int
    dtype: str
    bytes: int


def export_dtype(config: PretrainConfig, model: TrainedModel) -> str:
    """The type that a model's exported weights have."""
    given = config.checkpoint.dtype
    return model.dtype if given == "auto" else given


def export_model(
    model: Path, storage: str, folder: Path, config: PretrainConfig, *, command: str | None = None,
    step: int | None = None,
) -> Exported:  # fmt: skip
    """Export a checkpoint of a model of a run as a plain Hugging Face folder, with its lineage and its card.

    ``step``: Which checkpoint; the newest by default.
    """
    checkpoints, dtype = CheckpointFolder(storage), export_dtype(config, read_record(model, TrainedModel))
    found = checkpoints.all()
    chosen = [checkpoint for checkpoint in found if step is None or checkpoint.step == step]
    if not chosen:
        steps = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
        raise UserError(f"{storage} has no checkpoint of step {step}: there are {steps}")
    with checkpoints.open(chosen[-1]) as source, whole_folder(folder) as temporary:
        num_bytes = write_weights(source, temporary, dtype)
        lineage = trained_lineage(model, chosen[-1].step, config, command)
        for name, text in description_files(temporary, lineage).items():
            write_text(temporary / name, text)
    return Exported(chosen[-1].step, dtype, num_bytes)


def finish_model(folder: Path, job: TrainJob, command: str) -> ModelOutcome:
    """Export one model and write its result; one that was finished before is read."""
    if (done := find_record(folder, ModelResult)) is not None:
        return ModelOutcome(**{name: getattr(done, name) for name in ModelOutcome.model_fields})
    status, model = read_record(folder, TrainStatus), read_record(folder, TrainedModel)
    known = ModelOutcome(
        name=job.name, status="failed", start=model.start, params=model.params, search_flops=model.search_flops,
        capture_flops=job.flops.capture, flops_exact=model.flops_exact, checkpoints=job.storage, begin=status.begin,
        evals=tuple(read_lines(folder / TrainEvaluation.FILE, TrainEvaluation)),
        error=status.failure.message if status.failure else None,
    )  # fmt: skip
    if status.failure or status.end is None:
        return known
    target, end = folder / EXPORT_FOLDER, status.end
    exported = export_model(folder, job.storage, target, job.config, command=command)
    outcome = known.model_copy(update={
        "status": "done", "model": str(target.relative_to(folder.parent)), "dtype": exported.dtype,
        "bytes": exported.bytes, "step": exported.step, "tokens": end.tokens, "flops": end.flops,
        "seconds": end.seconds, "best": end.best, "usage": end.usage, "mfu": end.mfu, "energy": end.energy,
    })  # fmt: skip
    write_record(folder, ModelResult(**{name: getattr(outcome, name) for name in ModelOutcome.model_fields}))
    return outcome


def curve_of(result: ModelOutcome) -> Curve | None:
    """A model's evaluations as a curve; None where fewer than two are finite."""
    evaluations = [record for record in result.evals if record.loss is not None]
    return make_curve(result.name, evaluations, result.search_flops, result.capture_flops)


def results_table(results: Sequence[ModelOutcome]) -> list[str]:
    """One line per model."""
    titles = ("params", "weights", "tokens", "first ppl", "final ppl", "bits/byte", "time")
    lines = [f"{'model':32} {'params':>8} {'weights':>14} " + " ".join(title.rjust(max(len(title), 8))
                                                                       for title in titles[2:])]  # fmt: skip
    for result in results:
        if result.status == "failed":
            lines.append(f"{result.name:32} failed: {result.error}")
            continue
        first, last = result.evals[0], result.evals[-1]
        lines.append(
            f"{result.name:32} {format_count(result.params):>8} {weights_text(result):>14} "
            f"{format_count(result.tokens or 0):>8} {_perplexity(first):>9} {_perplexity(last):>9} "
            f"{last.bits_per_byte or math.nan:>9.3f} {format_seconds(result.seconds or 0):>8}"
        )
    return lines


def weights_text(result: ModelOutcome) -> str:
    """Size and type of a model's exported weights: ``128 MiB bf16``."""
    return f"{format_bytes(result.bytes or 0)} {result.dtype}"


def _perplexity(record: TrainEvaluation) -> str:
    return f"{perplexity_of_loss(record.loss) or math.inf:.4g}"


def print_table(folder: Path, lines: Sequence[str]) -> None:
    """Keep a run's table."""
    write_text(folder / TABLE_FILE, "\n".join(lines) + "\n")


def finish_run(
    config: PretrainConfig, folder: Path, results: Sequence[ModelOutcome], command: str, console: Console,
    lines: Sequence[str], growth: GrowthResult | None = None,
) -> None:  # fmt: skip
    """Write a run's result, its table and its report."""
    print_table(folder, lines)
    write_record(folder, TrainResult(command=command, models=tuple(results), growth=growth))
    build_training_report(folder)
    track_results(config, folder, console)
    for result in results[-1:] if growth else results:
        console.line(f"{result.name}: {folder / str(result.model)} ({weights_text(result)}; checkpoints are fp32)")


def comparison_lines(results: Sequence[ModelOutcome]) -> list[str]:
    """The table of all models, and what each needed to match the others."""
    lines = results_table(results)
    curves = [curve for result in results if result.status == "done" and (curve := curve_of(result))]
    if len(curves) > 1:
        lines += ["", *table(curves)]
    unknown = [result.name for result in results if result.search_flops is None]
    if unknown:
        lines += ["", f"the cost of the search of {', '.join(unknown)} is not known; it is counted as 0"]
    return lines


def failed_models(results: Sequence[ModelOutcome], failures: dict[str, TrainFailure]) -> UserError:
    """The sentence for a run in which models failed; a resume is offered where it can help."""
    failed = [result for result in results if result.status == "failed"]
    done = len(results) - len(failed)
    first, is_resumable = failed[0], any(failure.resumable for failure in failures.values())
    if len(results) == 1:
        return UserError(str(first.error), is_resumable=is_resumable)
    others = "" if not done else "; the other is finished" if done == 1 else f"; the other {done} are finished"
    names = ", ".join(result.name for result in failed)
    return UserError(
        f"{len(failed)} of {len(results)} models failed ({names}): {first.error}{others}", is_resumable=is_resumable
    )
