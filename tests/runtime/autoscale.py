"""A training on a cluster that has no machines before there is work: they come for it, and go when it is done.

    python -m tests.runtime.autoscale

The head has no CPUs; Ray's own autoscaler starts machines of one CPU each, which are raylets of this machine (Ray's
fake provider), two at most. A training of two ranks waits for both, and ends with the numbers of one that Ray's local
cluster ran; one of four ranks is refused at once, for the file does not allow so many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.runtime import work
from tests.runtime.victims import MARK, marked, wait_until
from tests.search.tiny_run import Tiny, environment, make_tiny

MOST, IDLE_MINUTES, PATIENCE_SECONDS = 2, 0.25, 600.0
_ALIVE = """
import json, logging, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print("CPUS", ray.cluster_resources().get("CPU", 0))
"""


def cluster_file(gcs: str) -> dict[str, Any]:
    """What `ray up` would have left on the head."""
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "rented": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST},
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    empty: dict[str, Any] = {f"{name}_commands": [] for name in commands}
    return {
        "cluster_name": "fake", "max_workers": MOST, "upscaling_speed": 10.0, "idle_timeout_minutes": IDLE_MINUTES,
        "auth": {}, "docker": {},
        # Without updaters: a machine that does not answer is given back; else it would be repaired by ssh.
        "provider": {
            "type": "fake_multinode", "gcs_address": gcs, "launch_multiple": True, "disable_node_updaters": True,
            "use_node_id_as_ip": True,  # they all have one address, by which they would be taken for one
        },
        "available_node_types": kinds, "head_node_type": "ray.head.default",
        "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [], **empty,
    }  # fmt: skip


@contextlib.contextmanager
def head(folder: Path) -> Iterator[str]:
    """A head and its autoscaler, at the address that is given."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address, mark = f"{ray.util.get_node_ip_address()}:{port}", uuid.uuid4().hex
    path = folder / "bootstrap.yaml"
    path.write_text(json.dumps(cluster_file(address)))
    own = {
        MARK: mark, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0",
        "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder),
    }  # fmt: skip
    words = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-cpus=0",
        f"--autoscaling-config={path}", "--include-dashboard=false", f"--temp-dir={folder}",
    ]  # fmt: skip
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}  # it listens beyond localhost
    try:
        subprocess.run(words, env={**os.environ, **own}, check=True, stdout=subprocess.DEVNULL)
        yield address
    finally:
        for _ in range(3):  # the autoscaler may start one while it is killed
            for pid in dict(marked(mark)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)


def cpus_at(address: str) -> float:
    """The CPUs that a cluster has now."""
    done = subprocess.run([sys.executable, "-c", _ALIVE, address], capture_output=True, text=True)
    return next((float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("CPUS")), -1.0)


def train(tiny: Tiny, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start a training; its output goes into a file beside its folder."""
    log = out.with_suffix(".log").open("w")
    words = [sys.executable, *work.pretrain_words(tiny, out), *more]
    env = environment(tiny) | {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=env, text=True, stdout=log, stderr=subprocess.STDOUT)


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


def on_autoscaler(tiny: Tiny, runs: Path, check: Callable[[str, bool], None]) -> dict[str, Any]:
    """The training on a cluster without machines."""
    whole, rented, refused = runs / "alone", runs / "rented", runs / "refused"
    alone = train(tiny, whole)
    check("a training of two ranks on Ray's local cluster ends", alone.wait(PATIENCE_SECONDS) == 0)
    with tempfile.TemporaryDirectory(prefix="autoscale-") as folder, head(Path(folder)) as address:
        check("the cluster has no machines before there is work", cpus_at(address) == 0)
        began = time.monotonic()
        process = train(tiny, refused, "--workers", "4", "--address", address)
        status = process.wait(PATIENCE_SECONDS)
        check("four ranks are refused at once", status == 2 and "the cluster has 2 CPUs" in said(refused))
        took = time.monotonic() - began
        began = time.monotonic()
        process = train(tiny, rented, "--address", address)
        steps = rented / "teacher.random" / "steps.jsonl"
        wait_until(lambda: steps.exists() or process.poll() is not None, PATIENCE_SECONDS)
        first = time.monotonic() - began
        status = process.wait(PATIENCE_SECONDS)
        check("a training of two ranks gets its two machines", status == 0)
        ended = time.monotonic()
        same = status == 0 and work.pretrain_outcome(rented) == work.pretrain_outcome(whole)
        check("its losses are exactly those of the local cluster", same)
        gone = wait_until(lambda: cpus_at(address) == 0, PATIENCE_SECONDS)
        check("the machines are given back", gone)
        return {
            "refused_after_seconds": round(took, 1), "first_step_after_seconds": round(first, 1),
            "training_seconds": round(ended - began, 1), "given_back_after_seconds": round(time.monotonic() - ended, 1),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slm_ray-autoscale")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    (options.work / "inputs").mkdir(parents=True)
    (options.work / "runs").mkdir()
    checks: dict[str, bool] = {}

    def check(what: str, holds: bool) -> None:
        checks[what] = holds
        print(f"{'ok' if holds else 'FAILED'}: {what}", flush=True)

    found = on_autoscaler(make_tiny(options.work / "inputs"), options.work / "runs", check)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found | {"checks": checks}, indent=1) + "\n")
    if not all(checks.values()):
        raise SystemExit(f"FAILED: see the logs in {options.work / 'runs'}")


if __name__ == "__main__":
    main()
