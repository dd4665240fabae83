"""From the options to what is measured: models with their peers, tokens, tasks and prompts, as a list of parts each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_ray.data import TokenShards, tokenizer_digest
from slm_ray.evaluate.config import SLIDING, WHOLE, EvaluateConfig, several
from slm_ray.evaluate.documents import DocumentTokens
from slm_ray.evaluate.models import load_tokenizer
from slm_ray.evaluate.parts import EFFICIENCY, GENERATION, TASK, TEXT, Part
from slm_ray.evaluate.prompts import Prompt, load_prompts, prompts_digest
from slm_ray.evaluate.subjects import Subject, find_subjects
from slm_ray.evaluate.text import Domain, document_folder, held_out_shards, load_domains, whole_shards
from slm_ray.models.precision import choose_precision
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console

if TYPE_CHECKING:
    from slm_ray.evaluate.tasks.plan import TaskPlan

# Raise one when what is measured under the same settings changes.
_VERSIONS = {TEXT: 2, TASK: 1, GENERATION: 1, EFFICIENCY: 1}


@dataclass
class Inputs:
    """What an evaluation measures.

    Attributes:
        subjects: The models, the first of them the one that others are compared with.
        peers: Label of a model to the labels of its peers.
        parts: Label of a model to what is measured of it.
        tokenizers: Label of a model to the digest of its tokenizer, where text is read.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``.
        plan: The tasks; None where there are none.
        notes: What had to be left out, a sentence each.
    """

    subjects: list[Subject]
    peers: Mapping[str, list[str]]
    parts: dict[str, list[Part]]
    tokenizers: dict[str, str]
    device: str
    precision: str
    plan: TaskPlan | None
    notes: list[str] = field(default_factory=list)


def gather(config: EvaluateConfig, out: Path, console: Console, *, make: bool = True) -> Inputs:
    """Find everything that is measured, before anything is.

    Args:
        config: The options.
        out: The evaluation's folder; tokens go into it.
        console: Where to print.
        make: Make peers that do not exist yet.

    Raises:
        UserError: A model, a text, a task or a prompt cannot be used.
    """
    device = device_of(config.device, config.address)
    precision = choose_precision(config.precision, device)
    plan = None
    if config.tasks:
        from slm_ray.evaluate.tasks.plan import plan_tasks

        folder = Path(config.task_data).expanduser() if config.task_data else None
        plan = plan_tasks(several(config.tasks), task_data=folder, shots=config.shots, limit=config.limit)
    prompts = load_prompts(config.prompts, require_references=config.references) if config.prompts else []
    domains = load_domains(config.domains(), config.text_field, config.domain_field, console)
    subjects = find_subjects(config, console, make=make)
    inputs = Inputs(
        subjects.found, subjects.peers, {subject.label: [] for subject in subjects.found}, {}, device, precision, plan,
        subjects.notes,
    )  # fmt: skip
    _add_texts(config, inputs, domains, out, console)
    for subject in inputs.subjects:
        inputs.parts[subject.label] += _other_parts(config, inputs, subject, prompts)
    return inputs


def _base(inputs: Inputs, subject: Subject, kind: str) -> dict[str, Any]:
    """What every part of a model depends on."""
    return {
        "model": subject.model.digest, "precision": inputs.precision, "device": inputs.device,
        "version": _VERSIONS[kind],
    }  # fmt: skip


def _add_texts(config: EvaluateConfig, inputs: Inputs, domains: list[Domain], out: Path, console: Console) -> None:
    """A part per domain for every model: the first model's tokenizer decides how much text is read."""
    if not domains:
        return
    tokenizers = {subject.label: load_tokenizer(subject.model) for subject in inputs.subjects}
    inputs.tokenizers.update({label: tokenizer_digest(tokenizer) for label, tokenizer in tokenizers.items()})
    for domain in domains:
        texts = _Texts(config, domain, out, console)
        for subject in inputs.subjects:
            part = texts.part(subject.label, tokenizers[subject.label], _base(inputs, subject, TEXT))
            inputs.parts[subject.label].append(part)


class _Texts:
    """One domain in the tokens of one model after another."""

    def __init__(self, config: EvaluateConfig, domain: Domain, out: Path, console: Console) -> None:
        self.config, self.domain, self.out, self.console = config, domain, out, console
        self._num_bytes: int | None = None
        self._texts: list[str] | None = None
        self._found: dict[str, TokenShards] = {}  # by tokenizer

    def part(self, label: str, tokenizer: Any, base: Mapping[str, Any]) -> Part:
        """The part of a model with this tokenizer."""
        config = self.config
        if config.window == SLIDING:
            stride = config.stride or max(1, config.sequence_length // 2)
            place, self._texts = document_folder(
                self.domain.corpus, tokenizer, self.out, part=config.part, eval_tokens=config.eval_tokens,
                texts=self._texts,
            )  # fmt: skip
            settings = {
                "window": SLIDING, "tokens": DocumentTokens.open(place).digest, "length": config.sequence_length,
                "stride": stride,
            }  # fmt: skip
        else:
            shards = self._shards(tokenizer)
            place = shards.folder
            settings = {"window": config.window, "tokens": shards.digest, "documents": config.documents}
        return Part(TEXT, self.domain.name, {**base, **settings}, {"place": str(place.resolve())})

    def _shards(self, tokenizer: Any) -> TokenShards:
        config, digest = self.config, tokenizer_digest(tokenizer)
        if digest not in self._found:
            if config.part == WHOLE:
                length = config.sequence_length
                found = whole_shards(self.domain.corpus, tokenizer, self.out, sequence_length=length)
            else:
                found = held_out_shards(
                    self.domain.corpus, tokenizer, self.out, eval_tokens=config.eval_tokens,
                    sequence_length=config.sequence_length, num_bytes=self._num_bytes, console=self.console,
                )  # fmt: skip
            self._found[digest] = found
            self._num_bytes = self._num_bytes or found.num_bytes
        return self._found[digest]


def _other_parts(config: EvaluateConfig, inputs: Inputs, subject: Subject, prompts: list[Prompt]) -> list[Part]:
    """Tasks, generation and efficiency of one model."""
    parts = []
    if inputs.plan is not None:
        plan, base = inputs.plan, _base(inputs, subject, TASK)
        parts += [
            Part(TASK, name, {**base, "task": plan.settings(name)}, {"plan": plan.only(name).to_json()})
            for name in plan.tasks
        ]
    if prompts:
        settings = {
            "max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p,
            "seed": config.seed, "references": config.references,
        }  # fmt: skip
        whole = {**_base(inputs, subject, GENERATION), **settings, "prompts": prompts_digest(prompts)}
        given = {"prompts": [prompt.to_json() for prompt in prompts], "settings": settings}
        parts.append(Part(GENERATION, GENERATION, whole, given))
    if config.efficiency:
        whole = {**_base(inputs, subject, EFFICIENCY), "threads": config.threads}
        parts.append(Part(EFFICIENCY, EFFICIENCY, whole))
    return parts
