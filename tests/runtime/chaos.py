"""Strike runs at random instants: they end, lose nothing, repeat nothing, and give what an undisturbed run gives.

    python -m tests.runtime.chaos --kills 50 --seed 0 --out benchmarks/chaos.json
    python -m tests.runtime.chaos --only search,capture --hours 0.2 --out benchmarks/chaos.json

A run is struck several times; where that ended it, it is resumed, until it is done. The file grows run by run, and the
same command goes on with what is missing in it. With --table it is printed and nothing is run.

``driver``, ``worker``, ``head`` (Ray's control store), ``raylet`` (the head's own) and ``node`` (another machine's) are
kill -9; ``slow`` stops a worker for seconds; ``disk`` fills the disk that records lie on, ``storage`` takes it away.
Disks are small file systems in memory, which takes root. A run starts as a fork of this process, which has imported
all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.runtime import disks, nodes, stages, victims
from tests.runtime.stages import Inputs, Stage
from tests.runtime.victims import Command, wait_until

KILLS = ("driver", "worker", "head", "raylet", "node")
FAULTS = ("slow", "disk", "storage")
# Of each stage: the kinds of its rounds; a run takes one round.
ROUNDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pretraining": (("driver",) * 4, ("driver", "disk", "driver"), ("driver", "storage")),
    "evaluation": (("driver",) * 4, ("driver", "disk", "driver"), ("driver", "storage")),
    "search": (
        ("worker", "driver", "worker", "head"), ("node", "worker", "node", "driver"), ("driver", "raylet", "worker"),
        ("slow", "disk", "worker"), ("storage", "driver"),
    ),
    "capture": (("driver", "worker", "head"), ("node", "driver"), ("worker", "raylet"), ("slow", "disk"), ("storage",)),
    "pretraining on Ray": (("worker", "driver", "head"), ("node",), ("raylet", "worker"), ("slow", "disk")),
    "evaluation on Ray": (("worker", "driver", "head"), ("node",), ("raylet",), ("slow",)),
}  # fmt: skip
_PATIENCE_SECONDS = 600.0  # of a run that is not struck, on a machine that others use too
_MOST_RESUMES = 4


class Run:
    """One run and its blows."""

    def __init__(self, stage: Stage, folder: Path, rng: random.Random, options: argparse.Namespace) -> None:
        self.stage, self.folder, self.rng, self.options = stage, folder, rng, options
        self.log = folder.with_suffix(".log")
        self.command: Command
        self.cluster: nodes.NodesApart | None = None
        self.kept: dict[str, Any] = {}
        self.blows: list[dict[str, Any]] = []
        self.resumes = 0
        self.left: list[str] = []

    def go(self, kinds: tuple[str, ...]) -> dict[str, Any]:
        """Strike a run with blows of these kinds, one after the other, and see it through."""
        began = time.monotonic()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            if "node" in kinds:
                self.cluster = nodes.NodesApart(2)
            with disks.small_disk(self.folder.parent / f"{self.folder.name}-disk", kinds) as disk:
                self.disk = disk
                self.run = disk.folder / "run" if disk else self.folder
                self._start(self.stage.start(self.run))
                for kind in kinds:
                    self._blow(kind)
                self._see_through()
                found = self._judge(kinds)
        finally:
            if hasattr(self, "command"):
                if not self.command.ended():
                    self.command.kill()
                self.command.clean_up(0.0)
            if self.cluster:
                self.cluster.close()
        return found | {"seconds": round(time.monotonic() - began, 1)}

    def _start(self, words: list[str]) -> None:
        more = ["--address", self.cluster.address] if self.cluster else []
        self.command = Command([*words, *more], self.log)

    def _resume(self) -> None:
        self.left += self.command.clean_up()
        self._note_kept()
        self.resumes += 1
        words = self.stage.resume(self.run)
        # A run that was struck before its folder was there has nothing to go on with: it is started.
        is_there = (self.run / "config.json").exists()
        self._start(words if is_there else self.stage.start(self.run))

    def _note_kept(self) -> None:
        self.kept |= self.stage.kept(self.run)

    def _blow(self, kind: str) -> None:
        """One blow at a random instant: of the time a run takes from its start, or of what is still to do."""
        if self.command.ended():
            if self.command.status == 0:
                return  # the run is over
            self._resume()
        by_work = self.rng.random() < 0.6
        done = len(self.stage.done(self.run))
        wanted = done + self.rng.random() * (self.stage.total - done)
        delay = self.rng.uniform(0.0, 0.3 if by_work else self.options.start_seconds)
        ripe = (lambda: len(self.stage.done(self.run)) >= wanted) if by_work else (lambda: True)
        wait_until(lambda: ripe() or self.command.ended(), _PATIENCE_SECONDS)
        time.sleep(delay)
        at = len(self.stage.done(self.run))
        if self.command.ended() or not getattr(self, f"_{kind}")():
            return
        after = self._after(kind)
        self.blows.append({"kind": kind, "done": at, "of": self.stage.total, "after": after})
        print(f"  {kind} at {at}/{self.stage.total}: {after}", flush=True)

    def _after(self, kind: str) -> str:
        """What the blow made of the command: it went on by itself, or has to be resumed."""
        if kind in ("worker", "node", "slow"):
            return "went on"
        if not self.command.wait(_PATIENCE_SECONDS if kind in ("head", "raylet", "disk", "storage") else 30):
            return "hung"
        return "went on" if self.command.status == 0 else "ended"

    def _victims(self, name: str) -> list[int]:
        found: list[int] = []
        processes = self.cluster.processes if self.cluster else self.command.processes

        def look() -> bool:
            found[:] = [pid for pid, command in processes().items() if name in command]
            return bool(found) or self.command.ended()

        wait_until(look, _PATIENCE_SECONDS)
        return [] if self.command.ended() else found

    def _kill_one(self, name: str) -> bool:
        found = self._victims(name)
        if found:
            os.kill(self.rng.choice(sorted(found)), signal.SIGKILL)
        return bool(found)

    # The kinds. Each says whether it struck.

    def _driver(self) -> bool:
        self.command.kill()
        return True

    def _worker(self) -> bool:
        return self._kill_one(self.stage.worker)

    def _head(self) -> bool:
        return self._kill_one("gcs_server")

    def _raylet(self) -> bool:
        return self._kill_one("raylet/raylet")

    def _node(self) -> bool:
        assert self.cluster is not None
        self.cluster.lose_one(self.rng)
        return True

    def _slow(self) -> bool:
        found = self._victims(self.stage.worker)
        for _ in range(3 if found else 0):
            for number, rest in ((signal.SIGSTOP, self.rng.uniform(0.5, 3.0)), (signal.SIGCONT, 0.2)):
                try:
                    os.kill(found[0], number)
                except ProcessLookupError:
                    return True
                time.sleep(rest)
        return bool(found)

    def _disk(self) -> bool:
        assert self.disk is not None
        with self.disk.full():
            self.command.wait(self.options.outage_seconds)
        return True

    def _storage(self) -> bool:
        assert self.disk is not None
        with self.disk.gone():
            self.command.wait(self.options.outage_seconds)
        return True

    def _see_through(self) -> None:
        while not (self.command.wait(_PATIENCE_SECONDS) and self.command.status == 0):
            if not self.command.ended():
                self.blows and self.blows[-1].update(after="hung")
                self.command.kill()
            if self.resumes >= _MOST_RESUMES + len(self.blows):
                return
            self._resume()

    def _judge(self, kinds: tuple[str, ...]) -> dict[str, Any]:
        """Compare with the undisturbed run."""
        finished = self.command.ended() and self.command.status == 0
        self.left += self.command.clean_up()
        expected = self.options.references[self.stage.name]
        found: dict[str, Any] = {"finished": finished, "lost": None, "repeated": None, "equal": False}
        if finished:
            names = self.stage.expected(self.run)
            now = self.stage.kept(self.run)
            changed = sum(now.get(name, "gone") != value for name, value in self.kept.items())
            found["lost"] = len(set(expected["names"]) - set(names))
            found["repeated"] = len(names) - len(set(names)) + changed
            found["equal"] = self.stage.outcome(self.run) == expected["outcome"]
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return found | {
            "stage": self.stage.name, "kinds": list(kinds), "blows": self.blows, "resumes": self.resumes,
            "tracebacks": text.count("Traceback (most recent"), "left_behind": self.left,
        }  # fmt: skip


def make_stages(inputs: Inputs) -> dict[str, Stage]:
    """All stages, by name."""
    made = [
        stages.search_stage(inputs), stages.capture_stage(inputs),
        stages.pretrain_stage(inputs, "pretraining", ("--launcher", "local")),
        stages.pretrain_stage(inputs, "pretraining on Ray", ()),
        # Long enough that most of a run is measuring, so that most blows come in the middle of it.
        stages.evaluate_stage(inputs, "evaluation", 1, tokens=8192),
        stages.evaluate_stage(inputs, "evaluation on Ray", 2, tokens=32768),
    ]  # fmt: skip
    return {stage.name: stage for stage in made}


def reference(stage: Stage, work: Path) -> dict[str, Any]:
    """What an undisturbed run gives; run once and kept."""
    run = work / "undisturbed" / stage.name.replace(" ", "-")
    if not (run.parent / f"{run.name}.done").exists():
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        for _ in range(_MOST_RESUMES):  # on a machine that is full, Ray may not start within its 30 seconds
            is_there = (run / "config.json").exists()
            command = Command(stage.resume(run) if is_there else stage.start(run), run.with_suffix(".log"))
            command.wait(_PATIENCE_SECONDS)
            command.clean_up()
            if command.status == 0:
                break
        if command.status != 0:
            raise SystemExit(f"the undisturbed {stage.name} failed: see {run.with_suffix('.log')}")
        (run.parent / f"{run.name}.done").touch()
        print(f"undisturbed {stage.name}: {time.monotonic() - began:.0f} s", flush=True)
    return {"names": stage.expected(run), "outcome": stage.outcome(run)}


def table(runs: list[dict[str, Any]]) -> str:
    """Rows by stage and kind: how many blows, how runs went on, and what came out."""
    rows: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        for blow in run["blows"]:
            row = rows.setdefault((run["stage"], blow["kind"]), [0] * 7)
            good = run["finished"] and run["equal"]
            for column, value in enumerate((
                1, blow["after"] == "went on", blow["after"] != "went on" and run["finished"], run["finished"] and good,
                run["lost"] or 0, run["repeated"] or 0, not run["finished"],
            )):  # fmt: skip
                row[column] += int(value)
    heads = ("blows", "went on by itself", "ended with --resume", "equal result", "lost", "repeated", "not ended")
    lines = ["| stage | kind | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 2) + "|"]
    total = [0] * 7
    for (stage, kind), row in sorted(rows.items()):
        lines.append(f"| {stage} | {kind} | " + " | ".join(map(str, row)) + " |")
        total = [old + new for old, new in zip(total, row, strict=True)]
    kills = sum(blow["kind"] in KILLS for run in runs for blow in run["blows"])
    lines.append(f"| all | {kills} kills | " + " | ".join(map(str, total)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="stop when there are so many")
    parser.add_argument("--hours", type=float, default=2.0, help="start no run after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=None, help="stages, with commas")
    parser.add_argument("--kinds", default=None, help="rounds of these kinds only, with commas")
    parser.add_argument("--start-seconds", type=float, default=15.0, help="about what a run takes")
    parser.add_argument("--outage-seconds", type=float, default=4.0, help="how long a disk is full or gone")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slm_ray-chaos")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--table", action="store_true", help="print the table of --out and run nothing")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    if options.table:
        print(table(runs))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SLM_RAY_CACHE": str(options.work / "inputs/cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["RAY_worker_niceness"] = "0"
    victims.preload()
    made = make_stages(stages.make_inputs(options.work / "inputs"))
    options.references = {}
    end = time.monotonic() + 3600 * options.hours
    for stage, kinds, number in schedule(options):
        kills = sum(blow["kind"] in KILLS for run in runs for blow in run["blows"])
        if kills >= options.kills or time.monotonic() > end:
            break
        name = f"{stage.replace(' ', '-')}-{options.seed}-{number}"
        if any(run["name"] == name for run in runs):
            continue
        if stage not in options.references:
            options.references[stage] = reference(made[stage], options.work)
        print(f"{name}: {', '.join(kinds)}", flush=True)
        rng = random.Random(f"{options.seed} {name}")
        folder = options.work / "runs" / name
        for place in (folder, folder.with_suffix(".log"), folder.with_name(f"{folder.name}.partial")):
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        found = Run(made[stage], folder, rng, options).go(kinds)
        runs.append({"name": name, **found})
        print(f"  finished {found['finished']}, equal {found['equal']}, lost {found['lost']}, repeated "
              f"{found['repeated']}, {found['resumes']} resumes, {found['seconds']} s", flush=True)  # fmt: skip
        options.out.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


def schedule(options: argparse.Namespace) -> list[tuple[str, tuple[str, ...], int]]:
    """All rounds, stages taking turns; again and again."""
    only = options.only.split(",") if options.only else list(ROUNDS)
    wanted = set(options.kinds.split(",")) if options.kinds else None
    found = []
    for number in range(40):
        for stage in only:
            kinds = ROUNDS[stage][number % len(ROUNDS[stage])]
            if kinds and (wanted is None or set(kinds) <= wanted):
                found.append((stage, kinds, number))
    return found


if __name__ == "__main__":
    main()
