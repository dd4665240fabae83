"""Several objectives over any fields: pymoo's NSGA-II (Deb et al. 2002) asks for points, the sweep runs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json, write_json
from slm_ray.studies.launching import DONE
from slm_ray.studies.model import Range, SearchPlan, SweepFile, Values
from slm_ray.studies.points import Point, make_points
from slm_ray.studies.rows import point_rows, state_of

if TYPE_CHECKING:
    from slm_ray.studies.run import SweepRun

_FAILED = 1e12  # the objectives of a point that failed: pymoo keeps a NaN in its front for ever
ASKED_FILE = "asked.jsonl"


def _variable(span: Range) -> Any:
    from pymoo.core.variable import Choice, Integer, Real

    if span.choices:
        return Choice(options=list(span.choices))
    if span.log:
        return Real(bounds=(math.log(span.low), math.log(span.high)))
    if span.whole:
        return Integer(bounds=(int(span.low), int(span.high)))
    return Real(bounds=(span.low, span.high))


def _value(span: Range, gene: Any) -> Any:
    if span.choices:
        return gene.item() if isinstance(gene, np.generic) else gene
    value = math.exp(float(gene)) if span.log else float(gene)
    return round(value) if span.whole else float(f"{value:.4g}")


def middle_points(sweep: SweepFile) -> list[Point]:
    """The point in the middle of every range: what a dry run shows of a search."""
    from slm_ray.studies.plan_search import value_at

    plan = _plan(sweep)
    values = {name: value_at(spans[""], 0.5) for name, spans in plan.ranges.items()}
    return make_points(sweep, [(group.name, group.fixed | values) for group in sweep.groups])


def known_points(sweep: SweepFile, run: Path) -> list[Point]:
    """The points that a search has asked for so far."""
    path = run / ASKED_FILE
    asked = read_json(path) if path.is_file() else []
    return [
        make_points(sweep, [(sweep.groups[0].name, values)], first=number)[0] for number, values in enumerate(asked)
    ]


def _plan(sweep: SweepFile) -> SearchPlan:
    if sweep.search is None or any(group.axes for group in sweep.groups) or len(sweep.groups) != 1:
        raise UserError("search.algorithm nsga2 searches alone: leave out grid, zip, points and groups")
    return sweep.search


def evolve(sweep: SweepFile, run: SweepRun) -> list[Point]:
    """Run a search of several objectives, a generation at a time.

    What it asks for depends on the seed and on the objectives alone: a resumed search asks for the same points again,
    and those that are done are not run again.

    Args:
        sweep: The sweep.
        run: What runs points.

    Returns:
        Every point that was asked for.

    Raises:
        UserError: An objective is no column of the table.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination

    plan = _plan(sweep)
    spans = {name: found[""] for name, found in plan.ranges.items()}
    problem = Problem(vars={name: _variable(span) for name, span in spans.items()}, n_obj=len(plan.objectives))
    algorithm = NSGA2(
        pop_size=plan.population, sampling=MixedVariableSampling(),
        mating=MixedVariableMating(eliminate_duplicates=MixedVariableDuplicateElimination()),
        eliminate_duplicates=MixedVariableDuplicateElimination(),
    )  # fmt: skip
    algorithm.setup(problem, termination=NoTermination(), seed=plan.seed, verbose=False)
    points: list[Point] = []
    asked_before: list[Values] = []
    for _ in range(-(-plan.tries // plan.population)):
        asked = algorithm.ask()
        if asked is None or not len(asked):
            break
        fixed = sweep.groups[0].fixed
        combinations = [(sweep.groups[0].name,
                         fixed | {name: _value(spans[name], gene) for name, gene in one.X.items()})
                        for one in asked]  # fmt: skip
        made = [make_points(sweep, [one], first=len(points) + number)[0] for number, one in enumerate(combinations)]
        asked_before += [values for _, values in combinations]
        write_json(run.run / ASKED_FILE, asked_before)
        run.run_points(made)
        points += made
        for individual, point in zip(asked, made, strict=True):
            individual.set("F", np.array(objectives_of(sweep, run, point, plan.objectives)))
        algorithm.tell(infills=asked)
    return points


def objectives_of(sweep: SweepFile, run: SweepRun, point: Point, names: Sequence[str]) -> list[float]:
    """A point's objectives from its first row.

    Raises:
        UserError: It is done and has no such column.
    """
    if state_of(point, run.run, run.outcomes)[0] != DONE:
        return [_FAILED] * len(names)
    row = point_rows(sweep.name, point, run.run, run.outcomes, is_single=sweep.is_single)[0]
    missing = [name for name in names if name not in row]
    if missing:
        known = ", ".join(name for name, value in row.items() if isinstance(value, (int, float)))
        raise UserError(f"search.objectives: the table has no column '{missing[0]}'; it has {known}")
    return [
        float(row[name]) if row[name] is not None and math.isfinite(float(row[name])) else _FAILED for name in names
    ]
