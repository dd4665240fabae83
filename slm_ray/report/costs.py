"""What runs cost: time, FLOPs and energy of search, capture, training and evaluation, each once, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_seconds
from slm_ray.records.files import read_json
from slm_ray.report.content import Section, Table
from slm_ray.report.evaluation import EvaluationRun
from slm_ray.report.proxies import ProxyRun
from slm_ray.report.reading import RunRecords
from slm_ray.report.search import SearchRun, phases
from slm_ray.report.text import MISSING, energy_text, flops_text
from slm_ray.report.training import TrainingRun

_UNKNOWN, _ABOVE = "not known", "counted above"
_LEAD = (
    "Everything that was spent, each part once. Time is that of the stage's clock, of training that of its steps. "
    "Energy is shown where it was measured; a sum with parts that are not known is a lower bound."
)


@dataclass(frozen=True)
class Cost:
    """One part of what was spent; None is what is not known."""

    what: str  # The part
    seconds: float | None = None  # Its time; None where another part's time holds it
    flops: float | None = None  # Its FLOPs
    joules: float | None = None  # Its energy
    run: str = ""  # The run it belongs to; empty on the page of one run
    in_other: bool = False  # Its time and energy are part of another row's


def costs_of(run: RunRecords) -> list[Cost]:
    """What a run cost."""
    if isinstance(run, SearchRun):
        return _search_costs(run)
    if isinstance(run, TrainingRun):
        return _training_costs(run)
    if isinstance(run, EvaluationRun):
        return [Cost("evaluation", run.result.spent.seconds)] if run.result.spent else []
    return _proxies_costs(run) if isinstance(run, ProxyRun) else []


def _search_costs(run: SearchRun) -> list[Cost]:
    """A search's own, and its finalists' training by itself."""
    seconds, spent = dict(phases(run)), run.result.spent if run.result else None
    trained = sum(value for name, value in seconds.items() if "finalist" in name)
    finalists = spent.finalists.flops if spent and spent.finalists else 0.0
    own = Cost(
        "search", sum(seconds.values()) - trained if seconds else None, spent.flops - finalists if spent else None
    )
    return [own, *([Cost("short training of finalists", trained, finalists)] if finalists else [])]


def _training_costs(run: TrainingRun) -> list[Cost]:
    """The training of each model, and its teacher's part."""
    rows = []
    for model in run.measured:
        last = model.evaluations[-1]
        rows.append(Cost(f"training of {model.name}", last.seconds, last.flops.own, model.joules))
        if last.flops.teacher:
            rows.append(Cost(f"teacher beside {model.name}", None, last.flops.teacher, in_other=True))
    return rows


def _proxies_costs(run: ProxyRun) -> list[Cost]:
    if not run.candidates:
        return []
    values = [value for one in run.candidates for value in one.proxies.values()]
    shared = _sum(one.cost.shared_flops for one in run.report.proxies) if run.report else 0.0
    return [
        Cost("proxies of all candidates", _sum(v.seconds for v in values), _sum(v.flops for v in values) + shared),
        Cost("short training of all candidates", _sum(c.seconds for c in run.candidates),
             _sum(c.flops for c in run.candidates)),
    ]  # fmt: skip


def capture_costs(store: Path) -> list[Cost]:
    """What the capture of a logit store cost; nothing where there is none."""
    path = store / "manifest.json"
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no mapping: restore it")
    return [Cost("capture of logits", found.get("seconds"), found.get("flops"))]


def earlier_costs(trainings: Iterable[tuple[str, TrainingRun]], on_page: Sequence[Cost]) -> list[Cost]:
    """Searches and captures that models on the page name, and that are not on the page themselves; each once."""
    shown = [cost.flops for cost in on_page if cost.flops is not None]
    rows: list[Cost] = []
    for name, run in trainings:
        for model in run.models:
            for what, flops in (("search", model.search_flops), ("capture of logits", model.capture_flops)):
                if flops and not any(abs(flops - other) <= 1e-6 * flops for other in shown):
                    shown.append(flops)
                    rows.append(Cost(f"{what} before {model.name}, elsewhere", None, flops, run=name))
    return rows


def _sum(values: Iterable[float | None]) -> float:
    return sum(value or 0.0 for value in values)


def _at_least(text: str, values: Sequence[float | None]) -> str:
    return f"at least {text}" if None in values else text


def _total(rows: Sequence[Cost]) -> tuple[str, ...]:
    own = [row for row in rows if not row.in_other]
    seconds, joules, flops = [r.seconds for r in own], [r.joules for r in own], [r.flops for r in rows]
    energy = _at_least(energy_text(_sum(joules)), joules) if any(joules) else _UNKNOWN
    time, spent = _at_least(format_seconds(_sum(seconds)), seconds), _at_least(flops_text(_sum(flops)), flops)
    return "", "in all", time, spent, energy


def cost_table(rows: Sequence[Cost]) -> Table:
    """A row per part, and their sum."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        unknown = _ABOVE if row.in_other else _UNKNOWN
        lines.append((
            row.run or MISSING, row.what, unknown if row.seconds is None else format_seconds(row.seconds),
            _UNKNOWN if row.flops is None else flops_text(row.flops),
            unknown if row.joules is None else energy_text(row.joules),
        ))  # fmt: skip
    marked = (len(lines),) if len(rows) > 1 else ()
    lines += [_total(rows)] if len(rows) > 1 else []
    table = Table("Cost and energy", ("run", "what", "time", "FLOPs", "energy"), tuple(lines), marked)
    if any(row.run for row in rows):
        return table
    return replace(table, header=table.header[1:], rows=tuple(line[1:] for line in lines))


def cost_section(rows: Sequence[Cost]) -> Section:
    """The table with how to read it; the last row is the sum."""
    return Section("Cost and energy", [cost_table(rows)] if rows else [], _LEAD)
