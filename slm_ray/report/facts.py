"""The parts that every report ends with: what it ran on, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.report.blocks import Block, CodeText, Fold, Rows, Section, Words
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING


def facts_table(environment: Mapping[str, Any], title: str = "Environment") -> Table:
    """What ``environment.json`` says, one line per fact."""
    rows = []
    for name, value in ((name, value) for name, value in environment.items() if name != "version"):  # the schema's
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        rows.append((str(name).replace("_", " "), MISSING if shown is None else str(shown)))
    return Table(title, ("what", "which"), tuple(rows))


def environment_section(environment: Mapping[str, Any], config: Mapping[str, Any]) -> Section:
    """What a run ran on, and its options."""
    shown: list[Block] = [Rows(facts_table(environment))] if environment else [Words("Not recorded.")]
    options = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    blocks = [Fold("Environment", shown), Fold("Config", [CodeText(options, "json")])]
    return Section("What it ran on", blocks)


def reproduce_section(command: str | None, steps: Sequence[tuple[str, str]] = (), missing: str = "") -> Section:
    """The command that made a run, and what can be done next.

    Args:
        command: The command line, where it is recorded.
        steps: What to do next, each with its code.
        missing: What to say where there is no command.
    """
    first: Block = CodeText(command, "sh") if command else Words(missing or "The command was not recorded.")
    return Section("How to reproduce", [first, *(CodeText(text, title=title) for title, text in steps)])
