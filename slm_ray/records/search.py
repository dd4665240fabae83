"""The records of a search: trials, the result with its front and winners, phases, digests of the inputs.

The search writes them, and its resume, the report, the tracker, cards and sweeps read them through the same classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture
from slm_ray.records.base import Part, Record, find_record, read_lines, read_record
from slm_ray.records.budget import QUANTITIES, measure_cost
from slm_ray.records.run import RunRecord

Sizes = tuple[int, ...]

RUINED_RATIO = 20.0
"""Times the teacher's perplexity from which a model without training writes noise."""


class ModelShape(Part):
    """The sizes of a model layer by layer, and which of the teacher's layers they come from."""

    hidden_size: int
    source_layers: Sizes
    num_attention_heads: Sizes
    num_key_value_heads: Sizes
    intermediate_size: Sizes
    vocab_size: int

    @classmethod
    def of(cls, architecture: Architecture, source_layers: Sequence[int]) -> ModelShape:
        """The shape of an architecture."""
        return cls(
            hidden_size=architecture.hidden_size,
            source_layers=tuple(source_layers),
            num_attention_heads=tuple(layer.num_attention_heads for layer in architecture.layers),
            num_key_value_heads=tuple(layer.num_key_value_heads for layer in architecture.layers),
            intermediate_size=tuple(layer.intermediate_size for layer in architecture.layers),
            vocab_size=architecture.structure.vocab_size,
        )

    @property
    def num_layers(self) -> int:
        """Number of layers, those with a skipped sub-layer included."""
        return len(self.num_attention_heads)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same sizes and skip nothing."""
        layers = set(zip(self.num_attention_heads, self.num_key_value_heads, self.intermediate_size, strict=True))
        return len(layers) <= 1 and all(all(layer) for layer in layers)


class ModelCost(Part):
    """The exact costs of a model: parameters, FLOPs per token, key-value cache bytes per token."""

    params: int
    flops: int
    kv_bytes: int

    @classmethod
    def of(cls, architecture: Architecture, sequence_length: int) -> ModelCost:
        """Every cost of an architecture; FLOPs are counted at ``sequence_length`` tokens of context."""
        return cls(**{name: measure_cost(architecture, name, sequence_length) for name in QUANTITIES})

    def __getitem__(self, quantity: str) -> int:
        """The cost in one of the budget quantities."""
        return int(getattr(self, quantity))


class Measurement(Part):
    """One measured value."""

    value: float  # In the proxy's unit
    stderr: float | None  # Its standard error, or None where it has none
    tokens: int  # Tokens it was measured on (0: none were needed)
    seconds: float  # Wall time it took
    # Mean loss of each consecutive block of about 64 predicted positions, in nats; empty for other proxies. Paired
    # differences between candidates are made of these.
    blocks: tuple[float, ...] = ()

    def rounded(self) -> Measurement:
        """The measurement with as many digits as records keep."""
        return Measurement(
            value=float(f"{self.value:.7g}"),
            stderr=None if self.stderr is None else float(f"{self.stderr:.4g}"),
            tokens=self.tokens,
            seconds=round(self.seconds, 4),
            blocks=tuple(round(block, 5) for block in self.blocks),
        )


class Trial(Record):
    """One candidate: a line of ``trials.jsonl``, synced before the algorithm learns of it."""

    FILE: ClassVar[str] = "trials.jsonl"
    trial: int  # Its number, in the order the algorithm proposed it
    generation: int  # The generation it belongs to
    origin: str  # The algorithm, or ``seed``
    digest: str  # Of the space and the genes
    genes: str  # Its genes as text
    status: Literal["done", "failed"]
    error: str | None = None  # Why it failed
    architecture: ModelShape
    cost: ModelCost
    measurements: dict[str, Measurement]
    objectives: dict[str, int | float] | None = None  # The values it was searched on; None where it failed
    # ``dominated`` where the race stopped it early, ``full`` where all calibration tokens were used
    decided: Literal["full", "dominated"] | None = None
    seconds: float  # Wall time of measuring it
    finished_at: str  # UTC

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"trial {self.trial}"

    @property
    def is_full(self) -> bool:
        """Whether it was measured on all calibration tokens."""
        return self.status == "done" and self.decided == "full"

    @property
    def tokens(self) -> int:
        """Calibration tokens it was measured on."""
        return max((one.tokens for one in self.measurements.values()), default=0)

    @property
    def full_measurements(self) -> dict[str, Measurement]:
        """What it was measured at on all calibration tokens, by proxy; empty for one that was stopped early."""
        return dict(self.measurements) if self.is_full else {}

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.cost.params

    @property
    def perplexity(self) -> float | None:
        """Its perplexity on the calibration text, as far as it was measured."""
        return self.measurements["perplexity"].value if "perplexity" in self.measurements else None

    @property
    def stderr(self) -> float | None:
        """The standard error of :attr:`perplexity`."""
        return self.measurements["perplexity"].stderr if "perplexity" in self.measurements else None


class Perplexities(Part):
    """Perplexities of one model by text, each with its standard error.

    ``calibration``: what the search measures on. ``held_out``: text the search never saw. ``other``: another corpus
    (``--other-data``). ``teacher_text``: text the teacher wrote.
    """

    calibration_perplexity: float | None = None
    calibration_stderr: float | None = None
    held_out_perplexity: float | None = None
    held_out_stderr: float | None = None
    other_perplexity: float | None = None
    other_stderr: float | None = None
    teacher_text_perplexity: float | None = None
    teacher_text_stderr: float | None = None

    @property
    def perplexity(self) -> float | None:
        """The perplexity to show: held-out where it was measured, else on the calibration text."""
        return self.calibration_perplexity if self.held_out_perplexity is None else self.held_out_perplexity

    @property
    def stderr(self) -> float | None:
        """The standard error of :attr:`perplexity`."""
        return self.calibration_stderr if self.held_out_perplexity is None else self.held_out_stderr

    def with_measurement(self, text: str, measured: Measurement) -> Perplexities:
        """These with the perplexity on one more text, such as ``held_out``."""
        stderr = None if measured.stderr is None else round(measured.stderr, 4)
        return self.model_copy(update={f"{text}_perplexity": round(measured.value, 4), f"{text}_stderr": stderr})


class MeasuredModel(Perplexities):
    """A model of a result: its sizes, costs and perplexities."""

    architecture: ModelShape
    cost: ModelCost

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.cost.params


class Teacher(MeasuredModel):
    """The teacher of a search."""

    name: str
    family: str
    digest: str
    licence: str | None = None


class Baseline(MeasuredModel):
    """What a winner has to beat at its size: ``first-n``, ``random`` or ``importance``."""

    name: str


class ShortTraining(Record):
    """What the short training of one sub-network gave."""

    FILE: ClassVar[str] = "result.json"
    tokens: int  # Tokens it was trained on
    first_loss: float | None  # Loss before, on text that is not trained on, nats per token
    loss: float | None  # Loss after; None where the training failed
    flops: float  # The student's and the teacher's, both evaluations included
    seconds: float  # Of the training steps
    error: str | None = None  # Why it failed


class Unexplained(Part):
    """Mean share of the sub-layers' targets that is left unexplained, before and after each one's own fit."""

    before: float
    after: float


class Reconstruction(Record):
    """What reconstructing one model's weights gave: ``reconstruction/TRIAL.json``, and in its entry of the front."""

    FILE: ClassVar[str] = "reconstruction.json"
    key: str  # Digest of everything it depends on
    kept: bool  # Whether the fitted weights were better on every text that decides; else the teacher's stay
    tokens: int  # Tokens they were fitted on, ``written_tokens`` of them the teacher's own text
    part: str  # The corpus's part that the others are of
    written_tokens: int = 0
    before: Perplexities  # Perplexities with the teacher's weights
    after: Perplexities  # The same with fitted ones; held-out figures only where these are kept
    unexplained: Unexplained
    settings: dict[str, Any]  # Of the fit


