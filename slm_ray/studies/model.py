"""What a sweep file says, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.studies.stages import Stage

# A varied thing is written "step.option", or "$name" for a variable.
Values = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One stage of every point.

    Attributes:
        name: What other steps call it in ``${name}``.
        stage: The stage.
        options: Its options, those that nothing varies.
    """

    name: str
    stage: Stage
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Points that are made in one way.

    Attributes:
        name: Its name; empty where a file has no groups.
        fixed: What all of its points share.
        axes: Their product gives the points; an axis is a list of alternatives.
        without: Steps that its points do not have.
    """

    name: str
    fixed: Values
    axes: tuple[tuple[Values, ...], ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Range:
    """Where a searched option is drawn from: a range, or a few choices.

    Attributes:
        low: The least value.
        high: The greatest.
        log: Whether to draw uniformly in the logarithm.
        whole: Whether values are whole numbers.
        choices: The choices, instead of a range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SearchPlan:
    """The search of a sweep.

    Attributes:
        algorithm: ``stratified``, ``random`` or ``nsga2``.
        tries: Points of every combination of the grid; of ``nsga2``: in all.
        population: Points of a generation of ``nsga2``.
        seed: Of the draws.
        objectives: Columns to make small (nsga2).
        ranges: Varied thing to its range; where the range depends on another varied thing, its value to range.
        by: Varied thing to the one that its range depends on.
    """

    algorithm: str
    tries: int
    population: int
    seed: int
    objectives: tuple[str, ...]
    ranges: Mapping[str, Mapping[str, Range]]
    by: Mapping[str, str]


@dataclass(frozen=True)
class SweepFile:
    """A sweep at one scale.

    Attributes:
        name: Its name.
        about: What it is for.
        scale: ``tiny``, ``paper``, …; empty where the file has no scales.
        steps: The stages of every point, in order.
        variables: Names that options refer to as ``${name}``, with their values.
        groups: How the points are made.
        search: What is searched besides; None where nothing is.
        scheduler: Tune's scheduler and its settings; empty without one.
        plots: What to draw at the end.
        machine: The machine that costs are stated for.
        is_single: One step whose options are written without its name.
    """

    name: str
    about: str
    scale: str
    steps: tuple[Step, ...]
    variables: Mapping[str, Any]
    groups: tuple[Group, ...]
    search: SearchPlan | None
    scheduler: Mapping[str, Any]
    plots: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    is_single: bool

    def shown(self, varied: str) -> str:
        """How a varied thing is called in tables: as the user writes it."""
        if varied.startswith("$"):
            return varied[1:]
        return varied.partition(".")[2] if self.is_single else varied

    def step(self, name: str) -> Step:
        """A step by its name."""
        return next(step for step in self.steps if step.name == name)
