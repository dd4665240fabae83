"""The records of a pretraining run and its tables; its page is in ``training_report``."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.records.training import (
    GrowthTarget,
    ModelResult,
    ScratchFacts,
    TrainedModel,
    TrainEvaluation,
    TrainResult,
    TrainStatus,
    TrainStep,
)
from slm_ray.report.content import Table
from slm_ray.report.matching import Curve, equal_flops, make_curve, match
from slm_ray.report.reading import RunReader, RunRecords
from slm_ray.report.text import (
    MISSING,
    bytes_text,
    count_text,
    energy_text,
    flops_text,
    perplexity_of,
    times_text,
)

DONE, FAILED, RUNNING = "done", "failed", "unfinished"


@dataclass(frozen=True)
class TrainedRun:
    """One model of a run, as far as its folder goes."""

    name: str  # ``winner-0.student``
    start: str  # where its weights came from
    params: int | None
    result: ModelResult | None  # None until it is done
    error: str | None  # why it failed
    evaluations: tuple[TrainEvaluation, ...]  # those whose loss is a number, in order
    search_flops: float | None  # of the search that found it; None where that is not known
    scratch: ScratchFacts | None  # how a model from scratch was made
    joules: float | None = None  # energy, where it was measured
    mfu: float | None = None  # model FLOPs utilisation, where the device's peak is known
    tokens_per_second: float | None = None  # median over its steps
    memory_bytes: int | None = None  # the most its worker held
    cpu_percent: float | None = None  # median over its steps; 100 is one core

    @property
    def state(self) -> str:
        """``done``, ``failed`` or ``unfinished``."""
        return DONE if self.result else FAILED if self.error else RUNNING

    @property
    def first(self) -> TrainEvaluation | None:
        """Its first evaluation."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def last(self) -> TrainEvaluation | None:
        """Its last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def capture_flops(self) -> float:
        """What the capture of its logit store cost."""
        return self.result.capture_flops if self.result else self.last.flops.capture if self.last else 0.0

    def all_flops(self, at: TrainEvaluation) -> float:
        """FLOPs up to an evaluation: its own, the teacher's, the search's where they are known, and the capture's."""
        return at.flops.own + at.flops.teacher + (self.search_flops or 0.0) + self.capture_flops

    @property
    def curve(self) -> Curve | None:
        """Its evaluations for comparisons; None where there are fewer than two."""
        return make_curve(self.name, self.evaluations, self.search_flops, self.capture_flops)


@dataclass(frozen=True)
class TrainingRun(RunRecords):
    """What a pretraining run's folder says, finished or not."""

    models: tuple[TrainedRun, ...] = ()  # in the order of the result, else by name
    # a loss to hold the curves against, with its name: the teacher's, or the one that growth has to reach
    level: tuple[str, float] | None = None
    result: TrainResult | None = None  # None for a run that has not finished

    @property
    def curves(self) -> list[Curve]:
        """Of all models that have one."""
        return [curve for model in self.models if (curve := model.curve)]

    @property
    def measured(self) -> list[TrainedRun]:
        """The models with an evaluation."""
        return [model for model in self.models if model.evaluations]

    @property
    def best(self) -> TrainedRun | None:
        """The model that the run is about: a trained student before others, then the one of least loss."""
        return min(self.measured, key=lambda m: (m.start != "student", m.evaluations[-1].loss or 0.0), default=None)


def load_training(folder: Path, level: tuple[str, float] | None = None) -> TrainingRun:
    """Read the folder of a pretraining run as far as it goes."""
    reader = RunReader(folder)
    result = reader.record(TrainResult)
    order = {one.name: place for place, one in enumerate(result.models if result else ())}
    names = [path.parent.name for path in folder.glob(f"*/{TrainedModel.FILE}")]
    names.sort(key=lambda name: (order.get(name, len(order)), name))
    models = tuple(_load_model(reader, folder / name) for name in names)
    if result is None:
        done = sum(model.state == DONE for model in models)
        reader.notes.append(
            f"This run has not finished: {done} of {len(models)} models are done; continue it with --resume"
        )
    if level is None and (target := reader.record(GrowthTarget)):
        level = ("loss to reach", target.reference_loss)
    return TrainingRun(**reader.common, models=models, level=level, result=result)


def _load_model(reader: RunReader, folder: Path) -> TrainedRun:
    steps, evaluations = reader.lines(TrainStep, folder), reader.lines(TrainEvaluation, folder)
    model, result = reader.record(TrainedModel, folder), reader.record(ModelResult, folder)
    status = reader.record(TrainStatus, folder)
    return TrainedRun(
        folder.name, model.start if model else result.start if result else "student", model.params if model else None,
        result, status.failure.message if status and status.failure and not result else None,
        tuple(one for one in evaluations if one.loss is not None), model.search_flops if model else None,
        model.scratch if model else None, result.energy.joules if result and result.energy else None,
        result.mfu if result else None,
        statistics.median([step.tokens_per_second for step in steps]) if steps else None,
        max((step.memory_bytes for step in steps), default=None),
        statistics.median([step.cpu_percent for step in steps]) if steps else None,
    )  # fmt: skip


