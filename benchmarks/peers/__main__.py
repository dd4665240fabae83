"""``python -m benchmarks.peers``: each row made, measured, trained and measured again, then the table.

python -m benchmarks.peers --out FOLDER [--peers a,b] [--tokens 100k] [--threads 1] [--other TEXTFILE]
python -m benchmarks.peers --out FOLDER --table
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine_line
from benchmarks.peers.models import make_model
from benchmarks.peers.study import PeerOptions, Study
from benchmarks.peers.table import render
from slm_ray.config.base import add_flags, build_config
from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.models import LoadedModel, find_model
from slm_ray.evaluate.text_loss import measure_packed
from slm_ray.models.extraction import save_student
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import read_json, write_json

_DECIDES = "calibration"  # the text that decides between rates


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a step found, from its file, or made now."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def measure(study: Study, folder: Path | str, texts: Mapping[str, TokenShards]) -> dict[str, Any]:
    """A model's losses on some texts, by ``slm_ray.evaluate``'s own measurement."""
    loaded = LoadedModel(find_model(str(folder)), study.precision, torch.device("cpu"))
    found = {}
    for name, shards in texts.items():
        header = {"name": name, "key": "", "settings": {}, "model": str(folder), "params": loaded.params, "seconds": 0}
        record = measure_packed(loaded, shards, header, separate=True, batch=4, say=lambda line: None)
        found[name] = record.to_json()
    return {"params": loaded.params, "precision": study.precision, "texts": found}


def make_row(study: Study, name: str) -> None:
    """Make what is missing of a row; each finished step is kept."""
    folder = study.out / "rows" / name
    start = kept(folder / "start.json", lambda: _start(study, name))
    study.console.line(f"{name}: {start['params']:,} parameters, chosen in {start['seconds']:.0f} s")
    kept(folder / "before.json", lambda: measure(study, folder / "start", study.texts))
    if study.options.tokens:
        kept(folder / f"after-{study.options.tokens}.json", lambda: _best_training(study, folder, start))


def _start(study: Study, name: str) -> dict[str, Any]:
    model, spent, flops = make_model(study, name)
    model.config.dtype = torch.float32
    save_student(model, study.out / "rows" / name / "start", study.tokenizer)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": params, "flops_per_token": flops, **vars(spent), "machine": machine_line()}


def _best_training(study: Study, folder: Path, start: Mapping[str, Any]) -> dict[str, Any]:
    """The best by calibration text of a training at every rate."""
    made = []
    for rate in map(float, study.options.rates):
        path = folder / f"after-{study.options.tokens}-{rate:g}.json"
        made.append(kept(path, lambda rate=rate: _trained(study, folder, rate, start)))
        study.console.line(f"{folder.name}: {rate:g} gives {made[-1]['loss']} on calibration text")
    good = [record for record in made if record["loss"] is not None]
    if not good:
        raise UserError(f"{folder.name} cannot be trained at any of the rates: {made[0]['error']}")
    return dict(min(good, key=lambda record: record["loss"]))


def _trained(study: Study, folder: Path, rate: float, start: Mapping[str, Any]) -> dict[str, Any]:
    """Train by slm_ray's own pretraining, the teacher in the loop, or go on with a training that was stopped."""
    options, run = study.options, folder / f"training-{study.options.tokens}-{rate:g}"
    step = options.batch_size * options.sequence_length
    given = {
        "student": folder / "start", "teacher": options.teacher, "data": options.data, "tokens": options.tokens,
        "sequence-length": options.sequence_length, "batch-size": options.batch_size, "distill": "full",
        "learning-rate": rate, "seed": options.seed, "precision": options.precision, "launcher": "local",
        "engine": "torch", "device": "cpu", "threads": options.threads, "tracker": "none",
        "eval-tokens": options.sequence_length, "eval-every": options.tokens, "keep-last": 1, "spike": 0, "out": run,
        "checkpoint-every": max(step, options.tokens // 2), "shards": study.training_shards(options.tokens),
    }  # fmt: skip
    resumed = (run / "config.json").is_file() and (run / "inputs.json").is_file()
    if run.exists() and not resumed:
        shutil.rmtree(run)
    command = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    try:
        PRETRAIN.main(["--resume", str(run)] if resumed else command)
    except UserError as problem:  # a loss that is no number; the other rates may do
        return {"rate": rate, "loss": None, "error": str(problem)}
    result = read_json(run / "result.json")["models"][0]
    measured = measure(study, run / result["model"], {**study.texts, _DECIDES: study.deciding})
    shutil.rmtree(run)  # its checkpoints take a gigabyte
    decides = measured["texts"].pop(_DECIDES)
    # Of shapes that pretraining does not know it can only estimate: the row's own count is exact for all.
    teacher = float(flops_per_token(study.architecture, options.sequence_length))
    return measured | {
        "rate": rate, "loss": sum(decides["losses"]) / sum(decides["counts"]), "tokens": result["tokens"],
        "seconds": result["seconds"], "flops": (3.0 * start["flops_per_token"] + teacher) * result["tokens"],
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Make the rows and print the table: 0, or 1 where a row failed and 2 where the options are wrong."""
    parser = Parser(prog="python -m benchmarks.peers", formatter_class=argparse.HelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    add_flags(parser, PeerOptions)
    failed = False
    try:
        given = vars(parser.parse_args(list(argv)))
        only_table = given.pop("table")
        options = build_config(PeerOptions, given)
        if not only_table:
            os.environ["OMP_NUM_THREADS"] = str(options.threads)
            torch.set_num_threads(options.threads)
            study = Study(options)
            kept(study.out / "teacher.json", lambda: measure(study, options.teacher, study.texts))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in () if only_table else options.peers:
        try:
            make_row(study, name)
        except UserError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = True
    print(render(options.out, options.tokens), end="")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
