"""An evaluation from its options to its results."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm_ray.core.digest import digest_json
from slm_ray.core.environment import describe_environment
from slm_ray.core.errors import UserError
from slm_ray.core.files import read_json, write_json, write_text
from slm_ray.core.progress import Console
from slm_ray.data import TokenShards, load_corpus, tokenizer_digest
from slm_ray.evaluate.command import EvaluateConfig
from slm_ray.evaluate.compare import Measured, compare
from slm_ray.evaluate.held_out import held_out_loss
from slm_ray.evaluate.models import LoadedModel, ModelFolder, find_model, load_tokenizer
from slm_ray.evaluate.text import held_out_shards
from slm_ray.models.precision import choose_precision
from slm_ray.report.evaluation import evaluation_text

RESULT_FILE, TABLE_FILE, MODELS_FOLDER = "evaluate.json", "table.txt", "models"


def evaluate(config: EvaluateConfig, out: Path, command: str) -> dict[str, Any]:
    """Measure every model that is not measured yet, and compare all with the first.

    Args:
        config: The options.
        out: Where results go; results of earlier calls are found there by model and settings.
        command: The command line, for the record.

    Returns:
        What ``evaluate.json`` says.

    Raises:
        UserError: A model or the text cannot be used; what was measured is kept.
    """
    console = Console()
    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    precision = choose_precision(config.precision, device.type)
    models = [find_model(name) for name in config.models()]
    texts = _texts(config, models, out, console)
    records = [
        _record(config, model, shards, precision, device, out, console)
        for model, shards in zip(models, texts, strict=True)
    ]
    result = _result(config, command, precision, device, records)
    write_json(out / RESULT_FILE, result)
    text = evaluation_text(result)
    write_text(out / TABLE_FILE, text + "\n")
    print(text)
    console.line(f"results: {out / RESULT_FILE}")
    return result


def _device(name: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda is given, but this machine has no GPU that torch can use: give --device cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def _texts(config: EvaluateConfig, models: list[ModelFolder], out: Path, console: Console) -> list[TokenShards]:
    """The held-out tokens of each model: the first one's tokenizer decides how much text is read."""
    corpus = load_corpus(config.data, config.text_field, console)
    found: dict[str, TokenShards] = {}
    texts: list[TokenShards] = []
    for model in models:
        tokenizer = load_tokenizer(model)
        digest = tokenizer_digest(tokenizer)
        if digest not in found:
            found[digest] = held_out_shards(
                corpus, tokenizer, out, eval_tokens=config.eval_tokens, sequence_length=config.sequence_length,
                num_bytes=texts[0].num_bytes if texts else None, console=console,
            )  # fmt: skip
        texts.append(found[digest])
    return texts


def _keeping(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def keep(sums: torch.Tensor) -> torch.Tensor:
        kept.append(sums)
        return sums

    return keep


def _record(
    config: EvaluateConfig, model: ModelFolder, shards: TokenShards, precision: str, device: torch.device, out: Path,
    console: Console,
) -> dict[str, Any]:  # fmt: skip
    """One model's sums per sequence, measured now or read."""
    settings = {
        "model": model.digest, "tokens": shards.digest, "documents": config.documents, "precision": precision,
        "device": device.type,
    }  # fmt: skip
    path = out / MODELS_FOLDER / f"{digest_json(settings)}.json"
    if path.exists():
        console.line(f"{model.name}: measured before")
        return dict(read_json(path)) | {"name": model.name}
    separate = config.documents == "separate"
    loaded = LoadedModel(model, precision, device)
    loaded.check_fits(shards.sequence_length, _largest_id(shards), separate=separate)
    start, kept = time.perf_counter(), list[torch.Tensor]()
    # What is to be summed over workers holds every sequence's own sums, which the paired comparison needs.
    found = held_out_loss(
        loaded.losses, shards, separate=separate, batch=config.batch, device=device, reduce=_keeping(kept)
    )
    if not np.isfinite(found.loss):
        raise UserError(f"the loss of {model.name} is {found.loss}: its weights are damaged, or need --precision fp32")
    seconds = time.perf_counter() - start
    record = {
        "name": model.name, "settings": settings, "params": loaded.params, "bits_per_byte": found.bits_per_byte,
        "bytes": shards.num_bytes, "tokenizer": shards.tokenizer_digest, "seconds": round(seconds, 3),
        "losses": kept[0][0].tolist(), "counts": kept[0][1].tolist(),
    }  # fmt: skip
    write_json(path, record)
    console.line(f"{model.name}: loss {found.loss:.4f} on {found.tokens:,} tokens, {seconds:.1f} s")
    return record


def _largest_id(shards: TokenShards) -> int:
    return max(int(shards.rows(np.arange(i, i + 1)).max()) for i in range(shards.num_sequences))


def _result(
    config: EvaluateConfig, command: str, precision: str, device: torch.device, records: list[dict[str, Any]]
) -> dict[str, Any]:
    measured = [
        Measured(
            record["name"], record["settings"]["tokens"], np.array(record["losses"]), np.array(record["counts"]),
            record["bits_per_byte"],
        )
        for record in records
    ]  # fmt: skip
    rows = []
    for record, found in zip(records, measured, strict=True):
        row = {"name": record["name"], "digest": record["settings"]["model"], "params": record["params"]}
        row["tokens_digest"] = record["settings"]["tokens"]
        row |= found.figures() | {"bytes": record["bytes"], "tokenizer": record["tokenizer"]}
        difference = None if found is measured[0] else compare(found, measured[0])
        rows.append(row | {"seconds": record["seconds"], "difference": difference})
    return {
        "command": command, "data": config.data, "documents": config.documents, "precision": precision,
        "device": device.type, "sequence_length": config.sequence_length, "environment": describe_environment(),
        "models": rows,
    }  # fmt: skip
