"""What is measured of each model, from the options: texts, tasks, prompts, and where earlier records are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.evaluate.config import SLIDING, WHOLE, EvaluateConfig, TextConfig
from slm_ray.evaluate.generation import Prompt, load_prompts, prompts_digest
from slm_ray.evaluate.models import load_tokenizer
from slm_ray.evaluate.subjects import Subject, find_subjects
from slm_ray.evaluate.task_run import TaskPlan, plan_tasks
from slm_ray.evaluate.text import (
    Domain,
    held_out_shards,
    held_out_texts,
    load_domains,
    whole_shards,
    whole_texts,
)
from slm_ray.models.precision import choose_precision
from slm_ray.records.files import cache_folder, write_json
from slm_ray.records.measurement import GenerationSettings, MeasurementRecord, TextRecord, read_measurement
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console

TEXT, TASK, GENERATION, EFFICIENCY = "text", "task", "generation", "efficiency"
CACHE_FOLDER = "evaluations"
# Raise one when what is measured under the same settings changes.
_VERSIONS = {TEXT: 3, TASK: 2, GENERATION: 2, EFFICIENCY: 2}
# Rates are a fact about one moment of one machine: they are kept in the evaluation's own folder only.
_NOT_SHARED = (EFFICIENCY,)


def file_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


@dataclass(frozen=True)
class MeasurementSpec:
    """One measurement of one model.

    Attributes:
        kind: ``text``, ``task``, ``generation`` or ``efficiency``.
        name: The domain, or the name given to ``--tasks``; else the kind.
        settings: All that decides its result, the model's digest included.
        inputs: What the worker needs and ``settings`` stand for, such as the folder of the tokens.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
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
    def cached(self) -> Path:
        """Its file in the cache that all evaluations share."""
        return cache_folder() / CACHE_FOLDER / f"{self.key}.json"

    def header(self, model: str, params: int) -> dict[str, Any]:
        """The fields that every record begins with."""
        settings = dict(self.settings)
        return {"name": self.name, "key": self.key, "settings": settings, "model": model, "params": params}


@dataclass(frozen=True)
class RecordFolder:
    """The records of one model in an evaluation's folder.

    Attributes:
        path: The folder.
        model: The model's name in the evaluation.
        share: Look into the cache that all evaluations share.
    """

    path: Path
    model: str
    share: bool = True

    def find(self, spec: MeasurementSpec) -> MeasurementRecord | None:
        """The record of a measurement made before, here or in another evaluation; None where there is none."""
        here = self.path / spec.file
        for place in [here, *([spec.cached] if self.share and spec.kind not in _NOT_SHARED else [])]:
            record = _read(place)
            if record is None or record.key != spec.key:
                continue
            renamed = self._named(spec, record)
            if place != here or renamed != record:
                write_json(here, renamed.to_json())
            return renamed
        return None

    def _named(self, spec: MeasurementSpec, record: MeasurementRecord) -> MeasurementRecord:
        """A record as this evaluation names its model and its text."""
        changes: dict[str, Any] = {"name": spec.name, "model": self.model}
        if isinstance(record, TextRecord):
            changes["figures"] = record.figures.model_copy(update={"domain": spec.name})
        return record.model_copy(update=changes)

    def keep(self, spec: MeasurementSpec, record: MeasurementRecord) -> None:
        """Write a record, here and into the cache.

        Raises:
            UserError: The disk is full.
        """
        write_json(self.path / spec.file, record.to_json())
        if spec.kind not in _NOT_SHARED:
            write_json(spec.cached, record.to_json())


def _read(place: Path) -> MeasurementRecord | None:
    """A record that can be used; one that is damaged or of another version is measured again."""
    if not place.is_file():
        return None
    try:
        return read_measurement(place)
    except UserError:
        return None



@dataclass
class Inputs:
    """What an evaluation measures.

    Attributes:
        subjects: The models, the first of them the one that others are compared with.
        peers: Label of a model to the labels of its peers.
        specs: Label of a model to what is measured of it.
        tokenizers: Label of a model to the digest of its tokenizer, where text is read.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``.
        plan: The tasks; None where there are none.
        notes: What had to be left out, a sentence each.
    """

    subjects: list[Subject]
    peers: Mapping[str, list[str]]
    specs: dict[str, list[MeasurementSpec]]
    tokenizers: dict[str, str]
    device: str
    precision: str
    plan: TaskPlan | None
    notes: list[str] = field(default_factory=list)


