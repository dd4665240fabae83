"""Where a trained model comes from, kept with it: the student's own lineage, its teacher, its text and its training."""

from __future__ import annotations

import json
from pathlib import Path

from slm_ray.config.base import build_config, flatten
from slm_ray.config.redact import redact_value
from slm_ray.config.units import format_bytes
from slm_ray.config.version import VERSION
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.inputs import PretrainInputs, Student
from slm_ray.records.base import find_record, parse_record, read_lines, read_record
from slm_ray.records.files import read_json
from slm_ray.records.lineage import CARD_FILE, Lineage, find_lineage
from slm_ray.records.run import RunRecord
from slm_ray.records.training import (
    EarlierTraining,
    Origin,
    Setting,
    TeacherSource,
    TrainedModel,
    TrainEvaluation,
    TrainingData,
    TrainingLineage,
    TrainStatus,
)
from slm_ray.report.cards import training_card

_OPTIMISATION = (
    "optimizer", "learning_rate", "schedule", "warmup", "floor", "weight_decay", "beta1", "beta2", "clip", "batch_size",
    "sequence_length", "documents", "precision",
)  # fmt: skip


def describe_teacher(teacher: Teacher) -> TeacherSource:
    """A teacher as lineages name it."""
    family = teacher.architecture().structure.family
    return TeacherSource(name=teacher.name, family=family, digest=teacher.digest, licence=teacher.licence)


def describe_data(inputs: PretrainInputs) -> TrainingData:
    """What a training reads and is measured on, by its digests."""
    shards = inputs.shards
    return TrainingData(
        corpus=shards.corpus, corpus_digest=shards.corpus_digest, training_tokens=shards.digest,
        different_tokens=shards.num_tokens, held_out_tokens=inputs.held_out.digest,
        tokenizer=shards.tokenizer_digest, logit_store=inputs.store,
    )  # fmt: skip


def origin_of(student: Student, start: str, inputs: PretrainInputs, kind: str) -> Origin:
    """What is known of a model before its first step, kept in its record until it is exported."""
    found = None if student.scratch else find_lineage(student.source)
    known = describe_teacher(inputs.teacher) if inputs.teacher else None
    teacher = found.teacher if found and found.teacher else known
    if known and teacher and teacher.digest == known.digest:
        teacher = known.model_copy(update=teacher.model_dump(exclude_none=True))
    kept = found if found and start == "student" else Lineage()
    is_here = Path(student.source).expanduser().exists()  # then its name would tell this machine's folders
    return Origin(
        lineage=kept.model_copy(update={"teacher": teacher}).to_json(),
        student=None if student.scratch else student.label if is_here else student.source,
        distilled_from=known if kind != "none" else None, data=describe_data(inputs),
    )  # fmt: skip


def run_options(run: Path) -> tuple[PretrainConfig, str]:
    """The options of a run, and its command."""
    record = read_record(run, RunRecord)
    return build_config(PretrainConfig, record.options, source=str(run / RunRecord.FILE)), record.command


def trained_lineage(
    folder: Path, step: int, config: PretrainConfig | None = None, command: str | None = None
) -> Lineage:
    """The lineage of a model at a step, from the records of its run; keys and logins are masked.

    ``config``: The options it was trained with; the run's by default.
    """
    model, status = read_record(folder, TrainedModel), find_record(folder, TrainStatus)
    if config is None:
        config, command = run_options(folder.parent)
    reached = [record for record in read_lines(folder / TrainEvaluation.FILE, TrainEvaluation) if record.step <= step]
    last = reached[-1] if reached else None
    has_before = len(reached) > 1 and reached[0].step == 0
    origin = model.origin
    training = TrainingLineage(
        name=folder.name, start=model.start, student=origin.student, grown_from=model.grown_from, command=command,
        slm_ray=VERSION, params=model.params, step=step, tokens=last.tokens if last else None,
        flops=last.flops if last else None, seconds=last.seconds if last else None, search_flops=model.search_flops,
        distilled_from=origin.distilled_from, data=origin.data,
        distillation=config.distill.model_dump(exclude={"store"}), optimisation=_optimisation(config, model, status),
        joules=status.end.energy.joules if status and status.end else None, earlier=_earlier(model, folder.parent),
        before=reached[0] if has_before else None, after=last,
    )  # fmt: skip
    before = _origin_lineage(model)
    cost = model.search_flops if model.search_flops is not None else before.search_flops
    found = before.model_copy(update={"training": training, "search_flops": cost, "slm_ray": VERSION})
    return Lineage.model_validate(redact_value(found.to_json()))


def _origin_lineage(model: TrainedModel) -> Lineage:
    """What was known of a model before its first step."""
    given = model.origin.lineage
    return parse_record(Lineage, given, f"the lineage of {model.source}") if given else Lineage()


def _optimisation(config: PretrainConfig, model: TrainedModel, status: TrainStatus | None) -> dict[str, Setting]:
    """The options, with what ``auto`` resolved to, and a scratch model's own batch and rate."""
    values = flatten(config)
    known: dict[str, Setting] = {name: values[name] for name in _OPTIMISATION}
    known["seed"] = ",".join(map(str, config.batch.seed))
    if model.scratch:
        known |= {"batch_size": model.scratch.batch_size, "learning_rate": model.scratch.learning_rate}
    if status and status.begin:
        runs = status.begin.runs
        known |= {"precision": runs.precision, "engine": runs.engine, "zero": runs.zero}
    return known


def _earlier(model: TrainedModel, run: Path) -> EarlierTraining | None:
    """What was spent on the weights before this training: on the stages before it, or on the student that was given."""
    if stage := model.grown_from:
        last = read_lines(run / stage / TrainEvaluation.FILE, TrainEvaluation)[-1]
        before = _earlier(read_record(run / stage, TrainedModel), run)
        return _with(before, stage, last.tokens, last.flops.total)
    found = _origin_lineage(model).training
    if found is None:
        return None
    return _with(found.earlier, found.name, found.tokens or 0, found.flops.total if found.flops else 0.0)


def _with(earlier: EarlierTraining | None, name: str, tokens: int, flops: float) -> EarlierTraining:
    before = earlier or EarlierTraining(names=(), tokens=0, flops=0.0)
    return EarlierTraining(names=(*before.names, name), tokens=before.tokens + tokens, flops=before.flops + flops)


def description_files(model: Path, lineage: Lineage) -> dict[str, str]:
    """Name to text of the files that an exported model gets: its lineage and its card."""
    saved = read_json(model / "config.json")
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    weights = f"{format_bytes(size)}, {saved.get('dtype') or saved.get('torch_dtype') or 'float32'}"
    card = training_card(lineage, remote_code="auto_map" in saved, weights=weights)
    text = json.dumps(lineage.to_json(), indent=2, ensure_ascii=False) + "\n"
    return {Lineage.FILE: text, CARD_FILE: card}
