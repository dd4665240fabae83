"""How large a search one driver can lead: its plan alone, and on many simulated machines.

    python -m benchmarks.cluster_scale plan --trials 10000
    python -m benchmarks.cluster_scale ray --nodes 64 --slots 16 --trials 10000 --at-once 8

``plan`` does everything of a search but Ray and measuring: asking the algorithm, decoding, records synced to the disk,
fronts, the race. ``ray`` runs the command on so many raylets of this machine, each of which declares so many CPUs, with
a zero-cost objective (what is kept, by magnitude) on a tiny teacher; ``--at-once`` workers is what fits this machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil


def plan_alone(options: argparse.Namespace) -> dict[str, Any]:
    """A plan whose candidates are measured by making figures up."""
    from tests.search.test_plan import plan_in
    from tests.search.without_ray import made_up

    def marks() -> dict[str, float]:
        return {"trials": len(plan.journal.records), "seconds": round(time.monotonic() - began, 2),
                "rss_mb": round(psutil.Process().memory_info().rss / 1e6, 1)}  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        plan = plan_in(Path(folder), options.algorithm, trials=options.trials, population=options.population)
        measure, began, rows = made_up(plan), time.monotonic(), list[dict[str, float]]()
        profile, spent = cProfile.Profile() if options.profile else None, 0.0
        plan.on_record = lambda record: plan.measured_front() and None  # as the command shows the best so far
        rows.append(marks())
        before = (0, 0.0)
        while True:
            start = time.process_time()
            if profile:
                profile.enable()
            job = plan.next_job()
            if profile:
                profile.disable()
            spent += time.process_time() - start
            if job is None:
                break
            answer = measure(job)
            start = time.process_time()
            if profile:
                profile.enable()
            plan.finish(job, *answer)
            if profile:
                profile.disable()
            spent += time.process_time() - start
            if len(plan.journal.records) % max(1, options.trials // 10) == 0:
                done = len(plan.journal.records)
                each = 1000 * (spent - before[1]) / (done - before[0])  # of the trials since the last row
                rows.append(marks() | {"processor_ms_per_trial": round(each, 2)})
                before = (done, spent)
                print(rows[-1], flush=True)
        size = (Path(folder) / "trials.jsonl").stat().st_size
    if profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(18)
    count = len(plan.journal.records)
    rate = round(count / spent, 1)
    return {"trials": count, "trials_per_second_of_processor": rate, "record_bytes": size // count, "rows": rows}


def on_ray(options: argparse.Namespace) -> dict[str, Any]:
    """The command on simulated machines."""
    from tests.cluster.nodes import Nodes
    from tests.search.tiny_run import make_tiny

    with tempfile.TemporaryDirectory() as scratch:
        tiny = make_tiny(Path(scratch))
        began = time.monotonic()
        cluster = Nodes(options.nodes, options.slots)
        up = time.monotonic() - began
        run = Path(scratch) / "run"
        words = tiny.arguments(
            run, "--trials", str(options.trials), "--population", str(options.population), "--workers",
            str(options.at_once), "--objectives", "magnitude,params", "--address", cluster.address,
        )  # fmt: skip
        environment = {**os.environ, "SLM_RAY_CACHE": str(tiny.cache), "OMP_NUM_THREADS": "1"}
        rows: list[dict[str, Any]] = []
        try:
            process = subprocess.Popen([sys.executable, "-m", "slm_ray.search", *words], env=environment)
            ended = threading.Event()
            threading.Thread(target=_sample, args=(process.pid, run, rows, ended), daemon=True).start()
            status = process.wait(options.limit)
            ended.set()
            processes = cluster.processes()
            raylets = [pid for pid, command in processes.items() if "raylet/raylet" in command]
            memory = {"raylets": len(raylets), "raylet_rss_mb": _rss(raylets), "all_rss_mb": _rss(processes)}
        finally:
            cluster.close()
    return {"nodes": options.nodes, "slots": options.nodes * options.slots, "cluster_up_seconds": round(up, 1),
            "status": status, **memory, "rows": rows}  # fmt: skip


def _rss(pids: Any) -> float:
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return round(total / 1e6, 1)


def _sample(pid: int, run: Path, rows: list[dict[str, Any]], ended: threading.Event) -> None:
    """Records, bytes and memory of the driver, every few seconds."""
    began, records = time.monotonic(), run / "trials.jsonl"
    while not ended.wait(5):
        count = records.read_bytes().count(b"\n") if records.exists() else 0
        rows.append({
            "seconds": round(time.monotonic() - began, 1), "trials": count, "rss_mb": _rss([pid]),
            "bytes_per_record": records.stat().st_size // count if count else None,
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "ray"))
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--algorithm", default="nsga2")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a run may take")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = plan_alone(options) if options.what == "plan" else on_ray(options)
    print(json.dumps(found, indent=1))
    if options.out:
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(before | {options.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
