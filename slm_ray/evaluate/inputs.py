"""What is measured of each model, from the options: texts, tasks, prompts, and where earlier records are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.generation import Prompt, load_prompts, prompts_digest
from slm_ray.evaluate.models import load_tokenizer
from slm_ray.evaluate.subjects import Subject, Subjects
from slm_ray.evaluate.task_plan import PlannedTask, plan_tasks
from slm_ray.evaluate.text import Domain, load_domains
from slm_ray.models.precision import choose_precision
from slm_ray.records.files import cache_folder, write_json
from slm_ray.records.measurement import GenerationSettings, MeasurementRecord, TextRecord, read_measurement
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console

TEXT, TASK, GENERATION, EFFICIENCY = "text", "task", "generation", "efficiency"
# Raise one when what is measured under the same settings changes.
_VERSIONS = {TEXT: 3, TASK: 2, GENERATION: 2, EFFICIENCY: 3}
# Rates are a fact about one moment of one machine: they are kept in the evaluation's own folder only.
_NOT_SHARED = (EFFICIENCY,)


def file_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


@dataclass(frozen=True)
class MeasurementSpec:
    """One measurement of one model."""

    kind: str
    name: str  # The domain, or the name given to ``--tasks``; else the kind
    settings: Mapping[str, Any]  # All that decides its result, the model's digest included
    # What the worker needs and ``settings`` stand for, such as the folder of the tokens
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The digest of the settings; equal ones have equal results."""
        return digest_json(dict(self.settings) | {"kind": self.kind, "version": _VERSIONS[self.kind]})

    @property
    def file(self) -> str:
        """Its file in the model's folder."""
        stem = self.kind if self.name == self.kind else f"{self.kind}-{file_name(self.name)}"
        return f"{stem}-{self.key[:8]}.json"

    @property
    def cached(self) -> Path | None:
        """Its file in the cache that all evaluations share; None where it is not shared."""
        return None if self.kind in _NOT_SHARED else cache_folder() / "evaluations" / f"{self.key}.json"

    def header(self, model: str, params: int) -> dict[str, Any]:
        """The fields that every record begins with."""
        settings = dict(self.settings)
        return {"name": self.name, "key": self.key, "settings": settings, "model": model, "params": params}


@dataclass(frozen=True)
class RecordFolder:
    """The records of one model in an evaluation's folder; with ``share`` they are looked for in the cache too."""

    path: Path
    model: str
    share: bool = True

    def find(self, spec: MeasurementSpec) -> MeasurementRecord | None:
        """The record of a measurement made before, here or in another evaluation; None where there is none."""
        here = self.path / spec.file
        for place in (here, spec.cached if self.share else None):
            if place is None or not place.is_file():
                continue
            try:
                record = read_measurement(place)
            except UserError:  # damaged or of another version: measured again
                continue
            if record.key != spec.key:
                continue
            # This evaluation may call its model and its text by other names.
            changes: dict[str, Any] = {"name": spec.name, "model": self.model}
            if isinstance(record, TextRecord):
                changes["figures"] = record.figures.model_copy(update={"domain": spec.name})
            renamed: MeasurementRecord = record.model_copy(update=changes)
            if place != here or renamed != record:
                write_json(here, renamed.to_json())
            return renamed
        return None

    def keep(self, spec: MeasurementSpec, record: MeasurementRecord) -> None:
        """Write a record, here and into the cache."""
        for place in (self.path / spec.file, spec.cached):
            if place is not None:
                write_json(place, record.to_json())


@dataclass
class Inputs:
    """What an evaluation measures."""

    subjects: list[Subject]  # The models, the first of them the one that others are compared with
    peers: Mapping[str, list[str]]  # Label of a model to the labels of its peers
    specs: dict[str, list[MeasurementSpec]]  # Label of a model to what is measured of it
    tokenizers: dict[str, str]  # Label of a model to the digest of its tokenizer, where text is read
    device: str
    precision: str
    tasks: tuple[PlannedTask, ...]
    suites: dict[str, tuple[str, ...]]
    notes: list[str]  # What had to be left out, a sentence each


def gather(
    config: EvaluateConfig, out: Path, console: Console, *, make: bool = True,
    started: Callable[[], None] = lambda: None,
) -> Inputs:  # fmt: skip
    """Find everything that is measured, before anything is; tokens and documents go into the folder ``out``.

    Without ``make``, peers that do not exist yet are only noted. ``started`` is called once models, tasks and texts are
    known to be there.
    """
    config.check_models()
    tasks, suites = plan_tasks(config.benchmarks) if config.benchmarks.tasks else ((), {})
    device = device_of(config.compute.device, config.compute.address)
    generation = config.generation
    prompts: Sequence[Prompt] = ()
    if generation.prompts:
        prompts = load_prompts(generation.prompts, require_references=generation.references)
    subjects = Subjects(config, console, make=make)
    domains = load_domains(config.text, console)
    inputs = Inputs(
        subjects.found, subjects.peers, {subject.label: [] for subject in subjects.found}, {}, device,
        choose_precision(config.compute.precision, device).replace("fp16", "fp32"), tasks, suites, subjects.notes,
    )  # fmt: skip
    started()
    if domains:
        _add_texts(config, inputs, domains, out, console)
    for subject in inputs.subjects:
        _add_others(config, inputs, subject, prompts)
    return inputs


def _base(inputs: Inputs, subject: Subject) -> dict[str, Any]:
    """What every measurement of a model depends on."""
    return {"model": subject.model.digest, "precision": inputs.precision, "device": inputs.device}


def _add_texts(config: EvaluateConfig, inputs: Inputs, domains: list[Domain], out: Path, console: Console) -> None:
    """A measurement per domain for every model."""
    tokenizers = {subject.label: load_tokenizer(subject.model) for subject in inputs.subjects}
    inputs.tokenizers.update({label: tokenizer_digest(tokenizer) for label, tokenizer in tokenizers.items()})
    for domain in domains:
        for subject in inputs.subjects:
            settings, place = domain.prepare(config.text, tokenizers[subject.label], out, console)
            corpus = domain.corpus
            given = {"place": str(place.resolve()), "corpus": corpus.name, "corpus_digest": corpus.digest}
            spec = MeasurementSpec(TEXT, domain.name, _base(inputs, subject) | settings, given)
            inputs.specs[subject.label].append(spec)


def _add_others(config: EvaluateConfig, inputs: Inputs, subject: Subject, prompts: Sequence[Prompt]) -> None:
    """Tasks, generation and efficiency of one model."""
    base, specs = _base(inputs, subject), inputs.specs[subject.label]
    for task in inputs.tasks:
        specs.append(MeasurementSpec(TASK, task.name, {**base, "task": dict(task.settings)}, {"task": task}))
    if prompts:
        generation = config.generation
        settings = GenerationSettings(
            max_new_tokens=generation.max_new_tokens, temperature=generation.temperature, top_p=generation.top_p,
            seed=generation.seed, references=generation.references, prompts_digest=prompts_digest(prompts),
        )  # fmt: skip
        given = {"prompts": prompts, "settings": settings}
        specs.append(MeasurementSpec(GENERATION, GENERATION, {**base, **settings.to_json()}, given))
    if config.efficiency:
        specs.append(MeasurementSpec(EFFICIENCY, EFFICIENCY, {**base, "threads": config.compute.threads}))
