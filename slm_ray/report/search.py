"""The report of a search: its records, its tables, its sections. Pictures are computed in ``search_charts``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.records.budget import QUANTITIES
from slm_ray.records.search import (
    Baseline,
    BudgetRange,
    FrontMember,
    MeasuredModel,
    Perplexities,
    SearchResult,
    Teacher,
    Trial,
    Winner,
)
from slm_ray.report.content import Table
from slm_ray.report.reading import RunReader, RunRecords
from slm_ray.report.text import (
    MISSING,
    WITHIN,
    count_text,
    differs,
    fixed,
    perplexity_text,
    ratio_text,
    share_text,
    sizes_text,
)

FRONT_PICTURE, FRONT_TABLE = "front.png", "front.csv"
_SAME_SIZE = 0.02
_SIZES = ("source_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_CALIBRATION, _HELD_OUT = "calibration perplexity", "held-out perplexity (±\u00a0s.e.)"
_FITTED = "held-out, weights fitted (±\u00a0s.e.)"
_PHASES = {"corpus": "text", "final": "final measurement"}


@dataclass(frozen=True)
class SearchRun(RunRecords):
    """What a search's folder says, finished or not."""

    trials: tuple[Trial, ...]  # all candidates, failed ones too
    result: SearchResult | None  # None for a run that has not finished

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self.result is not None

    @property
    def objectives(self) -> tuple[str, ...]:
        """What was searched on."""
        given = self.options.get("objectives")
        named = given.split(",") if isinstance(given, str) else given or ("perplexity", "params")
        return self.result.objectives if self.result else tuple(named)

    @property
    def quantity(self) -> str:
        """The cost that the front is spread over: ``params``, ``flops`` or ``kv_bytes``."""
        return next((name for name in self.objectives if name in QUANTITIES), "params")

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; None until the run has finished."""
        return self.result.teacher if self.result else None

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """What the winner is compared with."""
        return self.result.baselines if self.result else ()

    @property
    def budget(self) -> BudgetRange | None:
        """The range that every candidate lies in."""
        return self.result.budget if self.result else None

    @cached_property
    def candidates(self) -> tuple[Trial, ...]:
        """Those that were measured."""
        return tuple(trial for trial in self.trials if trial.status == "done")

    @cached_property
    def front(self) -> tuple[FrontMember, ...]:
        """The front by size, the smallest first; a provisional one in a run that has not finished."""
        members = self.result.front if self.result else provisional_front(self.candidates, self.quantity)
        return tuple(sorted(members, key=lambda member: member.cost[self.quantity]))

    @cached_property
    def best(self) -> FrontMember | None:
        """Winner 0; without winners, the front's member of least perplexity."""

        def rank(member: FrontMember) -> tuple[float, float]:
            numbered = math.inf if member.winner is None else member.winner
            return numbered, math.inf if member.perplexity is None else member.perplexity

        return min(self.front, key=rank, default=None)

    def winner_of(self, member: FrontMember) -> Winner | None:
        """The exported model of a member of the front."""
        if self.result is None or member.winner is None:
            return None
        return next((winner for winner in self.result.winners if winner.trial == member.trial), None)

    def reference(self, member: Perplexities) -> float | None:
        """The teacher's perplexity on the text that a model's shown perplexity was measured on."""
        if self.teacher is None:
            return None
        held_out = member.held_out_perplexity is not None
        return self.teacher.held_out_perplexity if held_out else self.teacher.calibration_perplexity

    def ruined(self, member: FrontMember) -> float | None:
        """How many times the teacher's perplexity a model has with its exported weights, where it is noise."""
        return self.result.ruin_of(member) if self.result else None


def provisional_front(candidates: Sequence[Trial], quantity: str) -> list[FrontMember]:
    """The candidates that no other beats in both size and perplexity, those stopped early left out."""
    measured = [trial for trial in candidates if trial.perplexity is not None and trial.decided != "dominated"]
    front: list[FrontMember] = []
    best = math.inf
    for trial in sorted(measured, key=lambda one: (one.cost[quantity], one.perplexity)):
        if trial.perplexity is not None and trial.perplexity < best:
            best = trial.perplexity
            front.append(FrontMember(
                architecture=trial.architecture, cost=trial.cost, calibration_perplexity=trial.perplexity,
                calibration_stderr=trial.stderr, trial=trial.trial, digest=trial.digest,
                objectives=trial.objectives or {},
            ))  # fmt: skip
    return front


def load_search(folder: Path) -> SearchRun:
    """Read a search's folder as far as it goes."""
    reader = RunReader(folder)
    trials, result = reader.lines(Trial), reader.record(SearchResult)
    if result is None:
        reader.notes.append(
            f"This run has not finished: its {len(trials)} trials are shown, with a provisional front on the "
            "calibration text; continue it with --resume"
        )
    return SearchRun(**reader.common, trials=trials, result=result)


