"""The same work as on hosts of our own, on several raylets of this machine: for where namespaces are not permitted.

They share the disk and the network, so this shows that work is spread and that its results do not depend on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slm_ray.runtime.session import on_localhost
from tests.runtime import work
from tests.runtime.nodes import Nodes
from tests.search.tiny_run import Tiny, environment

if TYPE_CHECKING:
    from tests.runtime.hosts import Report


# As on hosts: a busy machine.
_PATIENT = {"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"}


def same_work_on_raylets(inputs: Path, tiny: Tiny, count: int, report: Report) -> None:
    """Both commands alone and on a head with ``count`` machines of one CPU."""
    os.environ |= _PATIENT
    runs = inputs.parent / "runs"
    search, training = runs / "search", runs / "training"
    with report.timed("search on one machine"):
        _run(tiny, work.search_words(tiny, runs / "search-alone", 2))
    with report.timed("training on one machine"):
        _run(tiny, work.pretrain_words(tiny, runs / "training-alone"))
    with _nodes(max(count, work.RANKS)) as address:
        with report.timed("search on the raylets"):
            _run(tiny, [*work.search_words(tiny, search, count), "--address", address])
        with report.timed("training on the raylets"):
            _run(tiny, [*work.pretrain_words(tiny, training), "--address", address])
        lay_on = _machines_of("RayTrainWorker", address)
    same = work.search_outcome(search) == work.search_outcome(runs / "search-alone")
    report.check("the search's results are exactly those of one machine", same)
    same = work.pretrain_outcome(training) == work.pretrain_outcome(runs / "training-alone")
    report.check("the training's losses are exactly those of one machine", same)
    report.check("the two ranks lay on two raylets", lay_on == work.RANKS)


@contextlib.contextmanager
def _nodes(count: int) -> Iterator[str]:
    nodes = Nodes(count)
    try:
        yield nodes.address
    finally:
        nodes.close()


def _run(tiny: Tiny, words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], env=environment(tiny), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"FAILED: {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _machines_of(kind: str, address: str) -> int:
    """On how many machines actors of a class were so far."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray._private.state import actors

    with on_localhost():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    found = {actor["Address"]["NodeID"] for actor in actors().values() if actor["ActorClassName"] == kind}
    ray.shutdown()
    return len(found)
