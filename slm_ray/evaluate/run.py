"""An evaluation from its options to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from slm_ray.config.base import flatten
from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.compare import compare_models
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.inputs import TASK, Inputs, MeasurementSpec, RecordFolder, file_name, gather
from slm_ray.evaluate.measure import Failed, Loaded, Measured, Message, ModelJob, Said, measure_model
from slm_ray.evaluate.subjects import Subject
from slm_ray.records.base import write_record
from slm_ray.records.evaluation import (
    MODELS_FOLDER,
    Difference,
    EvaluationResult,
    EvaluationSpent,
    ModelFigures,
    with_measurement,
)
from slm_ray.records.measurement import MeasurementRecord
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.fan_out import FanOut, Share
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.session import ray_session


class Evaluation:
    """One run of the command: which records there are, and which are still to be made."""

    def __init__(self, config: EvaluateConfig, out: Path, inputs: Inputs, console: Console) -> None:
        self.config, self.out, self.inputs, self.console = config, out, inputs, console
        self.folders = {}
        for subject in inputs.subjects:
            place = out / MODELS_FOLDER / f"{file_name(Path(subject.label).name)[:60]}-{subject.model.digest[:8]}"
            self.folders[subject.label] = RecordFolder(place, subject.label, share=not config.fresh)
        self.records: dict[str, dict[str, MeasurementRecord]] = {subject.label: {} for subject in inputs.subjects}
        self.failures: dict[str, Failed] = {}
        self.spent = {"loading": 0.0}
        self.models_loaded = 0
        for label, specs in inputs.specs.items():
            for spec in specs:
                record = self.folders[label].find(spec)
                if record is not None:
                    self.records[label][spec.key] = record
            if specs and not self.pending(label):
                console.line(f"{label}: measured before")
        total = sum(map(len, inputs.specs.values()))
        done = sum(map(len, self.records.values()))
        self.progress = Progress(console, "measuring", total, "measurements", already_done=done)

    def pending(self, label: str) -> tuple[MeasurementSpec, ...]:
        """The measurements of a model that have no record yet."""
        return tuple(spec for spec in self.inputs.specs[label] if spec.key not in self.records[label])

    def receive(self, job: ModelJob, message: Message) -> None:
        """Take a worker's message: records are on the disk before anything else happens."""
        label = job.label
        match message:
            case Said(text):
                self.console.line(f"{label}: {text}")
            case Loaded(seconds):
                self.models_loaded += 1
                self.spent["loading"] += seconds
            case Failed(_, spec):  # why is said at the end
                self.failures.setdefault(label, message)
                self.console.line(f"{label}, {spec.name}: failed" if spec else f"{label}: failed")
            case Measured(spec, record):
                self.folders[label].keep(spec, record)
                self.records[label][spec.key] = record
                self.spent[spec.kind] = self.spent.get(spec.kind, 0.0) + record.seconds
                self.progress.update(self.progress.done + 1, f"{label}, {spec.name}")

    def measure(self) -> None:
        """Do what is left, in this process or on Ray: a job per model."""
        compute, cuda = self.config.compute, self.inputs.device == "cuda"
        left = [subject for subject in self.inputs.subjects if self.pending(subject.label)]
        if not left:
            return
        workers = max(1, min(compute.workers or (torch.cuda.device_count() if cuda else 1), len(left)))
        threads = compute.threads or max(1, usable_cpus() // workers)
        machine = digest_json(str(self.out.resolve()))
        jobs = [
            ModelJob(
                subject.model, subject.label, self.pending(subject.label), self.inputs.precision, self.inputs.device,
                threads, compute.threads or usable_cpus(), compute.batch, machine,
            )
            for subject in left
        ]  # fmt: skip
        here = workers == 1 and not compute.address
        session: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not here:
            session = ray_session(compute.address, workers * threads, self.config.storage)
        fan_out = FanOut[ModelJob, None](
            lambda: measure_model, 0 if here else workers, Share(cpus=threads, gpus=float(cuda)),
            reads=[path for job in jobs for path in job.reads()], name="worker of an evaluation", say=self.console.line,
        )  # fmt: skip
        with session, fan_out:
            found = fan_out.run(
                jobs, receive=lambda index, message: self.receive(jobs[index], message),
                remaining=lambda _, job: dataclasses.replace(job, specs=self.pending(job.label)),
                on_failure=lambda index, error: self.receive(jobs[index], Failed(str(error), is_resumable=True)),
            )  # fmt: skip
            for _ in found:
                pass
        loaded = self.models_loaded
        self.progress.finish(f"{loaded} {'model' if loaded == 1 else 'models'} loaded")

    def figures(self, subject: Subject) -> ModelFigures:
        """Everything that was measured of a model."""
        failure = self.failures.get(subject.label)
        figures = ModelFigures(
            name=subject.label, role=subject.role, of=subject.of, folder=str(subject.model.folder),
            digest=subject.model.digest, params=subject.params, tokenizer=self.inputs.tokenizers.get(subject.label),
            error=failure.sentence if failure else None,
            records=str(self.folders[subject.label].path.relative_to(self.out)), lineage=subject.lineage,
        )  # fmt: skip
        for record in self.measured(subject.label):
            figures = with_measurement(figures, record)
        return figures

    def measured(self, label: str) -> list[MeasurementRecord]:
        """A model's records, in the order in which they were to be measured."""
        records = self.records[label]
        return [records[spec.key] for spec in self.inputs.specs[label] if spec.key in records]

    def differences(self) -> Iterator[Difference]:
        """Every model against the first, and every student's peers against that student."""
        labels = [subject.label for subject in self.inputs.subjects]
        pairs = [(label, labels[0]) for label in labels[1:]]
        for label, peers in self.inputs.peers.items():
            pairs += [(peer, label) for peer in peers if label != labels[0] != peer]
        for names in pairs:
            yield from compare_models(names, *(self.measured(name) for name in names))

    def fail(self) -> None:
        """End with an error where a model could not be measured, in all or in part."""
        if not self.failures:
            return
        first = next(iter(self.failures.values()))
        sentence, number, models = first.sentence, len(self.failures), len(self.records)
        if models > 1:
            how = " in part" if all(failure.spec for failure in self.failures.values()) else ""
            sentence = f"{number} of {models} models failed{how}; the first: {sentence}"
        resumable = any(failure.is_resumable for failure in self.failures.values())
        raise UserError(sentence, is_resumable=resumable) from (RuntimeError(first.trace) if first.trace else None)


def describe(config: EvaluateConfig, out: Path) -> str:
    """What would be measured; nothing is spent but reading the text and the tasks' descriptions."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs = gather(config, Path(scratch), Console(), make=False)
        evaluation = Evaluation(config, out, inputs, Console())
    lines = [f"device {inputs.device}, precision {inputs.precision}, results in {out}", *inputs.notes]
    for subject in inputs.subjects:
        lines.append(f"{subject.label} ({subject.role}, {subject.params:,} parameters)")
        pending = {spec.key for spec in evaluation.pending(subject.label)}
        for spec in inputs.specs[subject.label]:
            done = "" if spec.key in pending else " (measured before)"
            lines.append(f"  {spec.kind}{'' if spec.name == spec.kind else ' ' + spec.name}{done}")
    return "\n".join(lines)


def evaluate(config: EvaluateConfig, folder: RunFolder, command: str, console: Console) -> Evaluation:
    """Measure everything that is not measured yet, compare all models, and write ``evaluate.json``."""
    start, out = time.monotonic(), folder.path
    inputs = gather(config, out, console, started=folder.begin)
    evaluation = Evaluation(config, out, inputs, console)
    pending = {spec.name for label in inputs.specs for spec in evaluation.pending(label) if spec.kind == TASK}
    for task in inputs.tasks:
        if task.name in pending and not task.is_local:
            task.load()  # fetched now, so that an evaluation does not stop half-way for it
    evaluation.measure()
    spent = EvaluationSpent(
        seconds=round(time.monotonic() - start, 3), models_loaded=evaluation.models_loaded,
        by_part={name: round(seconds, 3) for name, seconds in evaluation.spent.items()},
    )  # fmt: skip
    result = EvaluationResult(
        command=command, config=flatten(config), environment=describe_environment().to_json(),
        precision=inputs.precision, device=inputs.device, spent=spent, suites=inputs.suites,
        notes=tuple(inputs.notes), models=tuple(map(evaluation.figures, inputs.subjects)),
        differences=tuple(dict.fromkeys(evaluation.differences())),
    )  # fmt: skip
    write_record(out, result)
    return evaluation
