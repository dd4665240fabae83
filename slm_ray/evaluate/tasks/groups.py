"""Rows of lm-eval's groups (mmlu, blimp, …) from the records of their tasks, averaged by lm-eval itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from slm_ray.evaluate.compare import LESS, MORE
from slm_ray.evaluate.tasks.expand import Group
from slm_ray.evaluate.tasks.harness import quiet
from slm_ray.evaluate.tasks.plan import TaskPlan
from slm_ray.evaluate.tasks.record import GOLD_BITS, metric_keys, number_or_none
from slm_ray.evaluate.tasks.suites import main_metric, title_of

Record = Mapping[str, Any]


def group_rows(plan: TaskPlan, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """A row for every group of the plan that lm-eval averages and whose tasks are all measured.

    Args:
        plan: The tasks.
        records: Task to record.
    """
    rows = (group_row(group, records) for group in plan.groups.values())
    return [row for row in rows if row is not None]


def group_row(group: Group, records: Mapping[str, Record]) -> dict[str, Any] | None:
    """A group's row; None where lm-eval gives it no figure, or a task is not measured.

    ``weights`` says what share each task has in the group's figures.

    Args:
        group: The group.
        records: Task to record.
    """
    if not group.aggregate or not group.members or any(name not in records for name in group.members):
        return None
    members = [records[name] for name in group.members]
    plain = _aggregate(group, members)
    metrics = {}
    for name, (metric, by) in metric_keys(plain).items():
        stderr = number_or_none(plain.get(f"{metric}_stderr,{by}"))
        better = members[0]["metrics"].get(name, {}).get("better", MORE)
        value = number_or_none(plain[f"{metric},{by}"])
        metrics[name] = {"value": value, "stderr": stderr, "better": better}
    if not metrics:
        return None
    weights = _weights(group, members)
    metrics |= _gold_bits(members, weights)
    main = main_metric(group.name, tuple(metrics))
    return {
        "task": group.name, "title": title_of(group.name, group.alias), "version": group.version,
        "shots": _same([one["shots"] for one in members]), "limit": _same([one["limit"] for one in members]),
        "documents": sum(one["documents"] for one in members), "main": main, "chance": _chance(members, weights, main),
        "group": True, "members": list(group.members), "weights": weights, "metrics": metrics,
        "source": ", ".join(dict.fromkeys(one["source"] for one in members)),
    }  # fmt: skip


def _aggregate(group: Group, members: Sequence[Record]) -> Mapping[str, Any]:
    """lm-eval's own figures of a group, from its own figures of the tasks."""
    from lm_eval.api.group import Group as LmEvalGroup

    class Members(LmEvalGroup):
        """A group that knows its tasks by name only."""

        def get_all_tasks(self, recursive: bool = True) -> Any:
            return [SimpleNamespace(task_name=name) for name in group.members]

    config = {
        "group": group.name,
        "task": list(group.members),
        "aggregate_metric_list": [dict(one) for one in group.aggregate],
    }
    with quiet():
        whole = Members.from_config(config)
        return whole.aggregate({one["task"]: _numbers(one["lm_eval"]) for one in members})


def _numbers(plain: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's figures as they were before JSON took what is no number out of them."""
    return {key: math.nan if value is None else value for key, value in plain.items()}


def _weights(group: Group, members: Sequence[Record]) -> dict[str, float]:
    """Each task's share, as the group's first metric has it."""
    by_size = bool(group.aggregate[0].get("weight_by_size", True))
    sizes = [one["documents"] if by_size else 1 for one in members]
    return {one["task"]: size / sum(sizes) for one, size in zip(members, sizes, strict=True)}


def _gold_bits(members: Sequence[Record], weights: Mapping[str, float]) -> dict[str, Any]:
    """Bits per byte of the right answer, weighted as the group's first metric is."""
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

    found = [one["metrics"].get(GOLD_BITS) for one in members]
    if any(one is None for one in found):
        return {}
    values, stderrs = [one["value"] for one in found], [one["stderr"] for one in found]
    sizes, even = [one["documents"] for one in members], len(set(weights.values())) == 1
    value = aggregate_subtask_metrics(values, sizes, not even)
    known = all(one is not None for one in stderrs)
    stderr = (unweighted_mean_stderr(stderrs) if even else pooled_sample_stderr(stderrs, sizes)) if known else None
    return {GOLD_BITS: {"value": value, "stderr": None if stderr is None else float(stderr), "better": LESS}}


def _chance(members: Sequence[Record], weights: Mapping[str, float], main: str) -> float | None:
    chances = [one["chance"] if one["main"] == main else None for one in members]
    if any(one is None for one in chances):
        return None
    return sum(weights[one["task"]] * one["chance"] for one in members)


def _same(values: Sequence[Any]) -> Any:
    """What all have in common, or None."""
    return values[0] if len(set(values)) == 1 else None
