"""One row: its model made, measured, trained at the best of a few rates, and measured again, each step kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine_line
from benchmarks.peers.options import OURS_CUT
from benchmarks.peers.starts import make_start
from benchmarks.peers.study import Study
from benchmarks.peers.training import forget, train
from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.models import LoadedModel, find_model
from slm_ray.evaluate.text_loss import measure_packed
from slm_ray.models.extraction import save_student
from slm_ray.records.files import read_json, write_json

TEACHER = "teacher"
NOT_TRAINED = (OURS_CUT,)  # shown for what its weights are worth before training
_BATCH = 4
_DECIDES = "calibration"  # the text that decides between rates


def row_folder(study: Study, name: str) -> Path:
    """Where a row's files are."""
    return study.out / "rows" / name


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a step found, from its file, or made now."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def measure(study: Study, folder: Path | str, texts: Mapping[str, TokenShards]) -> dict[str, Any]:
    """A model's losses on some texts, by ``slm_ray.evaluate``'s own measurement.

    Args:
        study: Threads and precision.
        folder: The model's folder, or name.
        texts: Tokens by name.
    """
    loaded = LoadedModel(find_model(str(folder)), study.precision, torch.device("cpu"))
    found = {}
    for name, shards in texts.items():
        header = {"name": name, "key": "", "settings": {}, "model": str(folder), "params": loaded.params, "seconds": 0}
        record = measure_packed(loaded, shards, header, separate=True, batch=_BATCH, say=lambda line: None)
        found[name] = record.to_json()
    return {"params": loaded.params, "precision": study.precision, "texts": found}


def mean_of(record: Mapping[str, Any]) -> float:
    """Mean loss of a text's record, nats per token."""
    return float(sum(record["losses"]) / sum(record["counts"]))


def measure_teacher(study: Study) -> dict[str, Any]:
    """The teacher's own figures."""
    return dict(kept(study.out / "teacher.json", lambda: measure(study, study.options.teacher, study.texts)))


def make_row(study: Study, name: str) -> None:
    """Make what is missing of a row.

    Raises:
        UserError: Something of it cannot be done; what was finished is kept.
    """
    folder = row_folder(study, name)
    start = kept(folder / "start.json", lambda: _start(study, name))
    study.console.line(f"{name}: {start['params']:,} parameters, chosen in {start['spent']['seconds']:.0f} s")
    before = kept(folder / "before.json", lambda: measure(study, folder / "start", study.texts))
    study.console.line(f"{name}: perplexity before training {_perplexities(before)}")
    tokens = study.options.tokens
    if not tokens or name in NOT_TRAINED:
        return
    trained = kept(folder / f"after-{tokens}.json", lambda: _best_training(study, name, tokens, start))
    study.console.line(f"{name}: after {trained['tokens']:,} tokens at {trained['rate']:g}: {_perplexities(trained)}")


def _perplexities(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{math.exp(min(700, mean_of(text))):,.2f} on {name}" for name, text in record["texts"].items())


def _start(study: Study, name: str) -> dict[str, Any]:
    made = make_start(study, name)
    made.model.config.dtype = torch.float32
    save_student(made.model, row_folder(study, name) / "start", study.tokenizer)
    return {
        "params": made.params, "flops_per_token": made.flops_per_token, "spent": vars(made.spent), "note": made.note,
        "machine": machine_line(), "threads": study.options.threads,
    }  # fmt: skip


def _shards(study: Study) -> Path:
    """The tokens of all trainings of this number of tokens; the pilots read the first of them."""
    return study.training_shards(study.options.tokens).folder


def _best_rate(study: Study, name: str) -> float:
    """The rate with the lowest loss on calibration text after a short training; each row has the same tries."""
    losses = {rate: _pilot(study, name, rate) for rate in study.options.rates}
    return min(losses, key=lambda rate: losses[rate])


def _pilot(study: Study, name: str, rate: float) -> float:
    if len(study.options.rates) == 1:
        return 0.0  # nothing to choose
    folder = row_folder(study, name)
    run = folder / f"pilot-{rate:g}"

    def tried() -> dict[str, Any]:
        try:
            found = train(study, folder / "start", run, tokens=study.options.pilot_tokens, rate=rate,
                          shards=_shards(study))  # fmt: skip
            record = measure(study, found["model"], {_DECIDES: study.deciding_shards()})
            loss, error = mean_of(record["texts"][_DECIDES]), None
        except UserError as problem:  # a loss that is no number; the other rates may do
            found, loss, error = {"seconds": None, "tokens": study.options.pilot_tokens}, None, str(problem)
        forget(run)
        return {"rate": rate, "loss": loss, "error": error, "seconds": found["seconds"], "tokens": found["tokens"]}

    loss = kept(folder / f"pilot-{study.options.tokens}-{rate:g}.json", tried)["loss"]
    return math.inf if loss is None else float(loss)


def _best_training(study: Study, name: str, tokens: int, start: Mapping[str, Any]) -> dict[str, Any]:
    """The best by calibration text of a training at every rate, where tries are as long; else one at the best try's."""
    rates = study.options.rates
    if study.options.pilot_tokens < tokens or len(rates) == 1:
        return _trained(study, name, tokens, _best_rate(study, name), start)

    def at(rate: float) -> dict[str, Any]:
        try:
            found = _trained(study, name, tokens, rate, start)
        except UserError as problem:
            return {"rate": rate, "loss": None, "error": str(problem)}
        study.console.line(f"{name}: {rate:g} gives {found['loss']:.4f} on calibration text, {_perplexities(found)}")
        return found

    paths = {rate: row_folder(study, name) / f"after-{tokens}-{rate:g}.json" for rate in rates}
    made = [kept(path, partial(at, rate)) for rate, path in paths.items()]
    good = [record for record in made if record["loss"] is not None]
    if not good:
        raise UserError(f"{name} cannot be trained at any of the rates: {made[0]['error']}")
    return dict(min(good, key=lambda record: record["loss"]))


def _trained(study: Study, name: str, tokens: int, rate: float, start: Mapping[str, Any]) -> dict[str, Any]:
    folder = row_folder(study, name)
    run = folder / f"training-{tokens}-{rate:g}"
    found = train(study, folder / "start", run, tokens=tokens, rate=rate, shards=_shards(study))
    measured = measure(study, found["model"], {**study.texts, _DECIDES: study.deciding_shards()})
    loss = mean_of(measured["texts"].pop(_DECIDES))
    forget(run)
    # Of shapes that pretraining does not know it can only estimate: the row's own count is exact for all.
    own = 3.0 * start["flops_per_token"] * found["tokens"]
    flops = {"own": own, "teacher": float(study.teacher_flops()) * found["tokens"]}
    return measured | {"rate": rate, "loss": loss, "tokens": found["tokens"], "seconds": found["seconds"],
                       "flops": flops}  # fmt: skip
