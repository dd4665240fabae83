"""An evaluation from its options to its results."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.fan_out import measure_here, measure_on_ray
from slm_ray.evaluate.inputs import Inputs, Subject, gather
from slm_ray.evaluate.measure import FAILED, LOADED, PART_FAILED, RECORD, SAY, Message, ModelJob
from slm_ray.evaluate.parts import TASK, Part, RecordFolder, file_name
from slm_ray.evaluate.results import make_result
from slm_ray.records.files import write_json, write_text
from slm_ray.report.evaluation import evaluation_text, write_evaluation_report
from slm_ray.report.evaluation_records import MODELS_FOLDER, RESULT_FILE
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import ENVIRONMENT_FILE, LOG_FILE, RunFolder
from slm_ray.runtime.trackers import group_of, make_tracker

TABLE_FILE = "table.txt"


@dataclass(frozen=True)
class Failure:
    """Why a model could not be measured.

    Attributes:
        sentence: For the user.
        trace: The traceback of a mistake that is not the user's.
        in_part: Its other parts could be.
    """

    sentence: str
    trace: str = ""
    in_part: bool = False


class Evaluation:
    """One call of the command: which records there are, and which are still to be made."""

    def __init__(self, config: EvaluateConfig, out: Path, inputs: Inputs, console: Console) -> None:
        """Look at what is measured already.

        Args:
            config: The options.
            out: The evaluation's folder.
            inputs: What is measured on what.
            console: Where to print.
        """
        self.config, self.out, self.inputs, self.console = config, out, inputs, console
        self.folders = {subject.label: self._folder(subject) for subject in inputs.subjects}
        self.records: dict[str, dict[str, dict[str, Any]]] = {subject.label: {} for subject in inputs.subjects}
        self.failures: dict[str, Failure] = {}
        self.spent = {"loading": 0.0}
        self.models_loaded = 0
        for subject in inputs.subjects:
            for part in inputs.parts[subject.label]:
                record = self.folders[subject.label].find(part)
                if record is not None:
                    self.records[subject.label][part.key] = record
            self._look_into(subject)
        total = sum(map(len, inputs.parts.values()))
        done = sum(map(len, self.records.values()))
        self.progress = Progress(console, "measuring", total, "parts", already_done=done)

    def _folder(self, subject: Subject) -> RecordFolder:
        name = f"{file_name(Path(subject.label).name)[:60]}-{subject.model.digest[:8]}"
        return RecordFolder(self.out / MODELS_FOLDER / name, share=not self.config.fresh)

    def _look_into(self, subject: Subject) -> None:
        if self.inputs.parts[subject.label] and not self.pending(subject.label):
            self.console.line(f"{subject.label}: measured before")

    def pending(self, label: str) -> tuple[Part, ...]:
        """The parts of a model that have no record yet."""
        return tuple(part for part in self.inputs.parts[label] if part.key not in self.records[label])

    def jobs(self, threads: int) -> list[ModelJob]:
        """What is left to do, a job per model."""
        named = digest_json(str(self.out.resolve()))
        jobs = [
            ModelJob(
                subject.model, subject.label, self.pending(subject.label), self.inputs.precision, self.inputs.device,
                threads, self.config.threads or usable_cpus(), self.config.batch, named,
            )
            for subject in self.inputs.subjects
        ]  # fmt: skip
        return [job for job in jobs if job.parts]

    def left(self, job: ModelJob) -> ModelJob:
        """What of a job is still to be done."""
        return dataclasses.replace(job, parts=self.pending(job.label))

    def receive(self, job: ModelJob, message: Message) -> None:
        """Take a worker's message: records are on the disk before anything else happens."""
        kind, value = message
        if kind == SAY:
            self.console.line(f"{job.label}: {value}")
        elif kind == LOADED:
            self.models_loaded += 1
            self.spent["loading"] += value["seconds"]
        elif kind == FAILED:
            self.failures[job.label] = Failure(*value)
            self.console.line(value[0])
        elif kind == PART_FAILED:
            index, sentence = value
            self.failures.setdefault(job.label, Failure(sentence, in_part=True))
            self.console.line(f"{job.label}, {job.parts[index].name}: {sentence}")
        elif kind == RECORD:
            index, record = value
            part = job.parts[index]
            more = {"model": job.label}
            self.records[job.label][part.key] = self.folders[job.label].keep(part, {**record, **more})
            self.spent[part.kind] = self.spent.get(part.kind, 0.0) + record["seconds"]
            self.progress.update(self.progress.done + 1, f"{job.label}, {part.name}")


def _workers(config: EvaluateConfig, device: str, models: int) -> int:
    wanted = config.workers or (torch.cuda.device_count() if device == "cuda" else 1)
    return max(1, min(wanted, models))


