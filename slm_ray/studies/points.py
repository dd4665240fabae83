"""From a sweep file to its points, and from points to the tasks they share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.base import Config, flatten
from slm_ray.config.digest import digest_json
from slm_ray.config.errors import ConfigError, UserError
from slm_ray.records.base import read_record
from slm_ray.records.search import SearchResult
from slm_ray.records.training import TrainResult
from slm_ray.studies.plan_search import draw
from slm_ray.studies.stages import SET_BY_SWEEP, Stage
from slm_ray.studies.sweep_file import Step, SweepFile, Values

DEFAULT_MAX_RUNS = 200
TASKS_FOLDER = "tasks"
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Task:
    """One run of a stage, whichever points want it."""

    step: str  # The step's name
    stage: Stage  # The stage
    options: Mapping[str, Any]  # Its options; ``${name}`` refers to what other tasks leave
    needs: Mapping[str, Task]  # The tasks that they refer to, by the name of their step
    digest: str  # Equal tasks have equal digests

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.step}-{self.digest}"


@dataclass(frozen=True)
class Point:
    """One combination."""

    number: int  # Its place in the sweep
    group: str  # The group that it is of
    values: Mapping[str, Any]  # What was varied, as tables call it, to its value
    tasks: tuple[Task, ...]  # Its tasks, in order

    def title(self) -> str:
        """What tells it from the others, in a line."""
        varied = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return f"point {self.number}" + (f" ({varied})" if varied else "")


def expand(sweep: SweepFile, max_runs: int | None = None) -> list[Point]:
    """Every point of a sweep."""
    combinations = _combinations(sweep, max_runs or DEFAULT_MAX_RUNS, is_asked=max_runs is not None)
    return make_points(sweep, combinations)


def make_points(sweep: SweepFile, combinations: Sequence[tuple[str, Values]], first: int = 0) -> list[Point]:
    """Points of combinations; equal ones are one."""
    points: dict[tuple[str, ...], Point] = {}
    problems: dict[str, list[Point]] = {}
    left_out = {group.name: group.without for group in sweep.groups}
    for group, values in combinations:
        tasks, complaint = _tasks(sweep, values, left_out.get(group, ()))
        shown = {sweep.shown(name): value for name, value in values.items()}
        point = Point(first + len(points), group, shown, tasks)
        if complaint:
            problems.setdefault(complaint, []).append(point)
        points.setdefault((group, *(task.digest for task in tasks)), point)
    if problems:
        said = [f"{found[0].title()}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {sentence}"
                for sentence, found in problems.items()]  # fmt: skip
        raise ConfigError(sweep.name, said)
    return list(points.values())


def _combinations(sweep: SweepFile, limit: int, *, is_asked: bool) -> list[tuple[str, Values]]:
    search = sweep.search
    count = 0
    for group in sweep.groups:
        size = search.section.tries if search else 1
        for axis in group.axes:
            size *= len(axis)
        count += size
    if count > limit:
        fix = "allow more" if is_asked else "if you mean it, give"
        raise UserError(f"the sweep has {count:,} points, over the limit of {limit:,}: {fix} --max-runs {count}")
    found = []
    for group in sweep.groups:
        for alternatives in itertools.product(*group.axes):
            values = dict(group.fixed)
            for one in alternatives:
                values |= one
            try:
                tries = draw(search, values) if search else [{}]
            except KeyError as error:
                raise UserError(f"search.fields: there is no range for the value {error} of another option") from error
            found += [(group.name, values | one) for one in tries]
    return found


def _tasks(sweep: SweepFile, values: Values, left_out: Collection[str]) -> tuple[tuple[Task, ...], str]:
    """A point's tasks, and what is wrong with their options."""
    variables = {**sweep.variables, **{key[1:]: value for key, value in values.items() if key.startswith("$")}}
    made: dict[str, Task] = {}
    for step in (one for one in sweep.steps if one.name not in left_out):
        prefix = step.name + "."
        options = {**step.options, **{key.removeprefix(prefix): value for key, value in values.items()
                                      if key.startswith(prefix)}}  # fmt: skip
        options = {name: substitute(value, variables) for name, value in options.items() if value is not None}
        try:
            made[step.name] = _task(step, options, made)
        except UserError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            return tuple(made.values()), "; ".join(problems)
    return tuple(made.values()), ""


def _task(step: Step, options: dict[str, Any], before: Mapping[str, Task]) -> Task:
    names = {name.partition(".")[0] for value in options.values() if isinstance(value, str)
             for name in _REFERENCE.findall(value)}  # fmt: skip
    missing = sorted(names - set(before))
    if missing:
        raise UserError(f"{step.name} refers to ${{{missing[0]}}}, which is no step before it, or one that is left out")
    needs = {name: before[name] for name in sorted(names)}
    config = step.stage.config(options, out="OUT")  # checks what goes together
    resolved = config_json(config)
    content = {
        "stage": step.stage.name, "options": resolved, "needs": {name: need.digest for name, need in needs.items()},
    }  # fmt: skip
    return Task(step.name, step.stage, options, needs, digest_json(content)[:12])


def config_json(config: Config) -> dict[str, Any]:
    """A stage's resolved options without those that the sweep sets."""
    return {name: value for name, value in flatten(config).items() if name not in SET_BY_SWEEP}


def substitute(value: Any, variables: Mapping[str, Any]) -> Any:
    """Put variables into a value; references to steps stay."""
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and whole[1] in variables:
        return variables[whole[1]]
    return _REFERENCE.sub(lambda found: str(variables.get(found[1], found[0])), value)


def resolved_options(task: Task, run: Path) -> dict[str, Any]:
    """A task's options with what the tasks before it have left."""

    def replace(found: re.Match[str]) -> str:
        name, _, what = found[1].partition(".")
        need = task.needs[name]
        folder = task_folder(need, run)
        if not what:
            return str(folder)
        models = models_of(need, folder)
        return models[0] if what == "model" else ",".join(models)

    return {name: _REFERENCE.sub(replace, value) if isinstance(value, str) else value
            for name, value in task.options.items()}  # fmt: skip


def task_folder(task: Task, run: Path) -> Path:
    """Where a task's output is."""
    return run.resolve() / TASKS_FOLDER / task.name


def models_of(task: Task, folder: Path) -> list[str]:
    """The models that a search or a pretraining has left."""
    if task.stage.name == "search":
        return [str(folder / winner.folder) for winner in read_record(folder, SearchResult).winners]
    if task.stage.name == "pretrain":
        return [str(folder / one.model) for one in read_record(folder, TrainResult).models if one.model]
    if task.stage.name == "tokenizer":
        return [str(folder)]
    raise UserError(
        f"${{{task.step}.model}}: a step of stage {task.stage.name} leaves no model; name a search or pretrain"
    )


def all_tasks(points: Sequence[Point]) -> list[Task]:
    """Every task, each once, those of earlier steps first."""
    found: dict[str, Task] = {}
    deepest = max((len(point.tasks) for point in points), default=0)
    for depth in range(deepest):
        for point in points:
            if depth < len(point.tasks):
                found.setdefault(point.tasks[depth].name, point.tasks[depth])
    return list(found.values())
