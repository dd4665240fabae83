"""The end of a search: the front and its baselines on held-out text, which members win, winners as model folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.precision import export_dtype
from slm_ray.models.starts import first_n
from slm_ray.models.teachers import quiet_transformers
from slm_ray.models.vocabulary import renumbered_generation
from slm_ray.records.base import find_record, write_record
from slm_ray.records.budget import Budget
from slm_ray.records.files import whole_folder, write_text
from slm_ray.records.lineage import CARD_FILE, Lineage
from slm_ray.records.search import (
    Baseline,
    FrontMember,
    MeasuredModel,
    Measurement,
    ModelCost,
    ModelShape,
    Reconstruction,
    SearchResult,
    ShortTraining,
    Teacher,
    Trial,
    Winner,
)
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.records.training import TeacherSource
from slm_ray.report.cards import winner_card
from slm_ray.report.search import SearchRun
from slm_ray.report.search_report import winner_needs_code
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings, measure_in_full
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.pareto import front_of
from slm_ray.search.spending import HELD_OUT, OTHER_TEXT, PhaseRecord, pay_text
from slm_ray.search.stack import GenomeStack
from slm_ray.search.unit_scores import Ranking

_FIELDS = {HELD_OUT: "held_out", OTHER_TEXT: "other"}  # what perplexities on a text are called in records
M = TypeVar("M", bound=MeasuredModel)


@dataclass(frozen=True)
class Chosen(Generic[M]):
    """A sub-network of a result, with its record."""

    spec: SubnetSpec
    record: M


def spec_of(stack: GenomeStack, trial: Trial) -> SubnetSpec:
    """The sub-network of a trial."""
    return stack.decode(stack.from_text(trial.genes))


def pick_spread(costs: Sequence[int], count: int) -> list[int]:
    """The first member, then those nearest to sizes spread evenly from its own down to the smallest."""
    if not costs:
        return []
    wanted = np.linspace(costs[0], min(costs), count) if count > 1 else [costs[0]]
    picked: list[int] = []
    for cost in wanted:
        free = [index for index in range(len(costs)) if index not in picked]
        if free:
            picked.append(min(free, key=lambda index: (abs(costs[index] - cost), index)))
    return picked


def pick_finalists(costs: Sequence[int], winners: int, count: int) -> list[int]:
    """Members of a front to train shortly: those that would win without training, then sizes spread over the front."""
    picked = pick_spread(costs, winners)
    others = [position for position in [*pick_spread(costs, count), *range(len(costs))] if position not in picked]
    return [*picked, *dict.fromkeys(others)][:count]


def pick_trained(costs: Sequence[int], trained: Mapping[int, ShortTraining], count: int) -> list[int]:
    """Winners by their loss after training: the best first, then smaller ones that no finalist beats in both.

    Where fewer than ``count`` are unbeaten, the next best follow.
    """
    losses = {position: found.loss for position, found in trained.items() if found.loss is not None}
    if not losses:
        reason = next((found.error for found in trained.values() if found.error), "nothing was trained")
        raise UserError(
            f"every finalist's training failed, the first with: {reason}; search without --finalists, or with others"
        )
    order = sorted(losses, key=lambda position: (losses[position], position))
    rows = np.array([[losses[position], costs[position]] for position in order], dtype=np.float64)
    unbeaten = [order[row] for row in front_of(rows)]
    picked = [unbeaten[index] for index in pick_spread([costs[position] for position in unbeaten], count)]
    return [*picked, *(position for position in order if position not in picked)][:count]


def sizes_of(inputs: SearchInputs, spec: SubnetSpec, sequence_length: int) -> dict[str, Any]:
    """The fields ``architecture`` and ``cost`` of a sub-network's record."""
    architecture = spec.architecture_in(inputs.architecture)
    return {
        "architecture": ModelShape.of(architecture, [layer.source for layer in spec.layers]),
        "cost": ModelCost.of(architecture, sequence_length),
    }


def baselines_at(
    inputs: SearchInputs, genome: Genome, ranking: Ranking, cost: int, sequence_length: int, seed: int
) -> list[Chosen[Baseline]]:
    """First-n layers, a random selection and a one-shot importance ranking, at or below the winner's cost.

    ``genome``: The winner's; all have its vocabulary.
    """
    quantity, kept = inputs.budget.quantity, genome.vocabulary
    found: dict[str, SubnetSpec] = {}
    try:
        whole = first_n(genome.teacher, Budget(quantity, 0, cost), sequence_length, cost)
        found["first-n"] = dataclasses.replace(whole, vocabulary=kept)
    except UserError:
        pass  # not even one layer fits: there is no such baseline at this size
    least, _ = genome.reach(quantity, sequence_length)
    below = Budget(quantity, least, cost)
    found["random"] = genome.decode(genome.random(np.random.default_rng(seed), below, sequence_length, cost))
    if ranking.one_shot is not None and "taylor" in inputs.space.orders():
        scores = dict(ranking.others) | {"taylor": ranking.one_shot}
        orders = {order: scores[order] for order in inputs.space.orders() if order in scores}
        once = Genome(inputs.space, inputs.architecture, orders, guide=ranking.one_shot, vocabulary=kept)
        found["importance"] = once.decode(once.ranked(cost, below, sequence_length))
    return [
        Chosen(spec, Baseline(name=name, **sizes_of(inputs, spec, sequence_length))) for name, spec in found.items()
    ]


