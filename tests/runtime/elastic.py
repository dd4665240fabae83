"""Machines join and leave a search, and a training goes on with fewer: on several raylets of this machine.

    python -m tests.runtime.elastic --out benchmarks/elastic.json

A search starts on one machine of one CPU; another joins in its middle, and leaves (kill -9 of its raylet). Measured is
the time from the join to the first trial's worker on the new machine. A training with two workers and --min-workers 1
loses a machine for good and goes on with one. Both results are compared with an undisturbed run's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.runtime import nodes, stages, victims
from tests.runtime.victims import Command, wait_until

_PATIENCE_SECONDS = 900.0


def workers_of(cluster: nodes.NodesApart, machine: int, name: str) -> list[int]:
    """The processes of a machine that do some work: Ray starts them below its raylet."""
    return [pid for pid, command in cluster.processes().items() if name in command and parent_of(pid) == machine]


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def search(inputs: stages.Inputs, work: Path, trials: int) -> dict[str, Any]:
    """A search that a machine joins and another leaves."""
    stage, run = stages.search_stage(inputs), work / "search"
    words = [*stage.start(run), "--trials", str(trials), "--population", "12"]
    words = drop(words, "--workers")
    alone = work / "search-alone"
    first = Command([*stage.start(alone), "--trials", str(trials), "--population", "12"], work / "search-alone.log")
    first.wait(_PATIENCE_SECONDS)
    first.clean_up()
    cluster = nodes.NodesApart(1)
    try:
        command = Command([*words, "--address", cluster.address], work / "search.log")
        wait_until(lambda: len(stage.done(run)) >= trials // 8 or command.ended(), _PATIENCE_SECONDS)
        before, asked = len(stage.done(run)), time.monotonic()
        machine = cluster.add()
        joined = time.monotonic()
        wait_until(lambda: workers_of(cluster, machine, stage.worker) or command.ended(), _PATIENCE_SECONDS)
        used, at_use = time.monotonic(), len(stage.done(run))
        wait_until(lambda: len(stage.done(run)) >= trials // 2 or command.ended(), _PATIENCE_SECONDS)
        was_used = bool(workers_of(cluster, machine, stage.worker))
        if not command.ended():
            cluster.lose(machine)
        at_loss = len(stage.done(run))
        command.wait(_PATIENCE_SECONDS)
        command.clean_up()
    finally:
        cluster.close()
    return {
        "trials": trials, "done_at_join": before, "machine_takes_seconds": round(joined - asked, 1),
        "seconds_from_join_to_worker": round(used - joined, 1), "done_at_first_use": at_use, "was_used": was_used,
        "done_at_loss": at_loss, "status": command.status,
        "equal": command.status == 0 and stage.outcome(run) == stage.outcome(alone),
    }  # fmt: skip


def training(inputs: stages.Inputs, work: Path) -> dict[str, Any]:
    """A training of two workers that goes on with one."""
    stage = stages.pretrain_stage(inputs, "pretraining", ("--launcher", "local"))
    alone, run = work / "training-alone", work / "training"
    first = Command(stage.start(alone), work / "training-alone.log")
    first.wait(_PATIENCE_SECONDS)
    elastic = stages.pretrain_stage(inputs, "pretraining", ("--workers", "2", "--min-workers", "1"))
    cluster = nodes.NodesApart(2)
    try:
        command = Command([*elastic.start(run), "--address", cluster.address], work / "training.log")
        wait_until(lambda: len(stage.done(run)) >= stage.total // 4 or command.ended(), _PATIENCE_SECONDS)
        at_loss, lost = len(stage.done(run)), time.monotonic()
        if not command.ended():
            cluster.lose(cluster.machines[-1])
        wait_until(lambda: len(stage.done(run)) > at_loss + 4 or command.ended(), _PATIENCE_SECONDS)
        went_on = time.monotonic()
        command.wait(_PATIENCE_SECONDS)
        command.clean_up()
    finally:
        cluster.close()
    steps = [step.loss for step in stages.steps_of(run)]
    whole = [step.loss for step in stages.steps_of(alone)]
    apart = max((abs(a - b) / abs(b) for a, b in zip(steps, whole, strict=False)), default=None)
    return {
        "steps": stage.total, "done_at_loss": at_loss, "seconds_to_go_on": round(went_on - lost, 1),
        "status": command.status, "steps_done": len(steps), "largest_relative_difference_of_a_loss": apart,
    }  # fmt: skip


def drop(words: list[str], flag: str) -> list[str]:
    """A command line without a flag and its value."""
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--only", choices=("search", "training"), default=None)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slm_ray-elastic")
    parser.add_argument("--out", type=Path, default=Path("elastic.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SLM_RAY_CACHE": str(options.work / "inputs/cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["RAY_worker_niceness"] = "0"
    victims.preload()
    inputs = stages.make_inputs(options.work / "inputs")
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, measure in (("search", lambda place: search(inputs, place, options.trials)),
                          ("training", lambda place: training(inputs, place))):  # fmt: skip
        if options.only in (None, name):
            place = options.work / "runs" / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            found[name] = measure(place)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
