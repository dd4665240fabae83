"""Training a row by slm_ray's own pretraining, the teacher in the loop."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers.study import Study
from slm_ray.config.errors import UserError
from slm_ray.distill.online import OnlineTeacher
from slm_ray.distill.signal import DenseSignal
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.records.files import read_json


class RememberingTeacher(OnlineTeacher):
    """The teacher in the loop, its final hidden states kept on the disk by the tokens they are of.

    All rows and rates read the same sequences in the same batches, so the teacher's own forward pass is run once for
    all of them; what is distilled from is the same to the last bit. Its FLOPs are counted for every row in full.
    """

    folder: Path

    @torch.no_grad()
    def signal(self, ids: torch.Tensor, positions: torch.Tensor | None) -> DenseSignal:
        """See :meth:`OnlineTeacher.signal`."""
        seen = hashlib.sha256(ids.numpy().tobytes() + (b"" if positions is None else positions.numpy().tobytes()))
        place = self.folder / f"{seen.hexdigest()[:24]}.safetensors"
        if place.is_file():
            return DenseSignal(load_file(place)["hidden"], self.head)
        found = super().signal(ids, positions)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(".tmp")
        save_file({"hidden": found.hidden.contiguous()}, temporary)
        temporary.rename(place)
        return found


@contextlib.contextmanager
def remembered_teacher(folder: Path) -> Iterator[None]:
    """Inside the block, pretraining's teacher in this process keeps its states in a folder."""
    kind = type("RememberingTeacher", (RememberingTeacher,), {"folder": folder})
    with mock.patch("slm_ray.pretrain.trainer.OnlineTeacher", kind):
        yield


def train(study: Study, student: Path, run: Path, *, tokens: int, rate: float, shards: Path) -> dict[str, Any]:
    """Train a model, or go on with a training that was stopped.

    Args:
        study: Text, teacher and options.
        student: The model's folder.
        run: The folder of the training.
        tokens: How many.
        rate: Peak learning rate.
        shards: What is trained on.

    Returns:
        ``model``: the trained model's folder; ``seconds``, ``flops``, ``tokens``, as pretraining says them.

    Raises:
        UserError: It failed, such as by a loss that ran away.
    """
    options = study.options
    half = max(options.step_tokens, tokens // 2)
    given = {
        "student": student, "teacher": options.teacher, "shards": shards, "data": options.data, "tokens": tokens,
        "sequence-length": options.sequence_length, "batch-size": options.batch_size, "distill": "full",
        "learning-rate": rate, "seed": options.seed, "precision": options.precision, "launcher": "local",
        "engine": "torch", "device": "cpu", "threads": options.threads, "tracker": "none",
        "eval-tokens": options.sequence_length, "eval-every": tokens, "checkpoint-every": half, "keep-last": 1,
        "spike": 0, "out": run,
    }  # fmt: skip
    if not (run / "result.json").is_file():
        command = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        resumed = (run / "config.json").is_file() and (run / "inputs.json").is_file()
        if run.exists() and not resumed:
            shutil.rmtree(run)
        with remembered_teacher(study.out / "teacher-states"):
            PRETRAIN.main(["--resume", str(run)] if resumed else command)
    result = read_json(run / "result.json")["models"][0]
    return {"model": run / result["model"], "seconds": result["seconds"], "flops": result["flops"],
            "tokens": result["tokens"]}  # fmt: skip


def forget(run: Path) -> None:
    """Remove a training's folder: its checkpoints take a gigabyte."""
    shutil.rmtree(run, ignore_errors=True)


__all__ = ["RememberingTeacher", "UserError", "forget", "remembered_teacher", "train"]
