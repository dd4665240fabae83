"""From lm-eval's results to figures: metrics, values per document, chance, bits of the right answer, groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.evaluate.intervals import mean_interval, normal_interval
from slm_ray.evaluate.task_plan import PlannedTask
from slm_ray.evaluate.tasks import main_metric, title_of
from slm_ray.records.measurement import Better, Figure, TaskFigures, TaskValues

GOLD_BITS = "gold_bits_per_byte"
CHOICE, LIKELIHOOD = "multiple_choice", "loglikelihood"
_BY_LARGEST = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # metrics that pick one of the choices

Sample = Mapping[str, Any]
Results = Mapping[str, Any]


def task_figures(planned: PlannedTask, name: str, task: Any, results: Results) -> tuple[TaskFigures, TaskValues]:
    """The figures of one of lm-eval's tasks, from what its ``evaluate`` returned."""
    plain = {key: _plain(value) for key, value in results["results"][name].items() if key not in ("name", "alias")}
    samples = results["samples"][name]
    documents = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]  # each filter has its own
    metrics, values = _metrics(task, plain, samples)
    own = not hasattr(task, "doc_to_choice")  # a class of its own, whose answers are not known
    gold = None if own else _gold_bits(task, documents)
    if gold is not None:
        from lm_eval.api.metrics import mean, mean_stderr

        stderr = float(mean_stderr(gold)) if len(gold) > 1 else None
        metrics[GOLD_BITS], values[GOLD_BITS] = _figure(mean(gold), stderr, "less", gold), tuple(gold)
    main = main_metric(name, tuple(metrics))
    figures = TaskFigures(
        task=name, title=title_of(name, results["results"][name].get("alias")), version=str(results["versions"][name]),
        shots=int(results["n-shot"].get(name) or 0), limit=planned.limit,
        documents=int(results["n-samples"][name]["effective"]), main=main,
        chance=None if own else _chance(task, main, documents), source=planned.source(name), metrics=metrics,
    )  # fmt: skip
    digest = digest_json([sample["doc_hash"] for sample in documents])
    return figures, TaskValues(samples=values, documents_digest=digest, lm_eval=plain)


def _plain(value: Any) -> Any:
    """JSON has no numpy numbers and no NaN."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _number(value)
    return value if isinstance(value, str | None) else str(value)


def _number(value: Any) -> float | None:
    """lm-eval writes ``N/A`` where there is no standard error; JSON has no NaN."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _metric_keys(plain: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Metrics of lm-eval's results, whose keys are such as ``acc,none``: our name to its name and filter."""
    found = [key.partition(",") for key in plain if "," in key]
    pairs = [(metric, by) for metric, _, by in found if not metric.endswith("_stderr")]
    several = len({by for _, by in pairs}) > 1
    return {f"{metric},{by}" if several else metric: (metric, by) for metric, by in pairs}


def _figure(value: float | None, stderr: float | None, better: Better, values: Sequence[float] = ()) -> Figure:
    around = None if value is None else normal_interval(value, stderr)
    interval = mean_interval(np.array(values, float)) if values else around
    return Figure(value=value, stderr=stderr, interval=interval, better=better)


def _metrics(
    task: Any, plain: Mapping[str, Any], samples: Sequence[Sample]
) -> tuple[dict[str, Figure], dict[str, tuple[float, ...]]]:
    """The metrics, and the values per document of those that are means over documents."""
    from lm_eval.api.metrics import mean

    directions, aggregations = task.higher_is_better(), task.aggregation()
    metrics: dict[str, Figure] = {}
    values: dict[str, tuple[float, ...]] = {}
    for name, (metric, by) in _metric_keys(plain).items():
        each = [sample.get(metric) for sample in samples if sample["filter"] == by]
        numbers = tuple(number for one in each if (number := _number(one)) is not None)
        if aggregations.get(metric, mean) is mean and len(numbers) == len(each):
            values[name] = numbers
        value, stderr = _number(plain[f"{metric},{by}"]), _number(plain.get(f"{metric}_stderr,{by}"))
        better: Better = "less" if directions.get(metric) is False else "more"
        metrics[name] = _figure(value, stderr, better, values.get(name, ()))
    return metrics, values


def _choices(task: Any, sample: Sample) -> int:
    """How many answers a document offers; for mutual information each is asked for twice."""
    number = len(sample["arguments"])
    return number // 2 if "acc_mutual_info" in task.aggregation() else number


