"""The model card of a model whose vocabulary was extended and that was not trained since."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from slm_ray.config.redact import redact
from slm_ray.config.units import format_count
from slm_ray.config.version import VERSION
from slm_ray.report.markdown import code_block, markdown_table
from slm_ray.report.public_name import public_name
from slm_ray.report.records import mapping, number
from slm_ray.report.steps import load_code
from slm_ray.report.tables import Table
from slm_ray.report.training_card import KINDS, card_front_matter, facts


def _vocabulary_table(vocabulary: Mapping[str, Any], teacher: Mapping[str, Any]) -> Table:
    rates = mapping(vocabulary.get("bytes_per_token"))
    before, after = number(rates.get("before")), number(rates.get("after"))
    added, rows = number(vocabulary.get("new_tokens")), number(vocabulary.get("rows"))
    corpus = f"{public_name(vocabulary.get('corpus'))}, digest {vocabulary.get('corpus_digest') or 'not known'}"
    return facts("Lineage", (
        ("model", public_name(vocabulary.get("model"))),
        ("new tokens", format_count(added) if added is not None else None),
        ("first new token", vocabulary.get("first_new")),
        ("rows of the embedding", format_count(rows) if rows is not None else None),
        ("text", corpus),
        ("bytes per token before", f"{before:.2f}" if before is not None else None),
        ("bytes per token now", f"{after:.2f}" if after is not None else None),
        ("cut from", f"{public_name(teacher.get('name'))}, digest {teacher.get('digest')}" if teacher else None),
        ("teacher's licence", (teacher.get("licence") or "not recorded") if teacher else None),
    ))  # fmt: skip


def vocabulary_card(
    vocabulary: Mapping[str, Any], lineage: Mapping[str, Any], *, remote_code: bool, command: str | None = None,
    path: str = "path/to/this/folder", date: str | None = None,
) -> str:  # fmt: skip
    """The README.md of a model with new tokens.

    Args:
        vocabulary: What was done: ``model``, ``corpus``, ``corpus_digest``, ``first_new``, ``new_tokens``, ``rows`` and
            ``bytes_per_token`` (``before``, ``after``).
        lineage: The lineage of the model it was; empty where there is none.
        remote_code: It needs ``trust_remote_code=True`` where slm_ray is not installed.
        command: The command line.
        path: The path to show in the loading example.
        date: The day it was made, as ``2026-11-21``; today by default.
    """
    teacher = mapping(lineage.get("teacher"))
    table = _vocabulary_table(vocabulary, teacher)
    limits = (
        "The rows of new tokens are means of the rows of what each was written with before: a start for training, not "
        "a trained vocabulary. Until it is trained on text with them, the model writes worse than the one it was. It "
        "shares that model's biases and limits, and its licence applies."
    )
    day = date or datetime.now(UTC).strftime("%Y-%m-%d")
    parts = [
        f"# A language model with {number(vocabulary.get('new_tokens')) or 0:,.0f} new tokens",
        "A language model whose vocabulary slm_ray extended; **not trained afterwards**.",
        "## How to load it", KINDS[remote_code], code_block(load_code(path, remote_code), "python"),
        f"## {table.title}", markdown_table(table), "## Limits", limits,
        "## How it was made", code_block(command or "(the command was not recorded)", "sh"),
        f"With slm_ray {VERSION}, on {day} (UTC).",
    ]  # fmt: skip
    return redact(card_front_matter(teacher, ["slm_ray", "text-generation"]) + "\n" + "\n\n".join(parts) + "\n")
