"""The front as a file of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from slm_ray.records.budget import QUANTITIES
from slm_ray.records.files import write_text
from slm_ray.report.model import RunRecords
from slm_ray.report.tables import teacher_perplexity

_CSV_COLUMNS = (
    "winner", "trial", "digest", "params", "share_of_teacher", "flops_per_token", "kv_bytes_per_token",
    "calibration_perplexity", "held_out_perplexity", "held_out_stderr", "ratio_to_teacher", "num_layers", "hidden_size",
    "source_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
)  # fmt: skip


def _csv_cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def front_csv(run: RunRecords) -> str:
    """The front as comma-separated values with full precision; lists are separated by spaces."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    teacher_params = run.teacher.params if run.teacher else None
    for model in run.front:
        shape, reference = model.shape, teacher_perplexity(run, model)
        sizes: Sequence[object] = [None] * 6
        if shape:
            sizes = [shape.num_layers, shape.hidden_size, shape.source_layers, shape.num_attention_heads]
            sizes = [*sizes, shape.num_key_value_heads, shape.intermediate_size]
        share = model.params / teacher_params if model.params is not None and teacher_params else None
        ratio = model.perplexity / reference if model.perplexity is not None and reference else None
        costs = [model.cost_of(quantity) for quantity in QUANTITIES]
        row = [
            model.winner,
            model.trial,
            model.detail("digest"),
            costs[0],
            share,
            *costs[1:],
            model.calibration_perplexity,
        ]
        row += [model.held_out_perplexity, model.held_out_stderr, ratio, *sizes]
        writer.writerow([_csv_cell(value) for value in row])
    return buffer.getvalue()


def write_front_csv(run: RunRecords, path: Path) -> None:
    """Write :func:`front_csv` to a file.

    Raises:
        UserError: The file cannot be written.
    """
    write_text(path, front_csv(run))
