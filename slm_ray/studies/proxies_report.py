"""The figures of a report on proxies, as CSV and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_count
from slm_ray.records.budget import QUANTITIES
from slm_ray.records.proxies import ProxyCorrelation, ProxyCost, ProxyReport, RankCorrelation, TrainedCandidate
from slm_ray.search.registry import PROXIES
from slm_ray.studies.rank_correlation import rank_correlations

BEFORE = "held-out loss before"
TABLE_FILE = "table.txt"
_TARGETS, _STATISTICS = ("after", "before"), ("kendall", "spearman")
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
    records: Sequence[TrainedCandidate], names: Sequence[str], shared_flops: Mapping[str, float], seed: int
) -> tuple[ProxyCorrelation, ...]:
    """Every proxy's rank correlations with the losses of trained candidates.

    Values are turned so that a positive correlation means that the proxy ranks as the loss does.
    """
    after, before = [one.loss or 0.0 for one in records], [one.first_loss or 0.0 for one in records]
    found = []
    for name in (*names, BEFORE):
        sign = 1 if is_minimised(name) else -1
        entries = [one.proxies[name] for one in records]
        values = [sign * entry.value for entry in entries]
        cost = ProxyCost(
            flops_per_candidate=sum(entry.flops for entry in entries) / len(entries),
            seconds_per_candidate=round(sum(entry.seconds for entry in entries) / len(entries), 4),
            shared_flops=shared_flops.get(name, 0.0),
        )
        found.append(
            ProxyCorrelation(
                name=name, promises_lower_loss="less" if is_minimised(name) else "more", cost=cost,
                after=rank_correlations(values, after, seed),
                before=None if name == BEFORE else rank_correlations(values, before, seed),
            )
        )  # fmt: skip
    return tuple(found)


def as_csv(report: ProxyReport) -> str:
    """A line per proxy, target and statistic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for proxy in report.proxies:
        cost = proxy.cost
        for target in _TARGETS:
            found = getattr(proxy, target)
            for statistic in _STATISTICS if found else ():
                entry: RankCorrelation = getattr(found, statistic)
                writer.writerow([
                    proxy.name, f"loss {target} training", statistic, entry.value, entry.low, entry.high, entry.note,
                    report.candidates, report.tokens, cost.flops_per_candidate, cost.seconds_per_candidate,
                    cost.shared_flops,
                ])  # fmt: skip
    return text.getvalue()


def as_table(report: ProxyReport) -> list[str]:
    """The table for a terminal, with what it means and what is undefined."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for proxy in report.proxies:
        cells = [cell for one in (proxy.after.kendall, proxy.after.spearman) for cell in (_value(one), _interval(one))]
        before = proxy.before
        cells += [_value(before.kendall), _value(before.spearman)] if before else ["", ""]
        rows.append((proxy.name, *cells, *_cost_cells(proxy.cost)))
    rows.append(("short training", *[""] * 6, *_cost_cells(report.training_cost)))
    notes = [f"{proxy.name}: {proxy.after.kendall.note}" for proxy in report.proxies if proxy.after.kendall.note]
    return [*aligned(rows), "", *_explanation(report), *notes]


def _cost_cells(cost: ProxyCost) -> tuple[str, str]:
    flops = cost.flops_per_candidate
    return format_count(flops) if flops else "0", f"{cost.seconds_per_candidate:.2f}"


def _explanation(report: ProxyReport) -> list[str]:
    lines = [
        f"Kendall's tau-b and Spearman's rho with the held-out loss after {format_count(report.tokens)} tokens of "
        f"training, over {report.candidates} candidates;",
        "1: the proxy ranks them as the training does. 95% intervals from "
        f"{report.resamples:,} resamples; 'before': with the loss before training.",
    ]
    if sizes := [proxy.name for proxy in report.proxies if proxy.name in QUANTITIES]:
        lines.append(f"{', '.join(sizes)}: size alone; a proxy has to do better.")
    if shared := [proxy for proxy in report.proxies if proxy.cost.shared_flops]:
        costs = ", ".join(f"{proxy.name} {format_count(proxy.cost.shared_flops)}" for proxy in shared)
        lines.append(f"FLOPs once for all candidates besides: {costs}.")
    lines += [f"trial {one.trial} is left out, its training failed: {one.error}" for one in report.failed]
    return lines


def _value(entry: RankCorrelation) -> str:
    return "undefined" if entry.value is None else f"{entry.value:+.2f}"


def _interval(entry: RankCorrelation) -> str:
    return "" if entry.low is None else f"{entry.low:+.2f}..{entry.high:+.2f}"
