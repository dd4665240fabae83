"""The parts that every report ends with: what it ran on, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from slm_ray.report.content import Block, Code, Fold, Section, Table, Text
from slm_ray.report.text import MISSING


def environment_section(environment: Mapping[str, Any], options: Mapping[str, Any]) -> Section:
    """What a run ran on, and its options."""
    rows = []
    for name, value in ((name, value) for name, value in environment.items() if name != "version"):
        shown = ", ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, Mapping) else value
        rows.append((str(name).replace("_", " "), MISSING if shown is None else str(shown)))
    facts: Block = Table("Environment", ("what", "which"), tuple(rows)) if rows else Text("Not recorded.")
    given = Code(json.dumps(options, indent=2, ensure_ascii=False, default=str), "json")
    return Section("What it ran on", [Fold("Environment", [facts]), Fold("Config", [given])])


def reproduce_section(command: str | None, steps: list[tuple[str, str]] | None = None) -> Section:
    """The command that made a run, and what can be done next, each with its code."""
    first: Block = Code(command, "sh") if command else Text("The command was not recorded.")
    return Section("How to reproduce", [first, *(Code(text, title=title) for title, text in steps or [])])
