"""What a run's files say, as types: models with their sizes and measurements, and the run around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of one model, layer by layer, and which of the teacher's layers they come from."""

    hidden_size: int
    source_layers: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    num_key_value_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """How many layers there are, those with a skipped sub-layer included."""
        return len(self.num_attention_heads)

    @property
    def is_uniform(self) -> bool:
        """Every layer has the same sizes and skips nothing."""
        layers = set(zip(self.num_attention_heads, self.num_key_value_heads, self.intermediate_size, strict=True))
        return len(layers) <= 1 and all(all(layer) for layer in layers)


@dataclass(frozen=True)
class Model:
    """One model of a run: a candidate, a member of the front, a baseline, or the teacher.

    Attributes:
        name: ``trial 17``, a baseline's name, or the teacher's.
        shape: Its sizes, where they are recorded.
        cost: ``params``, ``flops`` (per token) and ``kv_bytes`` (per token), as far as recorded.
        calibration_perplexity: On the text the search measures on; on a part of it for a candidate decided early.
        calibration_stderr: Its standard error.
        held_out_perplexity: On text the search never saw.
        held_out_stderr: Its standard error.
        trial: The number of the candidate.
        winner: The number of its folder in ``winners/``.
        details: Other recorded facts (origin, how it was decided, digest).
    """

    name: str
    shape: Shape | None = None
    cost: Mapping[str, float] | None = None
    calibration_perplexity: float | None = None
    calibration_stderr: float | None = None
    held_out_perplexity: float | None = None
    held_out_stderr: float | None = None
    trial: int | None = None
    winner: int | None = None
    details: Mapping[str, Any] | None = None

    def cost_of(self, quantity: str) -> float | None:
        """The cost in one quantity, or None where it was not recorded."""
        return (self.cost or {}).get(quantity)

    @property
    def params(self) -> float | None:
        """How many parameters it has."""
        return self.cost_of("params")

    @property
    def perplexity(self) -> float | None:
        """The perplexity to show: held-out where it was measured, else on the calibration text."""
        return self.calibration_perplexity if self.held_out_perplexity is None else self.held_out_perplexity

    @property
    def stderr(self) -> float | None:
        """The standard error of :attr:`perplexity`."""
        return self.calibration_stderr if self.held_out_perplexity is None else self.held_out_stderr

    def detail(self, name: str) -> Any:
        """A recorded fact, or None."""
        return (self.details or {}).get(name)


@dataclass(frozen=True)
class RunRecords:
    """Everything a run folder says. An unfinished run has no teacher and a front made from its trials.

    Attributes:
        notes: What is missing or damaged, one sentence each.
        front: By size, the smallest first.
        winners: Winner number to folder, relative to the run.
        budget: ``(quantity, low, high)``.
        hypervolume: ``(evaluations, seconds, value)``, in the order measured.
        spent: The ``spent`` part of the result, as written.
        fidelity: What an audit said of the search's shortcuts, as written; empty where there was none.
        steps: Cuts that were trained before this search cut what came of the last one, as written.
    """

    folder: Path
    finished: bool
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str | None
    objectives: tuple[str, ...]
    teacher: Model | None
    corpus: Mapping[str, Any]
    budget: tuple[str, float, float] | None
    candidates: tuple[Model, ...]
    num_failed: int
    front: tuple[Model, ...]
    baselines: tuple[Model, ...]
    winners: Mapping[int, str]
    hypervolume: tuple[tuple[float, float, float], ...]
    spent: Mapping[str, Any]
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()

    @property
    def best(self) -> Model | None:
        """Winner 0; without winners, the front's member of least perplexity."""
        numbered = sorted((m for m in self.front if m.winner is not None), key=lambda model: model.winner or 0)
        measured = sorted((m for m in self.front if m.perplexity is not None), key=lambda model: model.perplexity or 0)
        return next(iter([*numbered, *measured, *self.front]), None)

    def winner_folder(self, model: Model) -> str | None:
        """The model's folder, relative to the run, if it was exported."""
        return None if model.winner is None else self.winners.get(model.winner, f"winners/{model.winner}")
