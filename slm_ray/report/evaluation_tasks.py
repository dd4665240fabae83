"""The table of tasks: tasks, groups and averages of suites by model, with chance and what is within the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slm_ray.report.evaluation_records import EvaluatedModel, EvaluationRecords, Score, TaskScore
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING, count_text

_WITHIN = "within the noise"
_SHARES = frozenset({"acc", "acc_norm", "exact_match", "f1", "em", "mcc", "acc_bytes", "brier_score"})


@dataclass(frozen=True)
class TaskRow:
    """One row: a task, a group, or the average of a suite.

    Attributes:
        name: The task's, group's or suite's.
        title: What to call it.
        metric: The metric.
        chance: What guessing gives.
        scores: A score per model, or None.
        noisy: Per model, that its difference from the first is within the noise.
        kind: ``task``, ``group``, ``member`` or ``average``.
        facts: Shots, documents and limit, for the reader.
    """

    name: str
    title: str
    metric: str
    chance: float | None
    scores: tuple[Score | None, ...]
    noisy: tuple[bool, ...]
    kind: str
    facts: str

    @property
    def best(self) -> frozenset[int]:
        """The places of the models with the best value; none where fewer than two have one."""
        values = [(score.value, place) for place, score in enumerate(self.scores) if score]
        if len(values) < 2:
            return frozenset()
        better = next(score.better for score in self.scores if score)
        top = (min if better == "less" else max)(value for value, _ in values)
        return frozenset(place for value, place in values if value == top)


def _order(run: EvaluationRecords) -> list[str]:
    """Tasks as the suites list them, groups before their members, then all others."""
    known = {score.name: score for model in run.models for score in model.tasks}
    found: list[str] = []

    def add(name: str) -> None:
        if name in known and name not in found:
            found.append(name)
            for member in known[name].members or ():
                add(member)

    for tasks in run.suites.values():
        for name in tasks:
            add(name)
    members = {member for score in known.values() for member in score.members or ()}
    for name in (*(n for n in known if n not in members), *known):
        add(name)
    return found


def _facts(score: TaskScore) -> str:
    shots, limit, documents = (score.facts.get(name) for name in ("shots", "limit", "documents"))
    parts = [f"{shots}-shot" if shots is not None else "", f"{count_text(documents)} documents" if documents else ""]
    parts.append(f"limit {limit}" if limit else "")
    source = score.facts.get("source")
    parts.append(str(source) if source and source != "hub" else "")
    return ", ".join(part for part in parts if part)


def _is_noisy(run: EvaluationRecords, model: EvaluatedModel, name: str) -> bool:
    difference = run.difference(model, "task", name)
    return difference is not None and difference.verdict == _WITHIN


def _task_row(run: EvaluationRecords, models: tuple[EvaluatedModel, ...], name: str, kind: str) -> TaskRow:
    found = [model.task(name) for model in models]
    first = next(score for score in found if score)
    return TaskRow(
        name, first.title, first.main, first.chance, tuple(score.score if score else None for score in found),
        tuple(_is_noisy(run, model, name) for model in models), kind, _facts(first),
    )  # fmt: skip


def _mean(scores: list[Score | None]) -> Score | None:
    """The plain mean of tasks; its standard error takes the tasks as independent."""
    known = [score for score in scores if score]
    if len(known) < len(scores) or not known:
        return None
    value, errors = sum(score.value for score in known) / len(known), [score.stderr for score in known]
    if any(error is None for error in errors):
        return Score(value)
    stderr = math.sqrt(sum((error or 0.0) ** 2 for error in errors)) / len(known)
    return Score(value, stderr, value - 1.96 * stderr, value + 1.96 * stderr)


def _average_row(models: tuple[EvaluatedModel, ...], suite: str, rows: list[TaskRow]) -> TaskRow | None:
    """The mean of a suite's tasks; None where fewer than two have a metric of which more is better."""
    counted = [row for row in rows if all(score is None or score.better == "more" for score in row.scores)]
    if len(counted) < 2:
        return None
    means = tuple(_mean([row.scores[place] for row in counted]) for place in range(len(models)))
    chances = [row.chance for row in counted]
    chance = None if any(c is None for c in chances) else sum(c or 0.0 for c in chances) / len(chances)
    left_out = len(rows) - len(counted)
    facts = f"mean of {len(counted)} tasks" + (f", {left_out} of which less is better left out" if left_out else "")
    return TaskRow(suite, f"average of {suite}", "mean", chance, means, (False,) * len(models), "average", facts)