def comparisons(run: SearchRun) -> list[tuple[Baseline, float, str]]:
    """Every baseline with its perplexity over the best model's (of the teacher's weights), and a verdict in words."""
    found = []
    for other in run.baselines:
        mine, its = run.best.held_out_perplexity if run.best else None, other.held_out_perplexity
        if run.best is None or mine is None or its is None:
            continue
        ratio, clear = its / mine, differs(mine, run.best.held_out_stderr, its, other.held_out_stderr)
        verdict = f"{ratio_text(max(ratio, 1 / ratio), 1.0)} {'worse' if ratio >= 1 else 'better'}"
        found.append((other, ratio, WITHIN if clear is False else verdict))
    return found


def best_name(run: SearchRun) -> str:
    """What to call the best model: ``winner 0``, or ``best so far`` in a run without winners."""
    if run.best is not None and run.best.winner is not None:
        return f"winner {run.best.winner}"
    return "best of the front" if run.finished else "best so far"


def beside(run: SearchRun, other: Baseline) -> str:
    """A baseline's name with its size: the best model's own, or what it is."""
    same = run.best is not None and abs(other.params / run.best.params - 1) <= _SAME_SIZE
    return f"{other.name}, {'same size' if same else count_text(other.params)}"


def fitted_on(member: FrontMember) -> str:
    """The tokens that a model's weights were fitted on; empty where they were not."""
    if member.fitted is None:
        return ""
    written = member.fitted.written_tokens
    own = f"{written:,} tokens that the teacher wrote and " if written else ""
    return f"{own}{member.fitted.tokens - written:,} train tokens"


def phases(run: SearchRun) -> list[tuple[str, float]]:
    """The phases of the run and the seconds each took, in order."""
    spent = run.result.spent.seconds if run.result else {}
    return [(_PHASES.get(name, name), seconds) for name, seconds in spent.items()]


def candidates_text(run: SearchRun) -> str:
    """The number of candidates that were tried, failed, and were proposed again."""
    if run.result is None:
        failed = len(run.trials) - len(run.candidates)
        return f"{len(run.trials):,} candidates ({failed:,} failed)"
    spent = run.result.spent
    again = f", {spent.cache_hits:,} proposed again and not paid for twice" if spent.cache_hits else ""
    return f"{spent.candidates:,} candidates ({spent.failed:,} failed{again})"


def budget_text(run: SearchRun) -> str | None:
    """The budget with its unit, such as ``53.8M to 94.2M parameters``."""
    if run.budget is None:
        return None
    low, high = format_count(run.budget.low), format_count(run.budget.high)
    return f"{low} to {high} {QUANTITIES[run.budget.quantity]}"


def _sizes(model: MeasuredModel, teacher: Teacher | None) -> tuple[str, ...]:
    shape = model.architecture
    of = f" of {teacher.architecture.num_layers}" if teacher else ""
    heads, neurons = sizes_text(shape.num_attention_heads), sizes_text(shape.intermediate_size)
    return f"{shape.num_layers}{of}", str(shape.hidden_size), heads, neurons, f"{shape.vocab_size:,}"


def _weights(run: SearchRun, member: FrontMember) -> str:
    winner = run.winner_of(member)
    return MISSING if winner is None else f"{format_bytes(winner.num_bytes)}, {winner.dtype}"


def front_table(run: SearchRun) -> Table:
    """One row per model of the front, the largest first; winners are marked."""
    header = (
        "winner", "trial", "parameters", "of teacher", _CALIBRATION, _HELD_OUT, "× teacher", _FITTED, "layers", "width",
        "heads", "neurons", "vocabulary", "weights",
    )  # fmt: skip
    whole = run.teacher.params if run.teacher else None
    members = tuple(reversed(run.front))
    rows = tuple(
        (
            MISSING if member.winner is None else str(member.winner), str(member.trial), count_text(member.params),
            share_text(member.params, whole), perplexity_text(member.calibration_perplexity, member.calibration_stderr),
            perplexity_text(member.held_out_perplexity, member.held_out_stderr),
            ratio_text(member.perplexity, run.reference(member)), _fitted_text(member), *_sizes(member, run.teacher),
            _weights(run, member),
        )
        for member in members
    )  # fmt: skip
    marked = tuple(place for place, member in enumerate(members) if member.winner is not None)
    return Table("The front" if run.finished else "The front so far", header, rows, marked).compact()


def _fitted_text(member: FrontMember) -> str:
    after = member.fitted.after if member.fitted else None
    return perplexity_text(after.held_out_perplexity, after.held_out_stderr) if after else MISSING


