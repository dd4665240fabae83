"""The table of tasks: tasks, groups and averages of suites by model, with chance and what is within the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slm_ray.records.evaluation import ModelFigures
from slm_ray.records.measurement import Figure, TaskFigures
from slm_ray.report.content import Table
from slm_ray.report.evaluation import EvaluationRun
from slm_ray.report.text import MISSING, NORMAL_95, WITHIN, count_text

_SHARES = frozenset({"acc", "acc_norm", "exact_match", "f1", "em", "mcc", "acc_bytes", "brier_score", "mean"})
_Scores = tuple[Figure | None, ...]


@dataclass(frozen=True)
class TaskRow:
    """One row: a task, a group, or the average of a suite."""

    name: str  # The task's, group's or suite's
    title: str  # What to call it
    metric: str  # The metric
    chance: float | None  # What guessing gives
    scores: _Scores  # A score per model, or None
    noisy: tuple[bool, ...]  # Per model, that its difference from the first is within the noise
    kind: str  # ``task``, ``group``, ``member`` or ``average``
    facts: str  # Shots, documents and limit, for the reader

    @property
    def known(self) -> list[tuple[int, float]]:
        """The models' places and their values, where there are any."""
        return [(place, score.value) for place, score in enumerate(self.scores) if score and score.value is not None]

    @property
    def best(self) -> frozenset[int]:
        """The places of the models with the best value; none where fewer than two have one."""
        if len(self.known) < 2:
            return frozenset()
        better = next(score.better for score in self.scores if score)
        top = (min if better == "less" else max)(value for _, value in self.known)
        return frozenset(place for place, value in self.known if value == top)

    @property
    def is_share(self) -> bool:
        """Whether its values are shares, written in per cent."""
        return self.metric in _SHARES and all(-1 <= value <= 1 for _, value in self.known)

    def cell(self, place: int) -> str:
        """A score in per cent where it is a share, with its standard error, ``≈`` where it is within the noise."""
        score = self.scores[place]
        if score is None or score.value is None:
            return MISSING
        times, digits = (100, 1) if self.is_share else (1, 3)
        text = f"{times * score.value:.{digits}f}"
        text += "" if score.stderr is None else f" ± {times * score.stderr:.{digits}f}"
        return f"{text} ≈" if self.noisy[place] else text

    @property
    def chance_cell(self) -> str:
        """What guessing gives."""
        if self.chance is None:
            return MISSING
        return f"{100 * self.chance:.1f}" if self.is_share else f"{self.chance:.3g}"


def task_models(run: EvaluationRun) -> list[ModelFigures]:
    """The models with any task."""
    return [model for model in run.models if model.tasks]


def _facts(task: TaskFigures) -> str:
    parts = [f"{task.shots}-shot" if task.shots is not None else "", f"{count_text(task.documents)} documents"]
    parts += [f"limit {task.limit}" if task.limit else "", task.source if task.source != "hub" else ""]
    return ", ".join(part for part in parts if part)


def _task_row(run: EvaluationRun, models: Sequence[ModelFigures], name: str, kind: str) -> TaskRow:
    found = [next((task for task in model.tasks if task.task == name), None) for model in models]
    first = next(task for task in found if task)
    noisy = (run.difference(model, "task", name) for model in models)
    scores = tuple(task.metrics.get(task.main) if task else None for task in found)
    return TaskRow(
        name, first.title, first.main, first.chance, scores,
        tuple(bool(d and d.verdict == WITHIN) for d in noisy), kind, _facts(first),
    )  # fmt: skip


def _mean(scores: _Scores) -> Figure | None:
    """The plain mean of tasks; its standard error takes the tasks as independent."""
    known = [(score.value, score.stderr) for score in scores if score and score.value is not None]
    if len(known) < len(scores) or not known:
        return None
    value = sum(found for found, _ in known) / len(known)
    if any(error is None for _, error in known):
        return Figure(value=value, better="more")
    stderr = math.sqrt(sum((error or 0.0) ** 2 for _, error in known)) / len(known)
    interval = (value - NORMAL_95 * stderr, value + NORMAL_95 * stderr)
    return Figure(value=value, stderr=stderr, interval=interval, better="more")


def _average_row(num_models: int, suite: str, rows: Sequence[TaskRow]) -> list[TaskRow]:
    """The mean of a suite's tasks; nothing where fewer than two have a metric of which more is better."""
    counted = [row for row in rows if all(score is None or score.better == "more" for score in row.scores)]
    if len(counted) < 2:
        return []
    means = tuple(_mean(tuple(row.scores[place] for row in counted)) for place in range(num_models))
    chances = [row.chance for row in counted]
    chance = None if None in chances else sum(c or 0.0 for c in chances) / len(chances)
    left_out = len(rows) - len(counted)
    facts = f"mean of {len(counted)} tasks" + (f", {left_out} of which less is better left out" if left_out else "")
    return [TaskRow(suite, f"average of {suite}", "mean", chance, means, (False,) * num_models, "average", facts)]


def task_rows(run: EvaluationRun) -> list[TaskRow]:
    """Every row: suites in their order, groups before their members, an average after each suite, then all others."""
    models = task_models(run)
    known = {task.task: task for model in models for task in model.tasks}
    members = {member for task in known.values() for member in task.members or ()}
    in_suites = {name for tasks in run.result.suites.values() for name in tasks}
    ordered: dict[str, TaskRow] = {}

    def add(name: str) -> None:
        if name in known and name not in ordered:
            inside = name in members and name not in in_suites
            ordered[name] = _task_row(
                run, models, name, "member" if inside else "group" if known[name].members else "task"
            )
            for member in known[name].members or ():
                add(member)

    for suite, tasks in run.result.suites.items():
        for name in tasks:
            add(name)
        for average in _average_row(len(models), suite, [ordered[name] for name in tasks if name in ordered]):
            ordered[f"average of {suite}"] = average
    for name in (*(name for name in known if name not in members), *known):
        add(name)
    return list(ordered.values())


def tasks_table(run: EvaluationRun, *, members: bool = False) -> Table:
    """The table, the best of a row in bold."""
    rows = [row for row in task_rows(run) if (row.kind == "member") == members]
    models = task_models(run)
    with_chance = any(row.chance is not None for row in rows)
    lines, strong = [], set()
    for number, row in enumerate(rows):
        head = (row.title, row.metric, *([row.chance_cell] if with_chance else []))
        strong |= {(number, len(head) + place) for place in row.best}
        lines.append((*head, *(row.cell(place) for place in range(len(models))), row.facts or MISSING))
    names = ("task", "metric", *(["chance"] if with_chance else []))
    header = (*names, *(run.called(model.name) for model in models), "measured")
    title = "Tasks inside groups" if members else "Tasks"
    return Table(title, header, tuple(lines), strong=frozenset(strong))


def tasks_lead(run: EvaluationRun) -> str:
    """How to read the table."""
    models = task_models(run)
    if not models:
        return ""
    text = "Scores of lm-eval, shares in per cent, ± one standard error."
    if any(any(row.noisy) for row in task_rows(run)):
        text += f" ≈: the difference from {run.called(models[0].name)} is within the noise."
    return text
