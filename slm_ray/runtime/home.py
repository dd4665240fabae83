"""The machine that the command runs on, for workers on other machines.

A run's folder, its cache, its teacher and its token shards are files of that machine. Where a cluster was joined, one
actor there does for workers on other machines what has to be done with those files: machines need not share a disk.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error

_NAME = "slm_ray.home"
_CALLS_AT_ONCE = 8
_Answer = TypeVar("_Answer")


class HomeActor:
    """Runs functions on the command's machine."""

    def __init__(self, node: str) -> None:
        """Take the machine's name in Ray."""
        self.node = node
        self._sent: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()  # several calls run at once

    def where(self) -> str:
        """The machine's name in Ray."""
        return self.node

    def run(self, function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
        """Run a function there: what it gives, or the sentence of what a user can mend."""
        try:
            return function(*args), ""
        except UserError as error:  # Ray would send it on with its traceback
            return None, str(error)

    def count(self, what: str, node: str, num_bytes: int) -> None:
        """Remember that a machine was sent bytes of something."""
        with self._counting:
            self._sent[what, node] += num_bytes

    def sent(self) -> list[tuple[str, str, int]]:
        """What was sent: (what, machine, bytes) of everything so far."""
        return [(what, node, num_bytes) for (what, node), num_bytes in self._sent.items()]


@dataclass(frozen=True)
class Home:
    """A worker's way to the command's machine.

    Attributes:
        actor: The actor there.
        here: The worker's own machine, as Ray names it.
    """

    actor: Any
    here: str

    def run(self, function: Callable[..., _Answer], *args: Any) -> _Answer:
        """Run a function there and wait for it; large arguments and answers travel through Ray's object store.

        Raises:
            UserError: The function raised it.
        """
        import ray

        found: tuple[_Answer, str] = ray.get(self.actor.run.remote(function, *args))
        if found[1]:
            raise UserError(found[1])
        return found[0]


def open_home() -> Any:
    """Start the actor on the machine of this process; it lives as long as its handle and the job do."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    actor = ray.remote(HomeActor).options(
        name=_NAME, num_cpus=0, max_concurrency=_CALLS_AT_ONCE, scheduling_strategy=_on(node)
    )
    handle = actor.remote(node)
    ray.get(handle.where.remote())
    return handle


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def home_of(folder: Path) -> Home | None:
    """The way to the machine on which a folder lies; None where this process sees the folder itself.

    It does on the command's own machine, and on others where the folder is on a disk that they share, which is tried
    with a file that is there for the moment.

    Args:
        folder: A folder of the command's machine. It is made there if it is not there.
    """
    home = away()
    if home is None:
        return None
    probe = folder / f".probe-{uuid.uuid4().hex}"
    home.run(_put_probe, probe)
    seen = probe.exists()
    home.run(_remove_probe, probe)
    return None if seen else home


def away() -> Home | None:
    """The way to the command's machine; None on that machine itself, and where no cluster was joined."""
    actor = _open_home()
    if actor is None:
        return None
    import ray

    here = ray.get_runtime_context().get_node_id()
    return None if ray.get(actor.where.remote()) == here else Home(actor, here)


def _open_home() -> Any:
    """The actor of the cluster that this process is in; None where it is in none, or none was joined."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    try:
        return ray.get_actor(_NAME)
    except ValueError:
        return None


def _put_probe(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise explain_os_error(error, f"writing {path.parent}") from error


def _remove_probe(path: Path) -> None:
    path.unlink(missing_ok=True)


def pinned_to_home(num_cpus: float) -> dict[str, Any]:
    """Ray's options for a task that has to run on the command's machine; none besides the CPUs where there is only one.

    Args:
        num_cpus: CPUs of the task. A machine that gives Ray none, as the heads of many clusters, is asked for none.
    """
    if _open_home() is None:
        return {"num_cpus": num_cpus}
    import ray

    node = ray.get_runtime_context().get_node_id()
    there = next(entry for entry in ray.nodes() if entry["NodeID"] == node)["Resources"]
    return {"num_cpus": min(num_cpus, there.get("CPU", 0)), "scheduling_strategy": _on(node)}


def sent_files(actor: Any) -> list[tuple[str, str, int]]:
    """What the actor's machine has sent to others: (what, machine, bytes)."""
    import ray

    return list(ray.get(actor.sent.remote()))
