"""The results of an evaluation as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.core.units import format_count
from slm_ray.report.records import number
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING, count_text, perplexity_text

RESULT_FILE = "evaluate.json"


def _with_error(value: float | None, stderr: float | None, digits: int) -> str:
    if value is None:
        return MISSING
    return f"{value:.{digits}f}" + ("" if stderr is None else f" ± {stderr:.{digits}f}")


def short_names(names: Sequence[str]) -> list[str]:
    """Names of folders without what all of them share at the front, as long as they stay different."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts] if len(names) > 1 else list(names)


def _difference(row: Mapping[str, Any]) -> str:
    found = row.get("difference")
    if not isinstance(found, Mapping):
        return MISSING
    value, stderr = number(found.get("difference")), number(found.get("stderr"))
    if value is None:
        return MISSING
    of = "" if found.get("quantity") == "loss" else " bits/byte"
    digits = max(4, 1 - math.floor(math.log10(stderr))) if stderr else 4
    text = f"{value:+.{digits}f}" + ("" if stderr is None else f" ± {stderr:.{digits}f}")
    return f"{text}{of}, {found.get('verdict')}"


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """One row per model; ± is one standard error."""
    rows = [row for row in result.get("models") or [] if isinstance(row, Mapping)]
    names = short_names([str(row.get("name")) for row in rows])
    header = ("model", "parameters", "loss", "perplexity", "bits per byte", "against the first")
    body = tuple(
        (
            name,
            count_text(number(row.get("params"))),
            _with_error(number(row.get("loss")), number(row.get("loss_stderr")), 4),
            perplexity_text(number(row.get("perplexity")), number(row.get("perplexity_stderr"))),
            _with_error(number(row.get("bits_per_byte")), number(row.get("bits_per_byte_stderr")), 4),
            _difference(row),
        )
        for name, row in zip(names, rows, strict=True)
    )
    return Table("On the same held-out text", header, body)


def evaluation_lead(result: Mapping[str, Any]) -> str:
    """What was measured, in one or two sentences."""
    rows = [row for row in result.get("models") or [] if isinstance(row, Mapping)]
    if not rows:
        return "Nothing was measured."
    counts = {int(row.get("tokens") or 0) for row in rows}
    tokens = " to ".join(format_count(count) for count in sorted({min(counts), max(counts)}))
    text = (
        f"Held-out text of {result.get('data')}, {tokens} tokens, documents {result.get('documents')}, "
        f"{result.get('precision')}. ± is one standard error over sequences; differences are of the same sequences, "
        "and those inside 2 standard errors are within the noise."
    )
    if len({row.get("tokenizer") for row in rows}) > 1:
        text += " The tokenizers differ: losses and perplexities are per token of each, bits per byte can be compared."
    return text


def evaluation_text(result: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    table = evaluation_table(result)
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([evaluation_lead(result), "", *lines])