def _gold(task: Any, sample: Sample) -> list[int] | None:
    """The right ones among a document's answers, as numbers."""
    if task.OUTPUT_TYPE == LIKELIHOOD:
        return [0]
    right = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    choices = None if task.multiple_input else task.doc_to_choice(sample["doc"])
    found = []
    for one in right if isinstance(right, list) else [right]:
        number = choices.index(one) if choices and isinstance(one, str) and one in choices else one
        if not isinstance(number, int) or not 0 <= number < _choices(task, sample):
            return None
        found.append(number)
    return found or None


def _gold_bits(task: Any, samples: Sequence[Sample]) -> list[float] | None:
    """Bits that the model needs per byte of the right answer, for each document: the likeliest of several.

    It tells small models apart where their accuracy is all chance. None where a task has no right answers to measure.
    """
    if task.OUTPUT_TYPE not in (CHOICE, LIKELIHOOD):
        return None
    values = []
    for sample in samples:
        each = []
        for number in _gold(task, sample) or ():
            size = len(str(sample["arguments"][number][1]).encode("utf-8"))
            response = sample["filtered_resps"][number]
            if not size or not isinstance(response, list | tuple):
                return None
            each.append(-float(response[0]) / math.log(2) / size)
        if not each:
            return None
        values.append(min(each))
    return values if all(map(math.isfinite, values)) else None


def _chance(task: Any, main: str, samples: Sequence[Sample]) -> float | None:
    """What guessing gives in the main metric: the mean over documents of right answers by answers."""
    if task.OUTPUT_TYPE != CHOICE or main not in _BY_LARGEST or callable(task.get_config("process_results")):
        return None
    gold = [_gold(task, sample) for sample in samples]
    shares = [len(set(one)) / _choices(task, sample) for one, sample in zip(gold, samples, strict=True) if one]
    return math.fsum(shares) / len(shares) if len(shares) == len(samples) else None


def group_figures(group: Any, results: Results, tasks: Mapping[str, TaskFigures]) -> TaskFigures | None:
    """The figures of one of lm-eval's groups, as it averaged them; None where it does not average the group."""
    members = [tasks[task.task_name] for task in group.get_all_tasks()]
    plain = results["results"].get(group.name) or results.get("groups", {}).get(group.name) or {}
    keys = _metric_keys(plain)
    if not group.aggregate_metric_list or not members or not keys:
        return None
    by_size = bool(group.aggregate_metric_list[0].weight_by_size)
    sizes = [one.documents if by_size else 1 for one in members]
    weights = {one.task: size / sum(sizes) for one, size in zip(members, sizes, strict=True)}
    metrics = {}
    for name, (metric, by) in keys.items():
        better = members[0].metrics[name].better if name in members[0].metrics else "more"
        value, stderr = _number(plain[f"{metric},{by}"]), _number(plain.get(f"{metric}_stderr,{by}"))
        metrics[name] = _figure(value, stderr, better or "more")
    if (gold := _group_bits(members, by_size)) is not None:
        metrics[GOLD_BITS] = gold
    main = main_metric(group.name, tuple(metrics))
    known = [weights[one.task] * one.chance for one in members if one.main == main and one.chance is not None]
    shots = {one.shots for one in members}
    return TaskFigures(
        task=group.name, title=title_of(group.name, group.alias),
        version=str(results["versions"].get(group.name, "N/A")), shots=shots.pop() if len(shots) == 1 else None,
        limit=members[0].limit, documents=sum(one.documents for one in members), main=main,
        chance=sum(known) if len(known) == len(members) else None,
        source=", ".join(dict.fromkeys(one.source for one in members)), metrics=metrics, members=tuple(weights),
        weights=weights,
    )  # fmt: skip


def _group_bits(members: Sequence[TaskFigures], by_size: bool) -> Figure | None:
    """Bits per byte of the right answer, weighted as the group's first metric is."""
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

    found = [one.metrics[GOLD_BITS] for one in members if GOLD_BITS in one.metrics]
    values = [one.value for one in found if one.value is not None]
    stderrs, sizes = [one.stderr for one in found if one.stderr is not None], [one.documents for one in members]
    if len(values) < len(members):
        return None
    stderr = None
    if len(stderrs) == len(values):
        stderr = float(pooled_sample_stderr(stderrs, sizes) if by_size else unweighted_mean_stderr(stderrs))
    return _figure(aggregate_subtask_metrics(values, sizes, by_size), stderr, "less")
