"""A tiny model to train in a second or two, its corpus and prepared tokens, and sweep files over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import TRAIN
from slm_ray.runtime.progress import Console
from tests.models.tiny import tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

LENGTH, BATCH, STEPS = 16, 4, 2


@dataclass(frozen=True)
class TinySweep:
    """What a training is given: everything is a path."""

    student: Path
    corpus: Path
    shards: Path
    cache: Path

    def base(self, **more: Any) -> dict[str, Any]:
        """A training of two steps in this process."""
        return {
            "student": str(self.student), "data": str(self.corpus), "shards": str(self.shards), "distill": "none",
            "tokens": str(STEPS * BATCH * LENGTH), "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 64,
            "engine": "torch", "precision": "fp32", "launcher": "local", "threads": 1, "keep-last": 1, **more,
        }  # fmt: skip

    def write(self, path: Path, **content: Any) -> Path:
        """A sweep file of one stage; ``base`` adds to the training above."""
        whole = {"stage": "pretrain", **content, "base": self.base(**content.get("base", {}))}
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        return path


def make_tiny_sweep(folder: Path) -> TinySweep:
    text = sentences(400)
    (folder / "corpus.txt").write_text(text)
    tokenizer = make_tokenizer(text)
    student = folder / "student"
    tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=1, eos_token_id=0).save_pretrained(student)
    tokenizer.save_pretrained(student)
    packed = prepare_tokens(
        load_corpus(str(folder / "corpus.txt"), "text"), tokenizer, TRAIN, num_tokens=1024, sequence_length=LENGTH,
        cache=folder / "cache" / "tokens", console=Console(), flag="--tokens",
    )  # fmt: skip
    packed.copy_to(folder / "shards")
    return TinySweep(student, folder / "corpus.txt", folder / "shards", folder / "cache")
