"""What a search's shortcuts cost: each against what it stands for, from the audit's records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm_ray.config.units import format_count
from slm_ray.report.blocks import Block, Drawing, Fold, Rows, Section, Words
from slm_ray.report.matching import format_flops
from slm_ray.report.model import RunRecords
from slm_ray.report.panels import Panel, PanelPoint, panels_data
from slm_ray.report.records import interval_of, items, mapping, number
from slm_ray.report.tables import Table, without_empty_columns
from slm_ray.report.wording import MISSING, count_text

TITLE = "What the shortcuts cost"
_LEAD = (
    "Most of what a search computes stands for something dearer. Kendall's tau and Spearman's rho say how far each "
    "shortcut ranks candidates as that does: 1 is the same order, 0 none. Ranges are 95% intervals from resampling "
    "candidates. Parameters are size alone: a shortcut has to do better."
)
_AGAINST = {
    "full": "loss on all calibration tokens", "trained": "loss after training", "held-out": "held-out loss",
    "fp32": "the same in fp32", "recorded": "what was then measured",
}  # fmt: skip
_SHOWN_IN_SUMMARY = ("stage", "scores", "prices", "objective", "size")


def _against(entry: Mapping[str, Any]) -> str:
    name = str(entry.get("against"))
    return _AGAINST.get(name, name)


def _correlation(entry: Mapping[str, Any], statistic: str) -> str:
    found = mapping(entry.get(statistic))
    value, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return str(found.get("note") or MISSING)
    return f"{value:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if low is not None and high is not None else "")


def fidelity_table(run: RunRecords) -> Table:
    """A row per shortcut and what it is set against."""
    rows = []
    for entry in items(run.fidelity.get("shortcuts")):
        cost = mapping(entry.get("cost"))
        tokens, flops, shared = (
            number(cost.get(key)) for key in ("tokens_per_candidate", "flops_per_candidate", "shared_flops")
        )
        rows.append((
            str(entry.get("shortcut")), _against(entry), count_text(number(entry.get("candidates"))),
            _correlation(entry, "kendall"), _correlation(entry, "spearman"),
            format_count(tokens) if tokens else MISSING, format_flops(flops) if flops else MISSING,
            format_flops(shared) if shared else MISSING,
        ))  # fmt: skip
    header = (
        "shortcut", "against", "candidates", "tau", "rho", "tokens/candidate", "FLOPs/candidate", "FLOPs once"
    )  # fmt: skip
    return without_empty_columns(Table(TITLE, header, tuple(rows)))


def race_sentence(run: RunRecords) -> str | None:
    """How many candidates the race stopped wrongly; None where nothing was raced or looked at."""
    race = mapping(run.fidelity.get("race"))
    stopped, audited, wrong = (number(race.get(key)) for key in ("stopped", "audited", "wrong"))
    if stopped is None or not audited or wrong is None:
        return None
    low, high = interval_of(race.get("wrong_share_interval"))
    of_all = f" ({100 * low:.0f}% to {100 * high:.0f}% of all)" if low is not None and high is not None else ""
    median, largest = number(race.get("median_miss")), number(race.get("largest_difference"))
    off = "" if median is None or largest is None else (
        f" Half of their losses had been estimated to within {median:.3f} nats per token, all to within {largest:.3f}."
    )  # fmt: skip
    return (
        f"{stopped:,.0f} candidates were stopped early. Of {audited:.0f} that were then measured to the end, "
        f"{wrong:.0f} would have been on the front{of_all}.{off}"
    )


def _precision_sentence(run: RunRecords) -> str | None:
    found = mapping(run.fidelity.get("precision"))
    audited, median, largest = (number(found.get(key)) for key in ("audited", "median_miss", "largest_difference"))
    if not audited or median is None or largest is None:
        return None
    tokens = number(found.get("tokens"))
    text = f" on {tokens:,.0f} tokens" if tokens else ""
    return (
        f"{audited:.0f} candidates were measured again in fp32{text}: {found.get('computed_in')} had half of their "
        f"losses to within {median:.4f} nats per token, all to within {largest:.4f}."
    )


def _cost_sentence(run: RunRecords) -> str | None:
    spent = mapping(run.fidelity.get("spent"))
    models, tokens, flops = (number(spent.get(key)) for key in ("models", "tokens", "flops"))
    if models is None or tokens is None or flops is None:
        return None
    return (
        f"The audit measured {models:.0f} candidates on {format_count(tokens)} tokens in all, {format_flops(flops)} "
        "FLOPs, which are part of what was spent."
    )


def _panel(entry: Mapping[str, Any]) -> Panel:
    is_size, name = entry.get("kind") == "size", str(entry.get("shortcut"))
    points = []
    given = entry.get("points")
    for point in given if isinstance(given, list) else ():
        if not isinstance(point, list) or len(point) != 3:
            continue
        x, y = number(point[1]), number(point[2])
        if x is not None and y is not None:
            x = -x if is_size else x
            shown = count_text(x) if is_size else f"{x:.4g}"
            points.append(PanelPoint(x, y, f"trial {point[0]}", (f"{name}: {shown}", f"{_against(entry)}: {y:.4f}")))
    label = _against(entry)
    return Panel(name, f"tau {_correlation(entry, 'kendall')}", name, label[0].upper() + label[1:], tuple(points))


def fidelity_panels(run: RunRecords) -> list[Panel]:
    """A small picture per shortcut and what it is set against; those with fewer than three points are left out."""
    panels = [_panel(entry) for entry in items(run.fidelity.get("shortcuts"))]
    return [panel for panel in panels if len(panel.points) >= 3]


def fidelity_section(run: RunRecords, key: str = "fidelity") -> Section:
    """The table, what the race and the precision got wrong, and a picture of each; empty where nothing was audited."""
    table = fidelity_table(run)
    if not table.rows:
        return Section(TITLE, [])
    said = [text for text in (race_sentence(run), _precision_sentence(run)) if text]
    blocks: list[Block] = [Rows(table), *(Words(text) for text in said)]
    if panels := fidelity_panels(run):
        blocks.append(Fold("Candidate by candidate", [Drawing(key, "panels", panels_data(panels))]))
    if cost := _cost_sentence(run):
        blocks.append(Words(cost, small=True))
    return Section(TITLE, blocks, _LEAD)


def fidelity_line(run: RunRecords) -> str | None:
    """The audit in one line of a terminal; None where nothing was audited."""
    parts = []
    for entry in items(run.fidelity.get("shortcuts")):
        value = number(mapping(entry.get("kendall")).get("value"))
        if value is not None and entry.get("against") == "full" and entry.get("kind") in _SHOWN_IN_SUMMARY:
            parts.append(f"{entry.get('shortcut')} {value:+.2f}")
    race = mapping(run.fidelity.get("race"))
    audited, wrong = number(race.get("audited")), number(race.get("wrong"))
    said = [f"tau with the full loss: {', '.join(parts)}"] if parts else []
    if audited and wrong is not None:
        said.append(f"{wrong:.0f} of {audited:.0f} stopped candidates looked at again belong on the front")
    return f"Shortcuts: {'; '.join(said)}" if said else None