class FrontMember(MeasuredModel):
    """A member of the front."""

    trial: int
    digest: str
    winner: int | None = None  # The number of its folder in ``winners/``; None where it was not exported
    objectives: dict[str, int | float]
    short_training: ShortTraining | None = None
    # What fitting its weights gave. Its other figures are those of the teacher's weights.
    reconstruction: Reconstruction | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"trial {self.trial}"

    @property
    def fitted(self) -> Reconstruction | None:
        """Its reconstruction where the fitted weights were kept."""
        return self.reconstruction if self.reconstruction is not None and self.reconstruction.kept else None

    @property
    def final(self) -> Perplexities:
        """Perplexities with the weights that are exported."""
        return self.fitted.after if self.fitted is not None else self


class Winner(Part):
    """An exported winner."""

    folder: str  # Relative to the run
    trial: int
    num_bytes: int  # Of its weights
    dtype: str  # Of its weights, such as ``bfloat16``


class OtherText(Part):
    """Text of another kind, which decides nothing."""

    name: str
    tokens: int


class Corpus(Part):
    """The text of a search; ``parts`` has documents, bytes and the like by part."""

    name: str
    digest: str | None
    calibration_tokens: int
    held_out_tokens: int
    train_tokens: int
    calibration_digest: str
    parts: dict[str, dict[str, Any]]
    other: OtherText | None = None


