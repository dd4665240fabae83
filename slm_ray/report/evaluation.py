"""The report of an evaluation, from its records alone: the text for a terminal, and the files of its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.columns import aligned
from slm_ray.records.files import write_bytes, write_text
from slm_ray.report.evaluation_page import EVALUATION_PICTURE, evaluation_markdown, evaluation_page
from slm_ray.report.evaluation_plot import draw_evaluation
from slm_ray.report.evaluation_records import EvaluationRecords, load_evaluation, parse_evaluation
from slm_ray.report.evaluation_tables import (
    DIFFERENCE_KINDS,
    differences_lead,
    differences_table,
    efficiency_lead,
    efficiency_table,
    generation_lead,
    generation_table,
    models_table,
    speed_table,
    text_lead,
    text_table,
)
from slm_ray.report.evaluation_tasks import task_rows, tasks_by_model, tasks_lead
from slm_ray.report.tables import Table

__all__ = [
    "EvaluationRecords", "evaluation_text", "load_evaluation", "parse_evaluation", "write_evaluation",
    "write_evaluation_report",
]  # fmt: skip


def _aligned(table: Table) -> list[str]:
    """A table for a terminal: texts to the left, figures to the right."""
    columns = range(len(table.header))
    texts = {place for place in columns if any(row[place][:1] not in "0123456789–+-" for row in table.rows)}
    return aligned([table.header, *table.rows], left=texts)


def _without_members(run: EvaluationRecords) -> EvaluationRecords:
    """Without the differences of tasks that a group stands for: they would fill the terminal."""
    members = {row.name for row in task_rows(run) if row.kind == "member"}
    return dataclasses.replace(run, differences=tuple(d for d in run.differences if d.of not in members))


def evaluation_text(result: Mapping[str, Any]) -> str:
    """The tables of an evaluation for a terminal.

    Args:
        result: What ``evaluate.json`` says.
    """
    run = parse_evaluation(result)
    generation = any(model.generation for model in run.models)
    parts: Sequence[tuple[str, list[Table]]] = [
        ("", [models_table(run)]),
        (text_lead(run), [text_table(run)]),
        (tasks_lead(run), [tasks_by_model(run)]),
        (generation_lead(run), [generation_table(run)] if generation else []),
        (efficiency_lead(run), [efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode")]),
        (differences_lead(run), [differences_table(_without_members(run), kind) for kind in DIFFERENCE_KINDS]),
    ]
    lines: list[str] = []
    for lead, tables in parts:
        shown = [table for table in tables if table.rows]
        if not shown:
            continue
        lines += [lead] if lead else []
        for table in shown:
            lines += [f"{table.title}:", *_aligned(table), ""]
    lines += [f"note: {note}" for note in run.notes]
    return "\n".join(lines).rstrip() or "Nothing was measured."


def write_evaluation(run: EvaluationRecords, folder: Path) -> list[Path]:
    """Make ``evaluation.png``, ``report.md`` and ``report.html`` from records already read.

    Raises:
        UserError: They cannot be written.
    """
    paths = [folder / name for name in (EVALUATION_PICTURE, "report.md", "report.html")]
    write_bytes(paths[0], draw_evaluation(run))
    write_text(paths[1], evaluation_markdown(run))
    write_text(paths[2], evaluation_page(run))
    return paths


def write_evaluation_report(folder: Path) -> list[Path]:
    """Make ``evaluation.png``, ``report.md`` and ``report.html`` in an evaluation's folder, from its records alone.

    Args:
        folder: The evaluation's folder, of one that has finished or not.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no evaluation, or cannot be written.
    """
    return write_evaluation(load_evaluation(folder), folder)
