"""The preference table as text and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.config.columns import aligned

_COLUMNS = (
    "model", "other", "wins", "ties", "losses", "both_bad", "ratings", "prompts", "raters", "same_text", "win_rate",
    "interval_low", "interval_high", "interval_by", "verdict",
)  # fmt: skip
UNKNOWN = "–"


def preferences_csv(table: Mapping[str, Any]) -> str:
    """A row per pair of models, with full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for pair in table["pairs"]:
        low, high = pair["interval"] or (None, None)
        row = dict(pair) | {"interval_low": low, "interval_high": high}
        writer.writerow([row[name] for name in _COLUMNS])
    return buffer.getvalue()


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as lines; the first ``left`` columns and the last are set left, the others right."""
    return aligned(rows, left={*range(left), len(rows[0]) - 1})


def _pair_rows(table: Mapping[str, Any]) -> list[list[str]]:
    rows = [["model", "against", "wins", "ties", "losses", "prompts", "win rate", "95% interval", ""]]
    for pair in table["pairs"]:
        rate, interval = UNKNOWN, UNKNOWN
        if pair["win_rate"] is not None:
            rate, interval = _percent(pair["win_rate"]), " to ".join(map(_percent, pair["interval"]))
        counts = [str(pair[name]) for name in ("wins", "ties", "losses", "prompts")]
        rows.append([pair["model"], pair["other"], *counts, rate, interval, pair["verdict"] or "not rated"])
    return rows


def _strength_lines(strengths: Mapping[str, Any]) -> list[str]:
    if strengths["models"] is None:
        return ["", strengths["note"]]
    rows = [["model", "log-strength", "95% interval", ""]]
    for one in strengths["models"]:
        interval = " to ".join(f"{end:+.2f}" for end in one["interval"]) if one["interval"] else UNKNOWN
        rows.append([one["model"], f"{one['log_strength']:+.2f}", interval, ""])
    return ["", "Bradley-Terry strengths:", *_aligned(rows, 1), f"({strengths['note']})"]


def _agreement_line(agreement: Mapping[str, Any]) -> str:
    if agreement["raters"] < 2:
        return "one rater: agreement is not known"
    names = {"krippendorff_alpha": "Krippendorff's alpha", "cohen_kappa": "Cohen's kappa"}
    known = [f"{name} {agreement[field]:.2f}" for field, name in names.items() if agreement[field] is not None]
    shared = f"{agreement['rated_by_several']} comparisons rated by several of {agreement['raters']} raters"
    return f"{shared}: {', '.join(known) or 'agreement beyond chance cannot be told from these'}"


def preferences_text(table: Mapping[str, Any]) -> str:
    """The table for people."""
    lines = [f"{table['ratings']} ratings of {table['comparisons']} comparisons", ""]
    lines += _aligned(_pair_rows(table), 2)
    lines.append("(a tie, good or bad, is half a win; a difference is sure where the interval is clear of 50%)")
    bad = sum(pair["both_bad"] for pair in table["pairs"])
    same = sum(pair["same_text"] for pair in table["pairs"])
    if bad:
        lines.append(f"{bad} of the ties: both bad")
    if same:
        lines.append(f"not shown and not counted: {same} times two models wrote the same text")
    if table["strengths"]:
        lines += _strength_lines(table["strengths"])
    return "\n".join([*lines, "", _agreement_line(table["agreement"])]) + "\n"