class BudgetRange(Part):
    """The hard range of one quantity."""

    quantity: Literal["params", "flops", "kv_bytes"]
    low: int
    high: int


class HypervolumePoint(Part):
    """The hypervolume of the front after a number of evaluations."""

    evaluations: int
    seconds: float
    value: float


class Paid(Part):
    """A cost that is paid once: tokens through a model and FLOPs."""

    tokens: int = 0
    flops: float = 0.0


class ModelsSpent(Part):
    """What training or reconstructing some models cost."""

    models: int
    failed: int = 0
    tokens: int
    flops: float


class Spent(Part):
    """Everything that was computed, by all processes that worked on the run."""

    seconds: dict[str, float]  # By phase
    processes: int  # How many worked on the run, one after the other
    forward_tokens: int  # Tokens through a model
    flops: float  # Everything, ``paid``, ``finalists`` and ``reconstruction`` included
    paid: dict[str, Paid] = Field(default_factory=dict)  # What is paid once, because it is cached
    candidates: int
    failed: int
    cache_hits: int  # Proposals that were known already
    resumed: int  # Trials that an earlier process had measured
    busy_seconds: float  # Of all workers
    workers: int  # Trials at once
    finalists: ModelsSpent | None = None
    reconstruction: ModelsSpent | None = None


class SearchResult(Record):
    """What a finished search found; ``front`` has the best first objective first."""

    FILE: ClassVar[str] = "result.json"
    command: str
    objectives: tuple[str, ...]
    teacher: Teacher
    corpus: Corpus
    budget: BudgetRange
    precision: str
    front: tuple[FrontMember, ...]
    baselines: tuple[Baseline, ...] = ()
    hypervolume: tuple[HypervolumePoint, ...] = ()
    spent: Spent
    winners: tuple[Winner, ...] = ()

    @property
    def best(self) -> FrontMember:
        """Winner 0."""
        return next(member for member in self.front if member.winner == 0)

    @property
    def quantity(self) -> str:
        """The cost that the front is spread over."""
        return next((name for name in self.objectives if name in QUANTITIES), self.budget.quantity)

    def ruin_of(self, member: FrontMember) -> float | None:
        """How many times the teacher's perplexity a model is at where that is too many for it to write anything.

        Such a model writes noise until it is trained; None for any other.
        """
        mine, whole = member.final.held_out_perplexity, self.teacher.held_out_perplexity
        ratio = mine / whole if mine is not None and whole else None
        return ratio if ratio is not None and ratio > RUINED_RATIO else None

    def winner_of(self, member: FrontMember) -> Winner | None:
        """The exported model of a member of the front; None where it was not exported."""
        return None if member.winner is None else self.winners[member.winner]


class Phases(Record):
    """The time and the once-paid costs of all processes of a run."""

    FILE: ClassVar[str] = "phases.json"
    processes: int = 0  # How many have worked on it
    seconds: dict[str, float] = Field(default_factory=dict)  # By phase, in the order they were first run
    paid: dict[str, Paid] = Field(default_factory=dict)  # Costs that no later process has again
    # Seconds of the search phase when each generation was closed for the first time
    generations: dict[int, float] = Field(default_factory=dict)


class SearchInputsRecord(Record):
    """Digests of what a search reads: they must be the same for a run to be continued."""

    FILE: ClassVar[str] = "inputs.json"
    teacher: str
    space: str
    calibration_tokens: str
    train_tokens: str
    held_out_tokens: str
    other_tokens: str | None = None
    budget: tuple[str, int, int]
    precision: str
    device: str


class SearchRecords(Part):
    """A search's run folder, read."""

    folder: Path  # The run folder
    run: RunRecord  # What it was started with
    trials: tuple[Trial, ...] = Field(repr=False)  # In the order they were finished
    result: SearchResult | None = None  # None while the run has not finished


def read_search(folder: Path) -> SearchRecords:
    """Read a search's run folder as far as it goes."""
    if not (folder / RunRecord.FILE).is_file():
        raise UserError(f"{folder} holds no search: give the folder of one (slm-ray search)")
    run = read_record(folder, RunRecord)
    if run.stage != "search":
        raise UserError(f"{folder} is a run of `slm-ray {run.stage}`, not of a search: give the folder of a search")
    trials = tuple(read_lines(folder / Trial.FILE, Trial))
    return SearchRecords(folder=folder, run=run, trials=trials, result=find_record(folder, SearchResult))
