"""The report of a pipeline: its pretraining, with the evaluation and the other stages around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_ray.core.files import write_bytes, write_text
from slm_ray.report.evaluation import RESULT_FILE as EVALUATION_FILE
from slm_ray.report.records import mapping, number, read_part
from slm_ray.report.training import Level, TrainingRecords, load_training
from slm_ray.report.training_page import Around, stages_table, training_markdown, training_page
from slm_ray.report.training_plot import draw_training

STATE_FILE = "pipeline.json"
_STAGES = ("search", "logits", "pretrain", "evaluate")
_REPORTS = {"The search": "search/report.html", "The pretraining": "pretrain/report.html"}


def _teacher_level(evaluation: Mapping[str, Any] | None, state: Mapping[str, Any], notes: list[str],
                   folder: Path) -> Level | None:  # fmt: skip
    """The teacher's loss, where it was evaluated on the tokens that training curves are measured on."""
    teacher = state.get("teacher")
    inputs = read_part(folder / "pretrain" / "inputs.json", notes) or {}
    for row in (evaluation or {}).get("models") or []:
        same = isinstance(row, Mapping) and row.get("tokens_digest") == inputs.get("held_out_tokens")
        if same and row.get("name") == teacher and (loss := number(row.get("loss"))) is not None:
            return Level(f"teacher {teacher}", loss)
    return None


def load_pipeline(folder: Path) -> tuple[TrainingRecords, Around]:
    """Read a pipeline's folder as far as it goes.

    Args:
        folder: What the pipeline was given as ``--out``.

    Raises:
        UserError: It has no pretraining yet.
    """
    notes: list[str] = []
    state = read_part(folder / STATE_FILE, notes) or {}
    evaluation = None
    if (folder / "evaluate" / EVALUATION_FILE).exists():
        evaluation = read_part(folder / "evaluate" / EVALUATION_FILE, notes)
    level = _teacher_level(evaluation, state, notes, folder)
    run = load_training(folder / "pretrain", level)
    command = state.get("command")
    around = Around(
        title=f"Pipeline of {state.get('teacher') or 'its teacher'}",
        command=str(command) if command else None,
        stages=stages_table(mapping(state.get("stages")), _STAGES),
        evaluation=evaluation,
        links={text: address for text, address in _REPORTS.items() if (folder / address).is_file()},
    )
    return replace(run, notes=(*run.notes, *notes)), around


def write_pipeline_report(folder: Path, run: TrainingRecords, around: Around) -> list[Path]:
    """Make ``training.png``, ``report.md`` and ``report.html`` in the pipeline's folder.

    Raises:
        UserError: They cannot be written.
    """
    paths = [folder / name for name in ("training.png", "report.md", "report.html")]
    write_bytes(paths[0], draw_training(run))
    write_text(paths[1], training_markdown(run, around))
    write_text(paths[2], training_page(run, around))
    return paths
