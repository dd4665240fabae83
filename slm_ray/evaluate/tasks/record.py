"""From lm-eval's results of a task to its record: metrics, values per document, chance, bits of the right answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.evaluate.compare import LESS, MORE
from slm_ray.evaluate.tasks.build import PlannedTask
from slm_ray.evaluate.tasks.suites import main_metric, title_of

GOLD_BITS = "gold_bits_per_byte"
CHOICE, LIKELIHOOD = "multiple_choice", "loglikelihood"
_BY_LARGEST = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # metrics that pick one of the choices

Sample = Mapping[str, Any]


def make_record(planned: PlannedTask, task: Any, results: Mapping[str, Any], *, cut: int) -> dict[str, Any]:
    """The record of a task.

    Args:
        planned: The task.
        task: Its Task object.
        results: What lm-eval's ``evaluate`` returned.
        cut: Requests that were longer than the model reads.
    """
    name = planned.name
    plain = {key: _plain(value) for key, value in results["results"][name].items()}
    samples = results["samples"][name]
    metrics, values = _metrics(task, plain, samples)
    documents = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]  # each filter has its own
    gold = None if planned.leaf.python else _gold_bits(task, documents)
    if gold is not None:
        metrics[GOLD_BITS], values[GOLD_BITS] = _mean_of(gold), gold
    main = main_metric(name, tuple(metrics))
    return {
        "task": name, "title": title_of(name, task.config.task_alias), "version": str(results["versions"][name]),
        "shots": planned.shots, "limit": planned.limit, "documents": int(results["n-samples"][name]["effective"]),
        "main": main, "chance": None if planned.leaf.python else _chance(task, main, documents), "metrics": metrics,
        "samples": values, "documents_digest": digest_json([sample["doc_hash"] for sample in documents]),
        "lm_eval": plain, "source": planned.source, "cut_requests": cut,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """JSON knows no numpy numbers and no NaN."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, str | None) else str(value)


def metric_keys(plain: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The metrics of lm-eval's results, whose keys are such as ``acc,none``.

    Args:
        plain: lm-eval's results of a task or group.

    Returns:
        What a record calls a metric (with its filter, where there are several) to its name and filter.
    """
    found = [key.partition(",") for key in plain if "," in key]
    pairs = [(metric, by) for metric, _, by in found if not metric.endswith("_stderr")]
    several = len({by for _, by in pairs}) > 1
    return {f"{metric},{by}" if several else metric: (metric, by) for metric, by in pairs}


def better_of(more: bool | None) -> str:
    """``more`` or ``less``."""
    return LESS if more is False else MORE


def number_or_none(value: Any) -> float | None:
    """lm-eval writes ``N/A`` where there is no standard error; JSON has no NaN."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _metrics(
    task: Any, plain: Mapping[str, Any], samples: Sequence[Sample]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The metrics, and the values per document of those that are means over documents."""
    from lm_eval.api.metrics import mean

    directions, aggregations = task.higher_is_better(), task.aggregation()
    metrics: dict[str, Any] = {}
    values: dict[str, list[float]] = {}
    for name, (metric, by) in metric_keys(plain).items():
        value = number_or_none(plain[f"{metric},{by}"])
        stderr = number_or_none(plain.get(f"{metric}_stderr,{by}"))
        metrics[name] = {"value": value, "stderr": stderr, "better": better_of(directions.get(metric))}
        mine = [sample for sample in samples if sample["filter"] == by]
        each = [sample.get(metric) for sample in mine]
        if aggregations.get(metric, mean) is mean and all(isinstance(one, Real) for one in each):
            numbers = [float(one) for one in each if isinstance(one, Real)]
            if all(map(math.isfinite, numbers)):
                values[name] = numbers
    return metrics, values


def _mean_of(values: Sequence[float]) -> dict[str, Any]:
    from lm_eval.api.metrics import mean, mean_stderr

    return {"value": mean(values), "stderr": float(mean_stderr(values)) if len(values) > 1 else None, "better": LESS}


def _choices(task: Any, sample: Sample) -> int:
    """How many answers a document offers; for mutual information each is asked for twice."""
    number = len(sample["arguments"])
    return number // 2 if "acc_mutual_info" in getattr(task, "_metric_fn_list", {}) else number


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
    """Bits that the model needs per byte of the right answer, for each document.

    It tells small models apart where their accuracy is all chance. Where several answers are right, the likeliest
    counts. None where a task has no right answers to measure.
    """
    if task.OUTPUT_TYPE not in (CHOICE, LIKELIHOOD):
        return None
    values = []
    for sample in samples:
        gold = _gold(task, sample)
        if gold is None:
            return None
        each = []
        for number in gold:
            size = len(str(sample["arguments"][number][1]).encode("utf-8"))
            response = sample["filtered_resps"][number]
            if not size or not isinstance(response, list | tuple):
                return None
            each.append(-float(response[0]) / math.log(2) / size)
        values.append(min(each))
    return values if all(map(math.isfinite, values)) else None


def _chance(task: Any, main: str, samples: Sequence[Sample]) -> float | None:
    """What guessing gives in the main metric: the mean over documents of right answers by answers."""
    if task.OUTPUT_TYPE != CHOICE or main not in _BY_LARGEST or callable(task.config.process_results):
        return None
    shares = []
    for sample in samples:
        gold = _gold(task, sample)
        if gold is None:
            return None
        shares.append(len(set(gold)) / _choices(task, sample))
    return math.fsum(shares) / len(shares)
