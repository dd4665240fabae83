"""The table of all rows that are there, from their files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.options import OURS, OURS_CUT, PEERS
from slm_ray.config.units import format_count, format_seconds
from slm_ray.evaluate.compare import WITHIN_NOISE, compare_text
from slm_ray.records.files import read_json
from slm_ray.records.measurement import TextRecord

TITLES = {
    OURS: "ours", OURS_CUT: "ours, as cut out", "minitron": "Minitron-like",
    "shortgpt": "ShortGPT-like", "random": "random sub-network", "first-n": "first layers",
}  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)) if path.is_file() else None


def load_rows(out: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Name to what is known of each row: ``start``, ``before``, ``after``, ``failed``; rows without any are left out.

    ``other`` has the trainings on other numbers of tokens and at other rates, shortest first.
    """
    rows = {}
    for name in PEERS:
        folder = out / "rows" / name
        found = {"start": _read(folder / "start.json"), "before": _read(folder / "before.json"),
                 "after": _read(folder / f"after-{tokens}.json"), "failed": _read(folder / "failed.json")}  # fmt: skip
        if any(found.values()):
            rows[name] = found | {"other": _other_trainings(folder, found["after"])}
    return rows


def _other_trainings(folder: Path, chosen: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    records = [read_json(path) for path in folder.glob("after-*.json")]
    found = {(record["tokens"], record["rate"]): record for record in records if record.get("texts")}
    if chosen:
        found.pop((chosen["tokens"], chosen["rate"]), None)
    return [found[key] for key in sorted(found)]


def _perplexity(text: Mapping[str, Any] | None) -> float | None:
    if text is None:
        return None
    return math.exp(min(700.0, sum(text["losses"]) / sum(text["counts"])))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")


def _times(value: float | None, whole: float | None) -> str:
    return "" if value is None or whole is None else f"{_number(value / whole)}×"


def _against_ours(mine: Mapping[str, Any] | None, ours: Mapping[str, Any] | None, text: str) -> str:
    """The difference of a row's loss to ours on the same sequences, with its interval."""
    if mine is ours or mine is None or ours is None or text not in mine["texts"] or text not in ours["texts"]:
        return ""
    found = compare_text(("it", OURS), *(TextRecord.model_validate(one["texts"][text]) for one in (mine, ours)))
    if found.low is None or found.high is None:
        return f"{found.difference:+.3f}"
    noise = " (within the noise)" if found.verdict == WITHIN_NOISE else ""
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{noise}"


def _flops(value: float | None) -> str:
    return "" if value is None else f"{value / 1e12:.1f}T"


def render(out: Path, tokens: int) -> str:
    """Markdown tables: before any training, after it, and after other trainings, where there are such."""
    rows = load_rows(out, tokens)
    teacher = _read(out / "teacher.json")
    texts = list((teacher or next((row["before"] for row in rows.values() if row["before"]), {"texts": {}}))["texts"])
    lines = [_head(out, teacher), "", *_before(rows, texts, teacher), ""]
    lines += _after(rows, texts, teacher)
    lines += [f"{TITLES[name]}: {row['failed']['error']}" for name, row in rows.items() if row["failed"]]
    return "\n".join(lines).rstrip() + "\n"


def _head(out: Path, teacher: Mapping[str, Any] | None) -> str:
    options = _read(out / "options.json") or {}
    lead = f"{options.get('teacher')}, at most {options.get('share', 0):.0%} of its parameters"
    if teacher is None:
        return lead
    figures = ", ".join(f"{_number(_perplexity(text))} on {name} ({sum(text['counts']):,.0f} tokens)"
                        for name, text in teacher["texts"].items())  # fmt: skip
    return f"{lead}, {teacher['precision']}; the teacher's perplexity: {figures}"


def _cells(
    record: Mapping[str, Any] | None, ours: Mapping[str, Any] | None, texts: list[str],
    teacher: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """Perplexity, its ratio to the teacher's and the loss against ours, of every text."""
    cells = []
    for text in texts:
        value = _perplexity(record["texts"].get(text)) if record else None
        whole = _perplexity(teacher["texts"].get(text)) if teacher else None
        cells.append(f"{_number(value)} | {_times(value, whole)} | {_against_ours(record, ours, text)}")
    return " | ".join(cells)


def _columns(texts: list[str]) -> str:
    return " | ".join(f"{text} | × teacher | loss less ours" for text in texts)


def _before(rows: Mapping[str, Any], texts: list[str], teacher: Mapping[str, Any] | None) -> list[str]:
    lines = [f"| before training | parameters | {_columns(texts)} | time to choose | FLOPs |",
             "|---" * (4 + 3 * len(texts)) + "|"]  # fmt: skip
    ours = rows.get(OURS, {}).get("before")
    for name, row in rows.items():
        if row["start"] is None:
            continue
        start, spent = row["start"], row["start"]["spent"]
        cells = _cells(row["before"], ours, texts, teacher)
        lines.append(
            f"| {TITLES[name]} | {format_count(start['params'])} | {cells} | {format_seconds(spent['seconds'])} | "
            f"{_flops(spent['flops'])} |"
        )
    return lines


def _after(rows: Mapping[str, Any], texts: list[str], teacher: Mapping[str, Any] | None) -> list[str]:
    ours = rows.get(OURS, {}).get("after")
    trained = [(name, row["after"]) for name, row in rows.items() if row["after"]]
    others = [(name, record) for name, row in rows.items() for record in row["other"]]
    if not trained:
        return []
    lines = _trainings(f"after {trained[0][1]['tokens']:,} tokens", trained, ours, rows, texts, teacher)
    if others:
        lines += ["", *_trainings("other trainings", others, ours, rows, texts, teacher)]
    return lines


def _trainings(
    title: str, trained: list[tuple[str, Any]], ours: Mapping[str, Any] | None, rows: Mapping[str, Any],
    texts: list[str], teacher: Mapping[str, Any] | None,
) -> list[str]:  # fmt: skip
    lines = [f"| {title} | tokens | rate | {_columns(texts)} | training | FLOPs, the teacher's with them | "
             "FLOPs in all |", "|---" * (6 + 3 * len(texts)) + "|"]  # fmt: skip
    for name, after in trained:
        flops, cells = sum(after["flops"].values()), _cells(after, ours, texts, teacher)
        whole = flops + rows[name]["start"]["spent"]["flops"]
        lines.append(
            f"| {TITLES[name]} | {after['tokens']:,} | {after['rate']:g} | {cells} | "
            f"{format_seconds(after['seconds'])} | {_flops(flops)} | {_flops(whole)} |"
        )
    return lines