def baseline_table(run: SearchRun) -> Table:
    """The teacher, the best model and the baselines on the same held-out text; winners on another text, if any."""
    teacher, rows = run.teacher, []
    whole, own = (teacher.params, teacher.held_out_perplexity) if teacher else (None, None)
    other = teacher.other_perplexity if teacher else None

    def add(name: str, params: int, on: Perplexities, verdict: str = MISSING) -> None:
        rows.append((
            name, count_text(params), share_text(params, whole),
            perplexity_text(on.held_out_perplexity, on.held_out_stderr), ratio_text(on.held_out_perplexity, own),
            verdict, perplexity_text(on.other_perplexity, on.other_stderr), ratio_text(on.other_perplexity, other),
        ))  # fmt: skip

    if teacher:
        add(teacher.name, teacher.params, teacher)
    winners = [m for m in reversed(run.front) if m is not run.best and m.other_perplexity is not None]
    for member in [run.best, *winners] if run.best else []:
        name = best_name(run) if member is run.best else called(member)
        add(name, member.params, member)
        if member.fitted:
            add(f"{name}, weights fitted on {fitted_on(member)}", member.params, member.fitted.after)
    verdicts = {model.name: verdict for model, _, verdict in comparisons(run)}
    for one in run.baselines:
        add(one.name, one.params, one, verdicts.get(one.name, MISSING))
    there = other_text_name(run)
    header = (
        "model", "parameters", "of teacher", _HELD_OUT, "× teacher", "against the winner", there, f"× teacher, {there}",
    )  # fmt: skip
    return Table("Against the teacher and the baselines", header, tuple(rows)).compact()


def called(member: FrontMember) -> str:
    """A member of the front as pictures and tables call it."""
    return member.name if member.winner is None else f"winner {member.winner} ({member.name})"


def other_text_name(run: SearchRun) -> str:
    """The other corpus with its tokens."""
    other = run.result.corpus.other if run.result else None
    return f"{other.name}, {other.tokens:,} tokens" if other else "another corpus"


def cost_table(run: SearchRun) -> Table:
    """What was spent: time by phase, candidates, tokens and FLOPs."""
    rows = [(name, format_seconds(seconds)) for name, seconds in phases(run)]
    if rows:
        rows.append(("time in all", format_seconds(sum(seconds for _, seconds in phases(run)))))
    rows.append(("candidates", candidates_text(run)))
    if run.result:
        spent = run.result.spent
        for name, value in (("tokens through a model", spent.forward_tokens), ("FLOPs", spent.flops)):
            rows.append((name, format_count(value) if value < 1e15 else f"{value:.2g}"))
    rows.append(("energy", "not measured"))
    return Table("What was spent", ("what", "how much"), tuple(rows))


def progress_table(run: SearchRun) -> Table:
    """The hypervolume of the front against evaluations and seconds."""
    points = run.result.hypervolume if run.result else ()
    rows = tuple((f"{p.evaluations:,}", format_seconds(p.seconds), f"{p.value:.4g}") for p in points)
    return Table("Search progress", ("evaluations", "time", "hypervolume"), rows)


def finalists_table(run: SearchRun) -> Table:
    """The finalists before and after their short training."""
    found = [(member, member.short_training) for member in run.front]
    rows = tuple(
        (member.name, count_text(member.params), fixed(short.loss), fixed(short.first_loss), format_count(short.tokens))
        for member, short in found
        if short is not None and short.loss is not None
    )
    return Table("Finalists", ("model", "parameters", "loss after", "loss before", "tokens"), rows)


def front_rows(run: SearchRun) -> list[dict[str, Any]]:
    """The front's figures with full precision, for machines; lists are texts separated by spaces."""
    rows = []
    for m in run.front:
        shape, reference = m.architecture, run.reference(m)
        rows.append({
            "winner": m.winner, "trial": m.trial, "digest": m.digest, "params": m.params,
            "share_of_teacher": m.params / run.teacher.params if run.teacher else None,
            "flops_per_token": m.cost.flops, "kv_bytes_per_token": m.cost.kv_bytes,
            "calibration_perplexity": m.calibration_perplexity, "held_out_perplexity": m.held_out_perplexity,
            "held_out_stderr": m.held_out_stderr,
            "ratio_to_teacher": m.perplexity / reference if m.perplexity is not None and reference else None,
            "num_layers": shape.num_layers, "hidden_size": shape.hidden_size,
            **{name: " ".join(map(str, getattr(shape, name))) for name in _SIZES},
        })  # fmt: skip
    return rows


def front_csv(run: SearchRun) -> str:
    """The front as comma-separated values."""
    buffer, rows = io.StringIO(), front_rows(run)
    writer = csv.DictWriter(buffer, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
