"""What a finished run leaves: a model folder and a result for each student, a table, the comparison of starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_count, format_seconds, perplexity_of_loss
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.lineage import description_files
from slm_ray.pretrain.recorder import EVALS_FILE
from slm_ray.pretrain.state_files import WEIGHTS_FILE, copy_static_files
from slm_ray.pretrain.tracking import track_results
from slm_ray.records.files import read_json, whole_folder, write_json, write_text
from slm_ray.records.jsonl import read_records
from slm_ray.report import build_training_report
from slm_ray.report.matching import Curve, make_curve, table
from slm_ray.runtime.progress import Console

RESULT_FILE, STATUS_FILE, MODEL_FILE = "result.json", "status.json", "model.json"
EXPORT_FOLDER = "model"


def export_checkpoint(
    storage: str, folder: Path, step: int | None = None, of: Path | None = None, config: Mapping[str, Any] | None = None
) -> int:
    """Write a checkpoint's weights as a plain Hugging Face folder.

    Args:
        storage: Where the checkpoints are.
        folder: What is written; replaced if it is there.
        step: Which one; the newest by default.
        of: The model's folder within its run, whose records give the card and the lineage; without it there are none.
        config: The options it was trained with; the run's by default.

    Returns:
        The step.

    Raises:
        UserError: There is no such checkpoint, or it is damaged.
    """
    from slm_ray.config.errors import UserError

    checkpoints = CheckpointFolder(storage)
    found = checkpoints.all()
    chosen = [checkpoint for checkpoint in found if step is None or checkpoint.step == step]
    if not chosen:
        steps = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
        raise UserError(f"{storage} has no checkpoint of step {step}: there are {steps}")
    with checkpoints.open(chosen[-1]) as source, whole_folder(folder) as temporary:
        copy_static_files(source, temporary)
        (temporary / WEIGHTS_FILE).write_bytes((source / WEIGHTS_FILE).read_bytes())
        if of is not None:
            for name, text in description_files(temporary, of, chosen[-1].step, config).items():
                write_text(temporary / name, text)
    return chosen[-1].step


def finish_model(folder: Path, job: TrainJob, run: Path) -> dict[str, Any]:
    """Export one model and write its result; what was finished before is read.

    Args:
        folder: The model's folder.
        job: Its job.
        run: The run's folder.

    Returns:
        Its result; ``status`` is ``done`` or ``failed``.
    """
    if (folder / RESULT_FILE).exists():
        return dict(read_json(folder / RESULT_FILE))
    status, model = read_json(folder / STATUS_FILE), read_json(folder / MODEL_FILE)
    evals = read_records(folder / EVALS_FILE)
    result = {
        "name": job.name, "start": model["start"], "params": model["params"], "search_flops": model["search_flops"],
        "capture_flops": job.flops["capture"], "flops_exact": model["flops_exact"],
        "checkpoints": job.storage, "begin": status["begin"], "evals": evals,
    }  # fmt: skip
    if status["failure"]:
        return result | {"status": "failed", "error": status["failure"]["message"]}
    end = status["end"]
    step = export_checkpoint(job.storage, folder / EXPORT_FOLDER, of=folder)
    result |= {"status": "done", "error": None, "model": str((folder / EXPORT_FOLDER).relative_to(run)), "step": step}
    result |= {"tokens": end["tokens"], "flops": end["flops"], "seconds": end["seconds"], "best": end["best"]}
    result |= {name: end[name] for name in ("usage", "mfu", "energy")}
    write_json(folder / RESULT_FILE, result)
    return result


def curve_of(result: dict[str, Any]) -> Curve | None:
    """A model's evaluations as a curve; None where fewer than two are finite."""
    evaluations = [
        (record["tokens"], record["flops"]["own"], record["flops"]["teacher"], record["loss"])
        for record in result["evals"]
        if record["loss"] is not None
    ]
    return make_curve(result["name"], evaluations, result["search_flops"], result["capture_flops"])


def results_table(results: list[dict[str, Any]]) -> list[str]:
    """One line per model."""
    titles = ("params", "tokens", "first ppl", "final ppl", "bits/byte", "time")
    lines = [f"{'model':32} " + " ".join(title.rjust(max(len(title), 8)) for title in titles)]
    for result in results:
        if result["status"] == "failed":
            lines.append(f"{result['name']:32} failed: {result['error']}")
            continue
        first, last = result["evals"][0], result["evals"][-1]
        lines.append(
            f"{result['name']:32} {format_count(result['params']):>8} {format_count(result['tokens']):>8} "
            f"{_perplexity(first):>9} {_perplexity(last):>9} {last['bits_per_byte'] or math.nan:>9.3f} "
            f"{format_seconds(result['seconds']):>8}"
        )
    return lines


def _perplexity(record: dict[str, Any]) -> str:
    return f"{perplexity_of_loss(record['loss']) or math.inf:.4g}"


def finish_run(
    config: PretrainConfig, folder: Path, results: list[dict[str, Any]], command: str, console: Console
) -> None:
    """Write the run's result and table, and print the table.

    Raises:
        UserError: A model failed; the others are finished.
    """
    from slm_ray.config.errors import UserError

    failed = [result for result in results if result["status"] == "failed"]
    lines = results_table(results)
    curves = [curve for result in results if result["status"] == "done" and (curve := curve_of(result))]
    if len(curves) > 1:
        lines += ["", *table(curves)]
    unknown = [result["name"] for result in results if result["search_flops"] is None]
    if unknown:
        lines += ["", f"what the search of {', '.join(unknown)} cost is not known; it is counted as 0"]
    write_text(folder / "table.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))
    if failed:
        build_training_report(folder)
        track_results(config, folder, console)
        names = ", ".join(result["name"] for result in failed)
        raise UserError(
            f"{len(failed)} of {len(results)} models failed ({names}): {failed[0]['error']}; the others are finished; "
            f"continue with --resume {folder}"
        )
    write_json(folder / RESULT_FILE, {"command": command, "models": results})
    build_training_report(folder)
    track_results(config, folder, console)
    for result in results:
        console.line(f"{result['name']}: {folder / result['model']}")
