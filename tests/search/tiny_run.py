"""A whole search in little: a small Llama that was trained for a moment, its tokenizer, a corpus, and two spaces."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TRIALS = 24
LENGTH = 32
SPACE = """
name: tiny
description: Any layers, heads and blocks of eight neurons.
order: {order}
axes:
  layers: {{per: model, select: subset, least: 1}}
  heads: {{per: layer, select: subset, least: 0}}
  neurons: {{per: layer, select: subset, step: 8, least: 0}}
"""
_NOUNS = "search student teacher layer head neuron budget token loss front seed worker record".split()
_VERBS = "keeps drops trains beats measures copies follows meets".split()


@dataclass(frozen=True)
class Tiny:
    """What a search is given: everything is a path."""

    teacher: Path
    corpus: Path
    space: Path
    natural_space: Path
    cache: Path

    def arguments(self, out: Path | None = None, *more: str, natural: bool = False) -> list[str]:
        """The command line of a run of 24 trials; what comes later on it wins."""
        space = self.natural_space if natural else self.space
        given = {
            "teacher": self.teacher, "data": self.corpus, "space": space, "params": "0.4..0.9", "trials": TRIALS,
            "population": 6, "sequence-length": LENGTH, "calibration-tokens": 512, "held-out-tokens": 256,
            "stages": "224,384", "importance-steps": 3, "importance-tokens": 64, "workers": 2, "winners": 2,
            "precision": "fp32", "tracker": "none", "reconstruct-tokens": 4096, "teacher-text": 0,
        }  # fmt: skip
        if {"--flops", "--kv-bytes"} & set(more):
            del given["params"]
        flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        return [*flags, *(["--out", str(out)] if out else []), *more]


def sentences(count: int, seed: int = 0) -> str:
    """Text with some order in it, so that a model can be better or worse at it."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        subject, verb, thing = rng.choice(_NOUNS), rng.choice(_VERBS), rng.choice(_NOUNS)
        lines.append(f"The {subject} {verb} the {thing}, and the {thing} {verb} {rng.randint(1, 9)} of them.")
        if rng.random() < 0.2:
            lines.append("")
    return "\n".join(lines) + "\n"


def make_tokenizer(text: str, size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of so many tokens, or as many as the text has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def make_teacher(
    folder: Path, text: str, steps: int = 80, kind: str = "llama", tokenizer: Any = None, **sizes: Any
) -> None:
    """A Llama (or another kind) of four layers with grouped queries, trained until its layers differ in worth."""
    torch.manual_seed(0)
    tokenizer = tokenizer or make_tokenizer(text)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, **sizes,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        starts = torch.randint(len(ids) - LENGTH, (8,)).tolist()
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_in(folder: Path) -> Tiny:
    """What :func:`make_tiny` has written."""
    return Tiny(*(folder / name for name in ("teacher", "corpus.txt", "tiny.yaml", "natural.yaml", "cache")))


def make_tiny(folder: Path) -> Tiny:
    """Write everything a search is given."""
    folder.mkdir(exist_ok=True)
    text, tiny = sentences(900), tiny_in(folder)
    tiny.corpus.write_text(text)
    make_teacher(tiny.teacher, text)
    tiny.space.write_text(SPACE.format(order="taylor"))
    tiny.natural_space.write_text(SPACE.format(order="natural"))
    return tiny


def environment(tiny: Tiny) -> dict[str, str]:
    """Of a search in a process of its own."""
    repository = Path(__file__).parents[2]
    return {**os.environ, "SLM_RAY_CACHE": str(tiny.cache), "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}


def start(tiny: Tiny, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "slm_ray.search", *arguments]
    return subprocess.Popen(
        command, env=environment(tiny), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def lines_of(run: Path) -> list[str]:
    """The whole lines of a run's trials."""
    path = run / "trials.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def trials_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(run)]


def outcome_of(run: Path) -> dict[str, Any]:
    """What two equal searches agree on: every candidate with its figures, and the whole front, without the clock."""
    trials = {
        record["trial"]: [record[name] for name in ("generation", "origin", "genes", "status", "objectives", "decided")]
        for record in trials_of(run)
    }
    result = json.loads((run / "result.json").read_text())
    hypervolumes = [[step["evaluations"], step["value"]] for step in result["hypervolume"]]
    return {"trials": dict(sorted(trials.items())), "hypervolume": hypervolumes} | {
        name: result[name] for name in ("front", "baselines", "winners", "teacher")
    }