def _measure(evaluation: Evaluation) -> None:
    """Do what is left, here or on Ray."""
    config, inputs = evaluation.config, evaluation.inputs
    number = sum(bool(evaluation.pending(subject.label)) for subject in inputs.subjects)
    if not number:
        return
    workers = _workers(config, inputs.device, number)
    jobs = evaluation.jobs(config.threads or max(1, usable_cpus() // workers))
    if workers == 1 and not config.address:
        measure_here(jobs, evaluation.receive)
    else:
        measure_on_ray(jobs, evaluation.receive, evaluation.left, workers=workers, address=config.address)
    evaluation.progress.finish(f"{evaluation.models_loaded} models loaded")


def _fetch_task_data(evaluation: Evaluation) -> None:
    """Have the data of all tasks that are still to be measured, so that nothing stops half-way for them.

    Raises:
        UserError: The data of a task cannot be had.
    """
    plan = evaluation.inputs.plan
    if plan is not None:
        pending = {part.name for label in evaluation.records for part in evaluation.pending(label) if part.kind == TASK}
        plan.check_downloads(name for name in plan.tasks if name in pending)


def describe(config: EvaluateConfig, out: Path) -> None:
    """Print what would be measured; nothing is spent but reading the text and the tasks' descriptions.

    Raises:
        UserError: A model, the text or a task cannot be used.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        inputs = gather(config, Path(scratch), Console(), make=False)
        evaluation = Evaluation(config, out, inputs, Console())
    print(f"device {inputs.device}, precision {inputs.precision}, results in {out}")
    for note in inputs.notes:
        print(note)
    for subject in inputs.subjects:
        print(f"{subject.label} ({subject.role}, {subject.params:,} parameters)")
        pending = {part.key for part in evaluation.pending(subject.label)}
        for part in inputs.parts[subject.label]:
            done = "" if part.key in pending else " (measured before)"
            print(f"  {part.kind}{'' if part.name == part.kind else ' ' + part.name}{done}")


def evaluate(config: EvaluateConfig, folder: RunFolder, command: str) -> dict[str, Any]:
    """Measure every part that is not measured yet, and compare all models with the first.

    Args:
        config: The options.
        folder: Where results go; results of earlier calls are found there and in the cache, by model and settings.
        command: The command line, for the record.

    Returns:
        What ``evaluate.json`` says.

    Raises:
        UserError: A model or the text cannot be used; what was measured is kept, and the other models are finished.
    """
    console, start, out = Console(folder.file(LOG_FILE)), time.monotonic(), folder.path
    environment = describe_environment()
    write_json(folder.file(ENVIRONMENT_FILE), environment)
    inputs = gather(config, out, console)
    evaluation = Evaluation(config, out, inputs, console)
    _fetch_task_data(evaluation)
    _measure(evaluation)
    spent = {
        "seconds": round(time.monotonic() - start, 3), "models_loaded": evaluation.models_loaded,
        "by_part": {name: round(seconds, 3) for name, seconds in evaluation.spent.items()},
    }  # fmt: skip
    result = make_result(
        config, inputs, evaluation.records,
        {label: failure.sentence for label, failure in evaluation.failures.items()},
        command=command, environment=environment, spent=spent,
        files={label: str(records.path.relative_to(out)) for label, records in evaluation.folders.items()},
    )  # fmt: skip
    write_json(out / RESULT_FILE, result)
    _show(config, out, result, console)
    _fail(evaluation)
    return result


def _show(config: EvaluateConfig, out: Path, result: dict[str, Any], console: Console) -> None:
    """The table, the report, the tracker's copy and the cards: all made from the result."""
    text = evaluation_text(result)
    write_text(out / TABLE_FILE, text + "\n")
    print(text)
    paths = write_evaluation_report(out)
    if config.tracker != "none":
        from slm_ray.report.tracked import send_results

        tracker = make_tracker(
            config.tracker, out, group=group_of(out), job_type="evaluate", tags=_tags(config), config=config.to_json(),
            say=console.line,
        )  # fmt: skip
        send_results(tracker, out)
        tracker.finish()
    if config.cards:
        _write_cards(result, console)
    console.line(f"results: {out / RESULT_FILE}; report: {next(path for path in paths if path.suffix == '.html')}")


def _tags(config: EvaluateConfig) -> list[str]:
    return [name for name, given in (("tasks", config.tasks), ("generation", config.prompts)) if given]


def _write_cards(result: dict[str, Any], console: Console) -> None:
    from slm_ray.report.evaluation_card import add_evaluation

    for row in result["models"]:
        if row["role"] == "model" and not row["error"]:
            try:
                add_evaluation(Path(row["folder"]), result, row["name"])
            except UserError as error:
                console.line(f"no card for {row['name']}: {error}")


def _fail(evaluation: Evaluation) -> None:
    if not evaluation.failures:
        return
    first = next(iter(evaluation.failures.values()))
    sentence = first.sentence
    number, others = len(evaluation.failures), len(evaluation.records) - len(evaluation.failures)
    if len(evaluation.records) > 1:
        more = f"; the other {others} are measured" if others else ""
        how = " in part" if all(failure.in_part for failure in evaluation.failures.values()) else ""
        sentence = f"{number} of {len(evaluation.records)} models failed{how}{more}; the first: {sentence}"
    raise UserError(sentence) from (RuntimeError(first.trace) if first.trace else None)
