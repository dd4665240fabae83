"""What a correlation run leaves: its figures as JSON, as CSV and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_count
from slm_ray.records.budget import QUANTITIES
from slm_ray.search.correlation import RankCorrelation, rank_correlations
from slm_ray.search.registry import PROXIES

BEFORE = "held-out loss before"
TARGETS = ("after", "before")
_HEADER = ("proxy", "tau", "95%", "rho", "95%", "tau before", "rho before", "FLOPs/candidate", "s/candidate")
_CSV_HEADER = (
    "proxy", "against", "statistic", "value", "low", "high", "note", "candidates", "tokens", "flops_per_candidate",
    "seconds_per_candidate", "shared_flops",
)  # fmt: skip


def is_minimised(name: str) -> bool:
    """Whether less of a proxy or cost promises a lower loss; more of a size does."""
    if name == BEFORE:
        return True
    return PROXIES[name].minimise if name in PROXIES and name != "latency" else False


def correlate(
    records: Sequence[dict[str, Any]], names: Sequence[str], shared_flops: dict[str, float], seed: int
) -> list[dict[str, Any]]:
    """Every proxy's rank correlations with the losses of trained candidates.

    Values are turned so that a positive correlation means that the proxy ranks as the loss does.

    Args:
        records: Lines of candidates.jsonl whose training is done, at least two.
        names: The proxies and costs; the loss before training is added.
        shared_flops: What a proxy costs once for all candidates.
        seed: Of the resampling.
    """
    losses = {"after": [one["loss"] for one in records], "before": [one["first_loss"] for one in records]}
    found = []
    for name in (*names, BEFORE):
        sign = 1 if is_minimised(name) else -1
        entries = [one["proxies"][name] for one in records]
        values = [sign * entry["value"] for entry in entries]
        targets = TARGETS[:1] if name == BEFORE else TARGETS
        correlations = {target: rank_correlations(values, losses[target], seed) for target in targets}
        cost = {
            "flops_per_candidate": sum(entry["flops"] for entry in entries) / len(entries),
            "seconds_per_candidate": round(sum(entry["seconds"] for entry in entries) / len(entries), 4),
            "shared_flops": shared_flops.get(name, 0.0),
        }
        found.append({
            "name": name, "promises_lower_loss": "less" if is_minimised(name) else "more", "cost": cost,
            **{target: _json_of(correlations[target]) if target in correlations else None for target in TARGETS},
        })  # fmt: skip
    return found


def _json_of(correlations: dict[str, RankCorrelation]) -> dict[str, Any]:
    return {name: correlation.to_json() for name, correlation in correlations.items()}


def as_csv(report: dict[str, Any]) -> str:
    """A line per proxy, target and statistic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for proxy in report["proxies"]:
        for target in TARGETS:
            for statistic, entry in (proxy[target] or {}).items():
                row = [proxy["name"], f"loss {target} training", statistic]
                row += [entry[key] for key in ("value", "low", "high", "note")]
                writer.writerow([*row, report["candidates"], report["tokens"], *proxy["cost"].values()])
    return text.getvalue()


def as_table(report: dict[str, Any]) -> list[str]:
    """The table for a terminal, with what it means and what is undefined."""
    rows: list[tuple[str, ...]] = [_HEADER]
    notes = []
    for proxy in report["proxies"]:
        after, before, cost = proxy["after"], proxy["before"], proxy["cost"]
        cells = [cell for name in ("kendall", "spearman") for cell in (_value(after[name]), _interval(after[name]))]
        cells += [_value(before[name]) if before else "" for name in ("kendall", "spearman")]
        flops, seconds = cost["flops_per_candidate"], cost["seconds_per_candidate"]
        rows.append((proxy["name"], *cells, format_count(flops) if flops else "0", f"{seconds:.2f}"))
        if after["kendall"]["note"]:
            notes.append(f"{proxy['name']}: {after['kendall']['note']}")
    training = report["training_cost"]
    rows.append(("short training", *[""] * 6, format_count(training["flops_per_candidate"]),
                 f"{training['seconds_per_candidate']:.2f}"))  # fmt: skip
    return [*aligned(rows), "", *_explanation(report), *notes]


def _explanation(report: dict[str, Any]) -> list[str]:
    lines = [
        f"Kendall's tau-b and Spearman's rho with the held-out loss after {format_count(report['tokens'])} tokens of "
        f"training, over {report['candidates']} candidates;",
        "1: the proxy ranks them as the training does. 95% intervals from "
        f"{report['resamples']:,} resamples; 'before': with the loss before training.",
    ]
    sizes = [proxy["name"] for proxy in report["proxies"] if proxy["name"] in QUANTITIES]
    if sizes:
        lines.append(f"{', '.join(sizes)}: what the size alone tells; a proxy has to do better.")
    shared = [proxy for proxy in report["proxies"] if proxy["cost"]["shared_flops"]]
    if shared:
        costs = ", ".join(f"{proxy['name']} {format_count(proxy['cost']['shared_flops'])}" for proxy in shared)
        lines.append(f"FLOPs once for all candidates besides: {costs}.")
    lines += [f"trial {one['trial']} is left out, its training failed: {one['error']}" for one in report["failed"]]
    return lines


def _value(entry: dict[str, Any]) -> str:
    return "undefined" if entry["value"] is None else f"{entry['value']:+.2f}"


def _interval(entry: dict[str, Any]) -> str:
    return "" if entry["low"] is None else f"{entry['low']:+.2f}..{entry['high']:+.2f}"