def models_table(run: TrainingRun) -> Table:
    """One row per model."""
    header = (
        "model", "start", "parameters", "tokens", "first perplexity", "last perplexity (±\u00a0s.e.)", "bits per byte",
        "weights", "state",
    )  # fmt: skip
    rows = []
    for model in run.models:
        first, last, result = model.first, model.last, model.result
        weights = f"{format_bytes(result.bytes)}, {result.dtype}" if result and result.bytes else MISSING
        rows.append((
            model.name, model.start, count_text(model.params), format_count(last.tokens) if last else MISSING,
            perplexity_of(first.loss) if first else MISSING,
            perplexity_of(last.loss, last.stderr) if last else MISSING,
            f"{last.bits_per_byte:.3f}" if last and last.bits_per_byte is not None else MISSING, weights,
            f"{model.state}: {model.error}" if model.error else model.state,
        ))  # fmt: skip
    return Table("The models", header, tuple(rows)).compact()


def matching_table(run: TrainingRun, *, of_best: bool = False) -> Table:
    """What every start (or the best model alone) needed to get as far as each other; FLOPs count everything."""
    header = (
        "to reach the last loss of", "loss", "model", "tokens", "tokens, against its own", "FLOPs",
        "FLOPs, against its own",
    )  # fmt: skip
    curves, rows = run.curves, []
    best = run.best.curve if of_best and run.best else None
    for reference in curves if len(curves) > 1 else []:
        for curve in [best] if best else curves:
            if best and curve.name == reference.name:
                continue
            found = match(curve, reference)
            goal = (reference.name, f"{reference.final_loss:.4f}", curve.name)
            if found.tokens is None or found.flops is None:
                rows.append((*goal, "not reached", MISSING, MISSING, MISSING))
                continue
            tokens = format_count(found.tokens) if found.tokens else "0 (before its first step)"
            ratios = [MISSING if curve is reference else times_text(ratio) or MISSING
                      for ratio in (found.ratio_tokens, found.ratio_flops)]  # fmt: skip
            rows.append((*goal, tokens, ratios[0], flops_text(found.flops), ratios[1]))
    title = f"What {best.name} needed" if best else "Tokens and FLOPs to match"
    return Table(title, header, tuple(rows)).compact()


def equal_flops_table(run: TrainingRun) -> Table:
    """Every model at the same price, everything counted."""
    if len(run.curves) < 2:
        return Table("At equal FLOPs", ("model", "loss"), ())
    budget, found = equal_flops(run.curves)
    rows = tuple(
        (name, f"{point.loss:.4f}", perplexity_of(point.loss), format_count(point.tokens)) if point else
        (name, "had spent more before its first step", MISSING, MISSING)
        for name, point in found.items()
    )  # fmt: skip
    title = f"At {flops_text(budget)} FLOPs each, everything counted"
    return Table(title, ("model", "loss", "perplexity", "tokens"), rows)


def training_cost_table(run: TrainingRun) -> Table:
    """What each model cost."""
    header = (
        "model", "time in steps", "tokens/s", "own FLOPs", "teacher's", "search's", "capture's", "in all",
        "peak memory", "CPU", "MFU", "energy",
    )  # fmt: skip
    rows = []
    for model in run.models:
        last = model.last
        own, teacher = (last.flops.own, last.flops.teacher) if last else (0.0, 0.0)
        search = "not known" if model.search_flops is None else flops_text(model.search_flops)
        whole = own + teacher + (model.search_flops or 0.0) + model.capture_flops
        rows.append((
            model.name, format_seconds(last.seconds) if last else MISSING,
            f"{model.tokens_per_second:,.0f}" if model.tokens_per_second else MISSING, flops_text(own),
            flops_text(teacher), search, flops_text(model.capture_flops), flops_text(whole),
            bytes_text(model.memory_bytes), MISSING if model.cpu_percent is None else f"{model.cpu_percent:.0f}%",
            MISSING if model.mfu is None else f"{100 * model.mfu:.1f}%",
            energy_text(model.joules) if model.joules is not None or model.state == DONE else MISSING,
        ))  # fmt: skip
    return Table("What was spent", header, tuple(rows)).compact()


@dataclass(frozen=True)
class Mark:
    """Where the best model first was as good as another ended, and what it needed less."""

    other: TrainedRun
    at: TrainEvaluation
    tokens: str
    flops: str


def marks(run: TrainingRun) -> list[Mark]:
    """Of the best model against every other one whose last loss it reached."""
    best, found = run.best, []
    mine = best.curve if best else None
    for other in run.models:
        theirs = other.curve
        if best is None or mine is None or theirs is None or other is best:
            continue
        matched = match(mine, theirs)
        if matched.tokens is None:
            continue
        at = next(one for one in best.evaluations if (one.loss or 0.0) <= theirs.final_loss)
        tokens = times_text(matched.ratio_tokens) if matched.tokens else "before its first step"
        found.append(Mark(other, at, tokens, times_text(matched.ratio_flops)))
    return found
