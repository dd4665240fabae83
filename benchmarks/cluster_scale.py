"""How large a search one driver can lead, on many simulated machines.

    python -m benchmarks.cluster_scale --nodes 64 --slots 16 --trials 10000 --at-once 16

The command runs on so many raylets of this machine, each of which declares so many CPUs, with a zero-cost objective
(what is kept, by magnitude) on a tiny teacher; ``--at-once`` workers is what fits this machine, each on a whole node.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil


def on_ray(options: argparse.Namespace) -> dict[str, Any]:
    """The command on simulated machines."""
    from ray.cluster_utils import Cluster

    from tests.search.tiny_run import make_tiny

    with tempfile.TemporaryDirectory() as scratch:
        tiny = make_tiny(Path(scratch))
        began = time.monotonic()
        given = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**given, "num_cpus": 0, "include_dashboard": False})
        for _ in range(options.nodes):
            cluster.add_node(wait=True, num_cpus=options.slots, **given)
        up = time.monotonic() - began
        run = Path(scratch) / "run"
        words = tiny.arguments(
            run, "--trials", str(options.trials), "--population", str(options.population), "--workers",
            str(options.at_once), "--threads", str(options.slots), "--objectives", "magnitude,params", "--reconstruct",
            "none", "--address", cluster.address,
        )  # fmt: skip
        environment = {**os.environ, "SLM_RAY_CACHE": str(tiny.cache), "OMP_NUM_THREADS": "1",
                       "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # fmt: skip
        rows: list[dict[str, Any]] = []
        try:
            process = subprocess.Popen([sys.executable, "-m", "slm_ray.search", *words], env=environment)
            ended = threading.Event()
            sampler = threading.Thread(target=_sample, args=(process.pid, run, rows, ended), daemon=True)
            sampler.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(options.limit)
            status = process.poll()
            process.kill()
            ended.set()
            sampler.join()
            process.wait()
            result = json.loads((run / "result.json").read_text()) if status == 0 else {}
        finally:
            cluster.shutdown()
    return {
        "nodes": options.nodes, "slots": options.nodes * options.slots, "cluster_up_seconds": round(up, 1),
        "at_once": options.at_once, "status": status, "search_seconds": result.get("spent", {}).get("seconds"),
        "busy_seconds": result.get("spent", {}).get("busy_seconds"), "rows": rows,
    }  # fmt: skip


def _rss(pids: Iterable[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return round(total / 1e6, 1)


def _busy(pids: Iterable[int]) -> float:
    """Seconds of processor time of processes."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def _processes() -> dict[int, str]:
    """The first word of every process that this one started, by its id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            found[process.pid] = process.cmdline()[0].split()[0]
    return found


def _sample(driver: int, run: Path, rows: list[dict[str, Any]], ended: threading.Event) -> None:
    """What a tenth of the trials took: time, the driver's and Ray's processor time and memory, bytes of records.

    A row whenever ten seconds have passed and a trial has ended, until the command does.
    """
    began, records = time.monotonic(), run / "trials.jsonl"
    seen: set[int] = set()
    before: dict[str, float] = {}
    while not ended.wait(10):
        found = _processes()
        kinds = {
            name: [pid for pid, word in found.items() if word.startswith(words) or word.endswith(words)]
            for name, words in _KINDS.items()
        }
        seen |= set(kinds["actors"])
        size = records.stat().st_size if records.exists() else 0
        now = {
            "seconds": time.monotonic() - began, "trials": records.read_bytes().count(b"\n") if size else 0,
            "bytes": size, "driver": _busy([driver]), **{name: _busy(pids) for name, pids in kinds.items()},
        }  # fmt: skip
        trials = now["trials"] - before.get("trials", 0)
        if before and trials:
            spent = {name: max(0.0, now[name] - before[name]) for name in ("driver", *kinds)}
            each = {f"{name}_ms": round(1000 * seconds / trials, 2) for name, seconds in spent.items()}
            rows.append({
                "seconds": round(now["seconds"], 1), "trials": int(now["trials"]),
                "trials_per_second": round(trials / (now["seconds"] - before["seconds"]), 1),
                "bytes_per_record": round((size - before["bytes"]) / trials), **each, "driver_rss_mb": _rss([driver]),
                **{f"{name}_rss_mb": _rss(pids) for name, pids in kinds.items()}, "actors": len(kinds["actors"]),
                "actors_ever": len(seen), "processes": len(found),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        before = now


_KINDS = {
    "gcs": ("gcs_server",), "raylets": ("raylet/raylet",), "actors": ("ray::ResourceTrainable",),
}  # fmt: skip
# Each raylet takes the whole machine's memory for its own and looks at all its processes four times a second.
_MANY_ON_ONE = {
    "RAY_memory_monitor_refresh_ms": "0", "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600", "RAY_raylet_start_wait_time_s": "300",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--at-once", type=int, default=8, help="workers, each on a node of its own")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a run may take")
    options = parser.parse_args()
    os.environ |= _MANY_ON_ONE
    print(json.dumps(on_ray(options), indent=1))


if __name__ == "__main__":
    main()
