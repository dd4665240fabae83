"""The work that several machines are given: a tiny search and a tiny training, and what two equal ones agree on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from slm_ray.records.base import read_lines
from slm_ray.records.training import TrainStep
from tests.search.tiny_run import LENGTH, Tiny, outcome_of

STEPS, BATCH, RANKS = 6, 4, 2
SEED = 7
# Ray's own record of where its workers ran: [class, machine, how it ended] of every actor so far.
WHERE = """
import json, logging, ray
from ray.util.state import list_actors
ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
actors = list_actors(detail=True, limit=10_000)
print("ACTORS", json.dumps([[actor.class_name, names.get(actor.node_id, ""), actor.job_id] for actor in actors]))
"""
ALIVE = """
import logging, ray
ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
print("ALIVE", sum(node["Alive"] for node in ray.nodes()))
"""


def search_words(tiny: Tiny, out: Path, workers: int) -> list[str]:
    """A search of 24 candidates."""
    more = ("--workers", str(workers), "--threads", "1", "--seed", str(SEED))
    return ["-m", "slm_ray.search", *tiny.arguments(out, *more)]


def pretrain_words(tiny: Tiny, out: Path) -> list[str]:
    """A training of six steps by two ranks with the teacher in the loop."""
    given = {
        "student": tiny.teacher, "teacher": tiny.teacher, "data": tiny.corpus, "tokens": STEPS * BATCH * LENGTH,
        "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 256, "engine": "torch", "precision": "fp32",
        "tracker": "none", "threads": 1, "workers": RANKS, "start": "random", "seed": SEED, "out": out,
    }  # fmt: skip
    return ["-m", "slm_ray.pretrain", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


def line(python: str | Path, words: list[str], *more: str) -> str:
    """A shell's line of a command."""
    return shlex.join([str(python), *words, *more])


def moved(tiny: Tiny, folder: Path) -> Tiny:
    """The same files where another machine has them."""
    names = (path.name for path in (tiny.teacher, tiny.corpus, tiny.space, tiny.natural_space, tiny.cache))
    return Tiny(*(folder / name for name in names))


def search_outcome(run: Path) -> dict[str, Any]:
    """Every candidate with its figures and the whole front."""
    return outcome_of(run)


def pretrain_outcome(run: Path) -> dict[str, Any]:
    """Every step's loss, every evaluation, and how the model ended."""
    (model,) = json.loads((run / "result.json").read_text())["models"]
    records = read_lines(run / model["name"] / TrainStep.FILE, TrainStep)
    steps = [[record.step, record.tokens, record.loss] for record in records]
    evals = [[record["step"], record["loss"]] for record in model["evals"]]
    return {"status": model["status"], "tokens": model["tokens"], "steps": steps, "evals": evals}


def worked(said: str) -> dict[str, dict[str, int]]:
    """Workers by machine and kind, from what WHERE printed."""
    (found,) = [text.removeprefix("ACTORS ") for text in said.splitlines() if text.startswith("ACTORS ")]
    count: dict[str, dict[str, int]] = {}
    for kind, machine, _ in json.loads(found):
        kinds = count.setdefault(machine, {})
        kinds[kind] = kinds.get(kind, 0) + 1
    return count
