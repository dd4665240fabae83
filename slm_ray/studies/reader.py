"""Reading a sweep file: its scale is applied, every name is checked, and all mistakes are found at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.base import build_section
from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.config.yaml_files import read_yaml
from slm_ray.studies.plan_search import read_search
from slm_ray.studies.plot_data import check_plots
from slm_ray.studies.stages import SET_BY_SWEEP, Stage, normal_name, stage_of, unknown_option
from slm_ray.studies.sweep_file import (
    Group,
    MachineSection,
    Step,
    SweepFile,
    Values,
    apply_scale,
    apply_settings,
    choose_scale,
    normal,
)

_TOP = (
    "name", "about", "stage", "base", "stages", "vars", "grid", "zip", "points", "groups", "search", "scheduler",
    "plots", "machine", "required", "scales",
)  # fmt: skip
_GROUP = ("set", "grid", "zip", "points", "without")


def read_sweep(
    path: Path, scale: str | None = None, settings: Sequence[str] = (), *, named: str | None = None
) -> SweepFile:
    """Read a sweep file at a scale.

    ``scale``: Which of its scales; None takes ``tiny`` where there is one. ``named``: What the sweep is called where
    the file does not say; its name by default.
    """
    return parse_sweep(read_yaml(path), str(path), scale, settings, named or path.stem)


def parse_sweep(loaded: Any, source: str, scale: str | None, settings: Sequence[str], name: str) -> SweepFile:
    """Read the content of a sweep file; see :func:`read_sweep`."""
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{source} must hold a sweep: stage, base and grid; got {type(loaded).__name__}")
    return Reader(source).read(loaded, scale, settings, name)


class Reader:
    """Reads one file and gathers what is wrong with it."""

    def __init__(self, source: str) -> None:
        self.source, self.problems = source, list[str]()
        self.steps: dict[str, Step] = {}
        self.variables: dict[str, Any] = {}
        self.is_single = False

    def read(self, loaded: Mapping[str, Any], scale: str | None, settings: Sequence[str], name: str) -> SweepFile:
        """The sweep of a file's content."""
        from slm_ray.studies.tuning import check_scheduler

        known = normal(loaded)
        self._check_keys("", known, _TOP)
        chosen = choose_scale(known, scale)
        top = apply_scale(known, chosen)
        self._check_keys(f"scales.{chosen}." if chosen else "", top, _TOP)
        top = apply_settings(top, settings)
        self._check_required(top, settings)
        self._read_steps(top)
        groups = self._read_groups(top)
        search = read_search(top.get("search"), self._varied, self.problems)
        scheduler = check_scheduler(top.get("scheduler"), list(self.steps.values()), self.problems)
        machine = normal(top.get("machine"))
        build_section(MachineSection, machine, "machine", self.problems)
        check_plots(top.get("plots"), self.problems)
        if self.problems or not groups:
            raise ConfigError(self.source, self.problems or ["there are no points: give grid, zip, points or search"])
        plots = tuple(dict(plot) for plot in top.get("plots") or ())
        return SweepFile(
            str(top.get("name") or name), str(top.get("about") or ""), chosen, tuple(self.steps.values()),
            self.variables, groups, search, scheduler, plots, machine, self.is_single,
        )  # fmt: skip

    def _check_keys(self, prefix: str, given: Iterable[str], known: Sequence[str]) -> None:
        self.problems += [f"{prefix}{key}: no such section; {nearest(key, known)}" for key in given if key not in known]

    def _check_required(self, top: Mapping[str, Any], settings: Sequence[str]) -> None:
        given = {normal_name(setting.partition("=")[0]).rpartition(".")[2] for setting in settings}
        for name, why in (top.get("required") or {}).items():
            if normal_name(str(name)) not in given:
                self.problems.append(f"{name}: this sweep needs it: give --set {name}=… ({why})")

    def _read_steps(self, top: Mapping[str, Any]) -> None:
        self.variables = {str(name): value for name, value in (top.get("vars") or {}).items()}
        stages = top.get("stages")
        if (stages is None) == (top.get("stage") is None):
            self.problems.append("stage: name one (with base), or several in stages")
            raise ConfigError(self.source, self.problems)
        self.is_single = stages is None
        given = {str(top["stage"]): dict(top.get("base") or {})} if stages is None else stages
        for name, options in given.items():
            path = "base" if self.is_single else f"stages.{name}"
            try:
                self._read_step(str(name), options or {}, path)
            except UserError as error:
                self.problems.append(str(error))
        if not self.steps:
            raise ConfigError(self.source, self.problems)

    def _read_step(self, name: str, given: Mapping[str, Any], path: str) -> None:
        values = normal(given)
        stage = stage_of(str(values.pop("stage", name)), f"{path}.stage" if not self.is_single else "stage")
        options = {}
        for field, value in values.items():
            if self._option_problem(stage, field, value, f"{path}.{field}"):
                continue
            options[field] = value
        self.steps[name] = Step(name, stage, options)

    def _option_problem(self, stage: Stage, field: str, value: Any, path: str) -> bool:
        """Check one option of a stage; True where something is wrong with it."""
        if field not in stage.names():
            self.problems.append(unknown_option(path, field, stage))
        elif field.rpartition(".")[2] in SET_BY_SWEEP:
            self.problems.append(f"{path}: the sweep sets it; leave it out")
        elif isinstance(value, str) and "${" in value:
            return self._reference_problem(value, path)
        elif problem := stage.check_value(field, value):
            self.problems.append(f"{path}: {problem}")
        else:
            return False
        return True

    def _reference_problem(self, value: str, path: str) -> bool:
        known = [*self.steps, *(f"{name}.model" for name in self.steps), *(f"{name}.models" for name in self.steps),
                 *self.variables]  # fmt: skip
        for name in re.findall(r"\$\{([^}]*)\}", value):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                offer = f"did you mean '${{{close[0]}}}'?" if close else "name a step before this one, or one of vars"
                self.problems.append(f"{path}: ${{{name}}} is neither an earlier step nor a variable; {offer}")
                return True
        return False

    def _varied(self, name: str, path: str) -> str | None:
        """What a name in a grid varies; None, and a mistake noted, where it is nothing."""
        key = normal_name(str(name))
        if self.is_single:
            (step,) = self.steps
            if str(name) in self.variables:
                return f"${name}"
            if key not in self.steps[step].stage.names():
                self.problems.append(unknown_option(path, key, self.steps[step].stage))
                return None
            return f"{step}.{key}"
        if str(name) in self.variables:
            return f"${name}"
        step, _, field = key.partition(".")
        if step not in self.steps or not field:
            known = [*self.steps, *self.variables]
            close = difflib.get_close_matches(step, known, n=1, cutoff=0.5)
            offer = (
                f"did you mean '{close[0]}'?" if close else f"write STEP.option; the steps are {', '.join(self.steps)}"
            )
            self.problems.append(f"{path}: no such step or variable; {offer}")
            return None
        if field not in self.steps[step].stage.names():
            self.problems.append(unknown_option(path, field, self.steps[step].stage))
            return None
        return f"{step}.{field}"

    def _checked(self, varied: str, value: Any, path: str) -> bool:
        """Whether a value may be given to a varied thing."""
        if varied.startswith("$"):
            return True
        step, _, field = varied.partition(".")
        return not self._option_problem(self.steps[step].stage, field, value, path)

    def _values(self, given: Any, path: str) -> Values:
        """A mapping of names to values, checked."""
        if not isinstance(given, Mapping):
            self.problems.append(f"{path}: must hold options and values, got {given!r}")
            return {}
        found = {}
        for name, value in given.items():
            varied = self._varied(name, f"{path}.{name}")
            if varied is not None and self._checked(varied, value, f"{path}.{name}"):
                found[varied] = value
        return found

    def _read_groups(self, top: Mapping[str, Any]) -> tuple[Group, ...]:
        shared = self._axes(top, "")
        if "groups" not in top:
            return (Group("", {}, tuple(shared)),) if shared or top.get("search") or not self._varies(top) else ()
        groups = []
        for name, given in (top["groups"] or {}).items():
            if given is None:  # a scale leaves it out
                continue
            path = f"groups.{name}"
            content = normal(given)
            self._check_keys(f"{path}.", content, _GROUP)
            fixed = self._values(content.get("set") or {}, f"{path}.set")
            without = tuple(map(str, content.get("without") or ()))
            self.problems += [f"{path}.without: no step '{step}'; {nearest(step, self.steps)}"
                              for step in without if step not in self.steps]  # fmt: skip
            groups.append(Group(str(name), fixed, (*shared, *self._axes(content, f"{path}.")), without))
        return tuple(groups)

    @staticmethod
    def _varies(top: Mapping[str, Any]) -> bool:
        return any(name in top for name in ("grid", "zip", "points"))

    def _axes(self, given: Mapping[str, Any], prefix: str) -> list[tuple[Values, ...]]:
        axes = []
        if "grid" in given:
            axes += self._grid(given["grid"], f"{prefix}grid")
        if "zip" in given:
            lists = given["zip"] if isinstance(given["zip"], list) else [given["zip"]]
            axes += [axis for number, one in enumerate(lists) if (axis := self._zip(one, f"{prefix}zip", number))]
        if "points" in given:
            points = given["points"] or []
            if not points:
                self.problems.append(f"{prefix}points: is empty: give at least one point")
            found = tuple(self._values(one, f"{prefix}points[{number}]") for number, one in enumerate(points))
            axes += [found] if found else []
        return axes

    def _grid(self, grid: Any, path: str) -> list[tuple[Values, ...]]:
        if not isinstance(grid, Mapping) or not grid:
            self.problems.append(f"{path}: is empty: give at least one option with a list of values")
            return []
        axes = []
        for name, values in grid.items():
            axis = self._list(name, values, f"{path}.{name}")
            axes += [axis] if axis else []
        return axes

    def _list(self, name: str, values: Any, path: str) -> tuple[Values, ...]:
        varied = self._varied(name, path)
        if not isinstance(values, list) or not values:
            self.problems.append(f"{path}: must be a list of values with at least one in it, got {values!r}")
            return ()
        if varied is None:
            return ()
        return tuple({varied: value} for number, value in enumerate(values)
                     if self._checked(varied, value, f"{path}[{number}]"))  # fmt: skip

    def _zip(self, given: Any, path: str, number: int) -> tuple[Values, ...]:
        if not isinstance(given, Mapping) or not given:
            self.problems.append(f"{path}: is empty: give options with lists of equal length")
            return ()
        lists = [self._list(name, values, f"{path}.{name}") for name, values in given.items()]
        lengths = {str(name): len(values) for name, values in given.items() if isinstance(values, list)}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            self.problems.append(f"{path}: the lists must be of equal length, but {said}")
            return ()
        if not all(lists):
            return ()
        return tuple({key: value for one in together for key, value in one.items()}
                     for together in zip(*lists, strict=False))  # fmt: skip