def task_models(run: EvaluationRecords) -> tuple[EvaluatedModel, ...]:
    """The models with any task."""
    return tuple(model for model in run.models if model.tasks)


def task_rows(run: EvaluationRecords) -> list[TaskRow]:
    """Every row, suites first in their order, an average after each."""
    models = task_models(run)
    if not models:
        return []
    known = {score.name: score for model in models for score in model.tasks}
    members = {member for score in known.values() for member in score.members or ()}
    in_suites = {name for tasks in run.suites.values() for name in tasks}
    rows: dict[str, TaskRow] = {}
    for name in _order(run):
        kind = "member" if name in members and name not in in_suites else "group" if known[name].members else "task"
        rows[name] = _task_row(run, models, name, kind)
    ordered: list[TaskRow] = []
    for suite, tasks in run.suites.items():
        mine = [rows[name] for name in tasks if name in rows]
        for row in mine:
            if row not in ordered:
                ordered.append(row)
                ordered += [rows[m] for m in known[row.name].members or () if m in rows and rows[m] not in ordered]
        average = _average_row(models, suite, mine)
        ordered += [average] if average else []
    return [*ordered, *(row for row in rows.values() if row not in ordered)]


def score_text(row: TaskRow, place: int) -> str:
    """A cell: per cent where the metric is a share, with its standard error, ``≈`` where it is within the noise."""
    score = row.scores[place]
    if score is None:
        return MISSING
    share = is_share(row)
    times, digits = (100, 1) if share else (1, 3)
    text = f"{times * score.value:.{digits}f}"
    text += "" if score.stderr is None else f" ± {times * score.stderr:.{digits}f}"
    return f"{text} ≈" if row.noisy[place] else text


def is_share(row: TaskRow) -> bool:
    """Whether a row's values are shares, written in per cent."""
    values = [score.value for score in row.scores if score]
    return row.metric in _SHARES | {"mean"} and all(-1 <= value <= 1 for value in values)


def _chance(row: TaskRow) -> str:
    if row.chance is None:
        return MISSING
    return f"{100 * row.chance:.1f}" if is_share(row) else f"{row.chance:.3g}"


def tasks_table(run: EvaluationRecords, *, members: bool = False) -> tuple[Table, frozenset[tuple[int, int]]]:
    """The table, and which of its cells are the best of their row.

    Args:
        run: The records.
        members: The tasks inside groups, and no others.
    """
    rows = [row for row in task_rows(run) if (row.kind == "member") == members]
    models = task_models(run)
    with_chance = any(row.chance is not None for row in rows)
    lines, strong = [], set()
    for number, row in enumerate(rows):
        head = (row.title, row.metric, *([_chance(row)] if with_chance else []))
        strong |= {(number, len(head) + place) for place in row.best}
        lines.append((*head, *(score_text(row, place) for place in range(len(models))), row.facts or MISSING))
    names = ("task", "metric", *(["chance"] if with_chance else []))
    header = (*names, *(model.short for model in models), "measured")
    return Table("Tasks inside groups" if members else "Tasks", header, tuple(lines)), frozenset(strong)


def tasks_by_model(run: EvaluationRecords) -> Table:
    """The same for a terminal, where a row per model is narrower; without the tasks inside groups."""
    rows = [row for row in task_rows(run) if row.kind != "member"]
    if not rows:
        return Table("Tasks", ("",), ())
    lines = [
        (model.short, *(score_text(row, place) for row in rows)) for place, model in enumerate(task_models(run))
    ]  # fmt: skip
    above = [("metric", *(row.metric for row in rows)), ("measured", *(row.facts or MISSING for row in rows))]
    chance = [("chance", *map(_chance, rows))] if any(row.chance is not None for row in rows) else []
    return Table("Tasks", ("", *(row.title for row in rows)), (*above, *chance, *lines))


def tasks_lead(run: EvaluationRecords) -> str:
    """How to read the table."""
    models = task_models(run)
    if not models:
        return ""
    text = "Scores of lm-eval, shares in per cent, ± one standard error."
    if any(any(row.noisy) for row in task_rows(run)):
        text += f" ≈: the difference from {models[0].short} is within the noise."
    return text