def front_members(
    stack: GenomeStack, front: Sequence[Trial], winners: Sequence[int], trained: Mapping[int, ShortTraining]
) -> list[Chosen[FrontMember]]:
    """The front as results hold it, without held-out figures yet."""
    return [
        Chosen(
            spec_of(stack, trial),
            FrontMember(
                trial=trial.trial, digest=trial.digest, architecture=trial.architecture, cost=trial.cost,
                winner=winners.index(position) if position in winners else None, objectives=trial.objectives or {},
                calibration_perplexity=trial.perplexity, calibration_stderr=trial.stderr,
                short_training=trained.get(position),
            ),
        )
        for position, trial in enumerate(front)
    ]  # fmt: skip


def teacher_model(inputs: SearchInputs, sequence_length: int) -> Chosen[Teacher]:
    """The teacher as results hold it."""
    spec, teacher = full_subnet(inputs.architecture), inputs.teacher
    record = Teacher(
        name=teacher.name, family=inputs.architecture.structure.family, digest=teacher.digest, licence=teacher.licence,
        **sizes_of(inputs, spec, sequence_length),
    )  # fmt: skip
    return Chosen(spec, record)


class TextMeasurement:
    """Measures chosen models on texts that decide nothing, and notes what it cost."""

    def __init__(
        self, config: SearchConfig, workers: int, inputs: SearchInputs, phases: PhaseRecord, console: Console
    ) -> None:
        self._config, self._inputs, self._phases = config, inputs, phases
        self._console, self._workers = console, workers

    def measure(self, label: str, ids: NDArray[np.int32], chosen: Sequence[Chosen[Any]]) -> list[Any]:
        """The models' records with their perplexity on a text.

        ``ids``: ``[sequences, length]`` of it.
        """
        inputs, machine = self._inputs, self._config.machine
        progress = Progress(self._console, label, len(chosen), "models")
        found: dict[int, Measurement] = {}

        def on_done(number: int, measured: dict[str, Measurement]) -> None:
            found[number] = measured["perplexity"]
            progress.update(len(found))

        settings = EvaluatorSettings(
            teacher=inputs.teacher, precision=inputs.precision, ids=ids, threads=machine.threads,
            device=inputs.device, written=inputs.vocabularies.written(ids),
        )  # fmt: skip
        specs = {number: one.spec for number, one in enumerate(chosen)}
        measure_in_full(settings, specs, min(self._workers, len(chosen)), on_done)
        pay_text(self._phases, label, int(ids.size), [one.record.cost for one in chosen])
        return [one.record.with_measurement(_FIELDS[label], found[number]) for number, one in enumerate(chosen)]


class WinnerFolders:
    """The folders ``winners/0``, ``winners/1``, … of a run; each appears, and is replaced, whole."""

    def __init__(self, run: Path, dtype: str, command: str) -> None:
        """``dtype``: The type of the weights as ``--dtype`` has it. ``command``: The run's, for the lineage."""
        self._run, self._wanted, self._command = run, dtype, command

    def folder(self, number: int) -> Path:
        """Where a winner is."""
        return self._run / "winners" / str(number)

    def lineage(self, number: int) -> Lineage | None:
        """What is in a winner's folder; None where there is nothing yet."""
        return find_record(self.folder(number), Lineage)

    def dtype(self, inputs: SearchInputs) -> str:
        """The type of the weights: ``fp32``, ``bf16`` or ``fp16``."""
        return export_dtype(self._wanted, inputs.teacher.dtype)

    def put(
        self, inputs: SearchInputs, number: int, spec: SubnetSpec, genes: str, trial: int | None,
        student: Any = None, record: Reconstruction | None = None,
    ) -> None:  # fmt: skip
        """Save a model with its tokenizer and lineage, unless it is there already.

        ``trial``: None where nothing was measured yet. ``student``: The model where its weights were changed, as
        ``record`` says; else it is extracted.
        """
        there = self.lineage(number)
        if there is not None and there.genes == genes and (record is None or there.reconstruction == record):
            return
        teacher = inputs.teacher
        lineage = Lineage(
            teacher=TeacherSource(
                name=teacher.name, family=inputs.architecture.structure.family, digest=teacher.digest,
                licence=teacher.licence,
            ),
            trial=trial, genes=genes, space=inputs.space.to_json(), inputs=inputs.record(), command=self._command,
            reconstruction=record, spec=spec.to_json(),
        )  # fmt: skip
        with quiet_transformers(), whole_folder(self.folder(number)) as temporary:
            if student is None:
                student = extract(teacher.state(), teacher.config(), teacher.family(), spec)
            settings = teacher.generation_config()
            if settings is not None and spec.vocabulary is not None:
                settings = renumbered_generation(settings, spec.vocabulary)
            student.generation_config = settings or student.generation_config
            tokenizer = inputs.vocabularies.tokenizer(spec, teacher.tokenizer())
            save_student(student, temporary, tokenizer, self.dtype(inputs))
            write_record(temporary, lineage)

    def records(self, inputs: SearchInputs, members: Sequence[FrontMember]) -> tuple[Winner, ...]:
        """The exported models of a front's members, by number."""
        found = {member.winner: member.trial for member in members if member.winner is not None}
        return tuple(
            Winner(
                folder=f"winners/{number}", trial=found[number], dtype=self.dtype(inputs),
                num_bytes=sum(file.stat().st_size for file in self.folder(number).glob("*.safetensors")),
            )
            for number in sorted(found)
        )  # fmt: skip


def write_cards(run: Path, result: SearchResult, options: dict[str, Any]) -> None:
    """Write every winner's model card from the run's result."""
    found = SearchRun(run, (), options, {}, result.command, (), result)
    for member in result.front:
        if (winner := found.winner_of(member)) is not None:
            folder, needs_code = run / winner.folder, winner_needs_code(found, member)
            write_text(folder / CARD_FILE, winner_card(found, member, remote_code=needs_code, path=str(folder)))
