"""What runs cost: time, FLOPs and energy of search, capture, training and evaluation, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.units import format_seconds
from slm_ray.report.blocks import Rows, Section
from slm_ray.report.evaluation_records import EvaluationRecords
from slm_ray.report.matching import format_flops
from slm_ray.report.model import RunRecords
from slm_ray.report.records import items, mapping, number
from slm_ray.report.tables import Table, phases, without_empty_columns
from slm_ray.report.training import TrainingRecords
from slm_ray.report.wording import MISSING

_UNKNOWN, _JOULES_PER_KWH = "not known", 3.6e6
_LEAD = (
    "Everything that was spent, each part once. Time is that of the stage's clock, of training that of its steps. "
    "Energy is shown where it was measured; a sum with parts that are not known is a lower bound."
)


@dataclass(frozen=True)
class Cost:
    """One part of what was spent; None is what is not known.

    Attributes:
        run: The run it belongs to; empty on the page of one run.
        what: The part.
        seconds: Its time; None where another part's time holds it.
        flops: Its FLOPs.
        joules: Its energy.
        in_other: Its time and energy are part of another row's.
    """

    what: str
    seconds: float | None = None
    flops: float | None = None
    joules: float | None = None
    run: str = ""
    in_other: bool = False


def search_costs(run: RunRecords, name: str = "") -> list[Cost]:
    """What a search cost; its finalists' training, and that between its steps, by themselves."""
    finalists = number(mapping(run.spent.get("finalists")).get("flops"))
    whole = number(run.spent.get("flops"))
    seconds = dict(phases(run))
    trained = sum(value for key, value in seconds.items() if "finalist" in key)
    between = [mapping(step.get("training")) for step in items(run.spent.get("steps"))]
    step_seconds, step_flops = (sum(number(one.get(key)) or 0.0 for one in between) for key in ("seconds", "flops"))
    rest = sum(seconds.values()) - trained - step_seconds
    own = None if whole is None else whole - (finalists or 0.0) - step_flops
    rows = [Cost("search", rest if seconds else None, own, run=name)]
    rows += [Cost("training between steps", step_seconds, step_flops, run=name)] if between else []
    return rows + ([Cost("short training of finalists", trained, finalists, run=name)] if finalists else [])


def capture_costs(manifest: Mapping[str, Any], name: str = "") -> list[Cost]:
    """What the capture of a logit store cost."""
    if not manifest:
        return []
    return [Cost("capture of logits", number(manifest.get("seconds")), number(manifest.get("flops")), run=name)]


def training_costs(run: TrainingRecords, name: str = "") -> list[Cost]:
    """What the models' training cost, and their teacher's part in it."""
    rows = []
    for model in run.models:
        if not model.evaluations:
            continue
        last = model.evaluations[-1]
        rows.append(Cost(f"training of {model.name}", last.seconds, last.own_flops, model.joules, name))
        if last.teacher_flops:
            rows.append(Cost(f"teacher beside {model.name}", None, last.teacher_flops, None, name, in_other=True))
    return rows


def summed_training_costs(run: TrainingRecords, name: str = "") -> list[Cost]:
    """The same in a row for all models of a run and one for their teacher, for a page of many runs."""
    rows = training_costs(run, name)
    own, teacher = [row for row in rows if not row.in_other], [row for row in rows if row.in_other]
    if len(own) < 2:
        return rows
    joules = [row.joules for row in own]
    known = None if any(value is None for value in joules) else sum(value or 0.0 for value in joules)
    summed = [Cost(f"training of {len(own)} models", _total([r.seconds for r in own])[0],
                   _total([r.flops for r in own])[0], known, name)]  # fmt: skip
    if teacher:
        flops = _total([row.flops for row in teacher])[0]
        summed.append(Cost(f"teacher beside {len(teacher)} of them", None, flops, None, name, in_other=True))
    return summed


def earlier_costs(trainings: Iterable[tuple[str, TrainingRecords]], on_page: Sequence[Cost]) -> list[Cost]:
    """Searches and captures that models on the page name, and that are not on the page themselves; each once."""
    shown = {cost.flops for cost in on_page}
    rows: list[Cost] = []
    for name, run in trainings:
        for model in run.models:
            for what, flops in (("search", model.search_flops), ("capture of logits", model.capture_flops)):
                if flops and not any(_near(flops, other) for other in shown):
                    shown.add(flops)
                    rows.append(Cost(f"{what} before {model.name}, elsewhere", None, flops, None, name))
    return rows


def _near(flops: float, other: float | None) -> bool:
    return other is not None and abs(flops - other) <= 1e-6 * flops


def evaluation_costs(run: EvaluationRecords, name: str = "") -> list[Cost]:
    """What an evaluation took."""
    return [Cost("evaluation", number(run.spent.get("seconds")), None, None, name)] if run.spent else []


def _total(values: Sequence[float | None]) -> tuple[float, bool]:
    return sum(value or 0.0 for value in values), any(value is None for value in values)


def _at_least(text: str, unsure: bool) -> str:
    return f"at least {text}" if unsure else text


def cost_total(rows: Sequence[Cost]) -> tuple[str, str, str, str, str]:
    """The row of sums; it says "at least" where a part is not known."""
    own = [row for row in rows if not row.in_other]
    seconds, flops, joules = (_total(values) for values in (
        [row.seconds for row in own], [row.flops for row in rows], [row.joules for row in own]))  # fmt: skip
    energy = _at_least(f"{joules[0] / _JOULES_PER_KWH:.3g} kWh", joules[1]) if joules[0] else _UNKNOWN
    return (
        "", "in all", _at_least(format_seconds(seconds[0]), seconds[1]),
        _at_least(format_flops(flops[0]), flops[1]), energy,
    )  # fmt: skip


def whole_cost_table(rows: Sequence[Cost]) -> Table:
    """A row per part, and their sum."""

    def shown(value: float | None, text: str, row: Cost) -> str:
        return text if value is not None else "counted above" if row.in_other else _UNKNOWN

    lines = [
        (
            row.run or MISSING, row.what, shown(row.seconds, format_seconds(row.seconds or 0.0), row),
            _UNKNOWN if row.flops is None else format_flops(row.flops),
            shown(row.joules, f"{(row.joules or 0.0) / _JOULES_PER_KWH:.3g} kWh", row),
        )
        for row in rows
    ]  # fmt: skip
    if len(rows) > 1:
        lines.append(cost_total(rows))
    table = Table("Cost and energy", ("run", "what", "time", "FLOPs", "energy"), tuple(lines))
    if any(row.run for row in rows):
        return table
    return without_empty_columns(Table(table.title, table.header[1:], tuple(line[1:] for line in table.rows)))


def cost_section(rows: Sequence[Cost]) -> Section:
    """The table with what is to be said of it; the last row is the sum."""
    table = whole_cost_table(rows)
    marked = [len(table.rows) - 1] if len(rows) > 1 else []
    return Section(table.title, [Rows(table, marked=marked)] if rows else [], _LEAD)