def gather(
    config: EvaluateConfig, out: Path, console: Console, *, make: bool = True,
    started: Callable[[], None] = lambda: None,
) -> Inputs:  # fmt: skip
    """Find everything that is measured, before anything is.

    Args:
        config: The options.
        out: The evaluation's folder; tokens and local tasks go into it.
        console: Where to print.
        make: Make peers that do not exist yet.
        started: Called once models, tasks and texts are known to be there.

    Raises:
        UserError: A model, a text, a task or a prompt cannot be used.
    """
    config.check_models()
    device = device_of(config.compute.device, config.compute.address)
    precision = choose_precision(config.compute.precision, device)
    generation = config.generation
    prompts: Sequence[Prompt] = ()
    if generation.prompts:
        prompts = load_prompts(generation.prompts, require_references=generation.references)
    subjects = find_subjects(config, console, make=make)
    plan = plan_tasks(config.benchmarks) if config.benchmarks.tasks else None
    domains = load_domains(config.text.domains, config.text.text_field, config.text.domain_field, console)
    inputs = Inputs(
        subjects.found, subjects.peers, {subject.label: [] for subject in subjects.found}, {}, device, precision, plan,
        subjects.notes,
    )  # fmt: skip
    started()
    _add_texts(config.text, inputs, domains, out, console)
    for subject in inputs.subjects:
        inputs.specs[subject.label] += _other_specs(config, inputs, subject, prompts)
    return inputs


def _base(inputs: Inputs, subject: Subject) -> dict[str, Any]:
    """What every measurement of a model depends on."""
    return {"model": subject.model.digest, "precision": inputs.precision, "device": inputs.device}


def _add_texts(config: TextConfig, inputs: Inputs, domains: list[Domain], out: Path, console: Console) -> None:
    """A measurement per domain for every model: the first model's tokenizer decides how much text is read."""
    if not domains:
        return
    tokenizers = {subject.label: load_tokenizer(subject.model) for subject in inputs.subjects}
    inputs.tokenizers.update({label: tokenizer_digest(tokenizer) for label, tokenizer in tokenizers.items()})
    for domain in domains:
        texts = _Texts(config, domain, out, console)
        for subject in inputs.subjects:
            spec = texts.spec(tokenizers[subject.label], _base(inputs, subject))
            inputs.specs[subject.label].append(spec)


class _Texts:
    """One domain in the tokens of one model after another."""

    def __init__(self, config: TextConfig, domain: Domain, out: Path, console: Console) -> None:
        self.config, self.domain, self.out, self.console = config, domain, out, console
        self._num_bytes: int | None = None
        self._documents: tuple[Path, str] | None = None  # the file of the texts, and their digest
        self._found: dict[str, TokenShards] = {}  # by tokenizer

    def spec(self, tokenizer: Any, base: Mapping[str, Any]) -> MeasurementSpec:
        """The measurement of a model with this tokenizer."""
        config = self.config
        settings: dict[str, Any]
        if config.window == SLIDING:
            place, digest = self._texts(tokenizer)
            settings = {
                "window": SLIDING, "texts": digest, "tokenizer": tokenizer_digest(tokenizer),
                "length": config.sequence_length, "stride": config.stride or max(1, config.sequence_length // 2),
            }  # fmt: skip
        else:
            shards = self._shards(tokenizer)
            place = shards.folder
            settings = {"window": config.window, "tokens": shards.digest, "documents": config.documents}
        corpus = self.domain.corpus
        given = {"place": str(place.resolve()), "corpus": corpus.name, "corpus_digest": corpus.digest}
        return MeasurementSpec(TEXT, self.domain.name, {**base, **settings}, given)

    def _texts(self, tokenizer: Any) -> tuple[Path, str]:
        """Whole documents, chosen by the first model's tokens, as a file of all workers."""
        config, corpus = self.config, self.domain.corpus
        if self._documents is None:
            whole = config.part == WHOLE
            texts = whole_texts(corpus) if whole else held_out_texts(corpus, tokenizer, config.eval_tokens)
            digest = digest_json(texts)
            place = self.out / f"texts-{digest}.json"
            write_json(place, texts)
            self._documents = place, digest
        return self._documents

    def _shards(self, tokenizer: Any) -> TokenShards:
        config, digest = self.config, tokenizer_digest(tokenizer)
        if digest not in self._found:
            if config.part == WHOLE:
                found = whole_shards(self.domain.corpus, tokenizer, sequence_length=config.sequence_length)
            else:
                found = held_out_shards(
                    self.domain.corpus, tokenizer, eval_tokens=config.eval_tokens,
                    sequence_length=config.sequence_length, num_bytes=self._num_bytes, console=self.console,
                )  # fmt: skip
            self._found[digest] = found
            self._num_bytes = self._num_bytes or found.num_bytes
        return self._found[digest]


def _other_specs(
    config: EvaluateConfig, inputs: Inputs, subject: Subject, prompts: Sequence[Prompt]
) -> list[MeasurementSpec]:
    """Tasks, generation and efficiency of one model."""
    base = _base(inputs, subject)
    specs = []
    for task in inputs.plan.tasks if inputs.plan else ():
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
    return specs
