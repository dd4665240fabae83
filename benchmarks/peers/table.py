"""The table of all rows that are there, from their files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.study import PEERS
from slm_ray.config.units import format_count, format_seconds
from slm_ray.evaluate.compare import WITHIN_NOISE, compare_text
from slm_ray.records.files import read_json
from slm_ray.records.measurement import TextRecord

TITLES = {"minitron": "Minitron-like", "shortgpt": "ShortGPT-like", "random": "random sub-network",
          "first-n": "first layers"}  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)) if path.is_file() else None


def _perplexity(record: Mapping[str, Any] | None, text: str) -> float | None:
    if record is None or text not in record["texts"]:
        return None
    found = record["texts"][text]
    return math.exp(min(700.0, sum(found["losses"]) / sum(found["counts"])))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")


def _against_ours(mine: Mapping[str, Any], ours: Mapping[str, Any] | None, text: str) -> str:
    """The difference of a row's loss to ours on the same sequences, with its interval."""
    if mine is ours or ours is None or text not in mine["texts"] or text not in ours["texts"]:
        return ""
    found = compare_text(("it", "ours"), *(TextRecord.model_validate(one["texts"][text]) for one in (mine, ours)))
    if found.low is None or found.high is None:
        return f"{found.difference:+.3f}"
    noise = " (within the noise)" if found.verdict == WITHIN_NOISE else ""
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{noise}"


def render(out: Path, tokens: int) -> str:
    """Markdown tables: before any training, and after it."""
    files = {"start": "start.json", "before": "before.json", "after": f"after-{tokens}.json"}
    rows = {name: {kind: _read(out / "rows" / name / file) for kind, file in files.items()} for name in PEERS}
    teacher, options = _read(out / "teacher.json"), _read(out / "options.json") or {}
    texts = list(teacher["texts"]) if teacher else []
    lines = [f"{options.get('teacher')}, at most {options.get('share', 0):.0%} of its parameters"]
    if teacher:
        lines[0] += f", {teacher['precision']}; the teacher's perplexity: " + ", ".join(
            f"{_number(_perplexity(teacher, name))} on {name} ({sum(teacher['texts'][name]['counts']):,.0f} tokens)"
            for name in texts
        )

    def table(title: str, kind: str, more: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        found = [(name, row["start"], row[kind]) for name, row in rows.items() if row["start"] and row[kind]]
        if found:
            columns = " | ".join(f"{text} | × teacher | loss less ours" for text in texts)
            head = f"| {title} | {columns} | {more} |"
            lines.extend(["", head, "|---" * (head.count("|") - 1) + "|"])
        return found

    def cells(record: Mapping[str, Any], kind: str) -> str:
        found = []
        for text in texts:
            value, whole = _perplexity(record, text), _perplexity(teacher, text)
            times = "" if value is None or whole is None else f"{_number(value / whole)}×"
            found.append(f"{_number(value)} | {times} | {_against_ours(record, rows['ours'][kind], text)}")
        return " | ".join(found)

    for name, start, record in table("before training | parameters", "before", "time to choose | FLOPs"):
        lines.append(f"| {TITLES.get(name, name)} | {format_count(start['params'])} | {cells(record, 'before')} | "
                     f"{format_seconds(start['seconds'])} | {start['flops'] / 1e12:.1f}T |")  # fmt: skip
    more = "training | FLOPs, the teacher's with them | FLOPs in all"
    for name, start, record in table("after training | tokens | rate", "after", more):
        whole = record["flops"] + start["flops"]
        lines.append(f"| {TITLES.get(name, name)} | {record['tokens']:,} | {record['rate']:g} | "
                     f"{cells(record, 'after')} | {format_seconds(record['seconds'])} | "
                     f"{record['flops'] / 1e12:.1f}T | {whole / 1e12:.1f}T |")  # fmt: skip
    return "\n".join(lines) + "\n"
