"""A Ray cluster of several raylets on this machine, that lose machines and get new ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from typing import Any

from tests.runtime.victims import MARK, marked


class Nodes:
    """A head without CPUs, and machines of one CPU each."""

    def __init__(self, count: int, cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self.mark, self._cpus = uuid.uuid4().hex, cpus
        # Of its own: Ray's usual one says where `--address auto` of this machine's other clusters leads.
        self._scratch = tempfile.mkdtemp(prefix="nodes-")
        os.mkdir(os.path.join(self._scratch, "ray"))
        before = os.environ.get(MARK)
        os.environ |= {MARK: self.mark, "RAY_TMPDIR": self._scratch}
        try:
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={**self._arguments(0), "temp_dir": self._scratch},
            )
            self.machines = [self._add() for _ in range(count)]
        finally:
            del os.environ[MARK], os.environ["RAY_TMPDIR"]
            if before is not None:
                os.environ[MARK] = before
        self.address = self._cluster.address

    def _arguments(self, cpus: int) -> dict[str, Any]:
        return {"num_cpus": cpus, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20,
                "include_dashboard": False}  # fmt: skip

    def _add(self) -> Any:
        return self._cluster.add_node(wait=True, **self._arguments(self._cpus))

    def add(self) -> Any:
        """A new machine joins."""
        os.environ[MARK] = self.mark
        try:
            self.machines.append(self._add())
        finally:
            os.environ.pop(MARK)
        return self.machines[-1]

    def lose(self, machine: Any) -> None:
        """Kill -9 a machine's raylet, which takes its workers with it."""
        self.machines.remove(machine)
        os.kill(machine.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def lose_one(self, rng: random.Random) -> None:
        """Lose any one machine; a new one joins."""
        self.lose(self.machines[rng.randrange(len(self.machines))])
        self.add()

    def processes(self) -> dict[int, str]:
        """Everything that runs on it."""
        return dict(marked(self.mark))

    def close(self) -> None:
        """Take it down."""
        self._cluster.shutdown()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self._scratch, ignore_errors=True)


class NodesApart:
    """The same, led by a process of its own: one that forks must have no connection to Ray.

    Attributes:
        address: Of the head.
        machines: The process ids of the machines' raylets.
    """

    def __init__(self, count: int) -> None:
        words = [sys.executable, "-m", "tests.runtime.nodes", str(count)]
        self._leader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = self._hear()
        self.address, self._mark = str(told["address"]), str(told["mark"])
        self.machines: list[int] = told["raylets"]

    def _hear(self) -> dict[str, Any]:
        assert self._leader.stdout is not None
        for line in self._leader.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit("the cluster could not be started")

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._leader.stdin is not None
        self._leader.stdin.write(f"{word}\n")
        self._leader.stdin.flush()
        return self._hear()

    def add(self) -> int:
        """A new machine joins."""
        self.machines = self._ask("add")["raylets"]
        return self.machines[-1]

    def lose(self, machine: int) -> None:
        """Kill -9 a machine's raylet, which takes its workers with it."""
        self.machines = self._ask(f"lose {machine}")["raylets"]

    def lose_one(self, rng: random.Random) -> None:
        """Lose any one machine; a new one joins."""
        self.lose(rng.choice(self.machines))
        self.add()

    def processes(self) -> dict[int, str]:
        """Everything that runs on it."""
        return dict(marked(self._mark))

    def close(self) -> None:
        """Take it down."""
        self._leader.communicate(timeout=120)


def _raylet(machine: Any) -> int:
    return int(machine.all_processes["raylet"][0].process.pid)


def main() -> None:
    """Lead a cluster for :class:`NodesApart`, until its standard input ends."""
    nodes = Nodes(int(sys.argv[1]))
    try:
        words = ["hello"]
        while words:
            if words[0] == "add":
                nodes.add()
            elif words[0] == "lose":
                nodes.lose(next(one for one in nodes.machines if _raylet(one) == int(words[1])))
            raylets = [_raylet(one) for one in nodes.machines]
            print(json.dumps({"address": nodes.address, "mark": nodes.mark, "raylets": raylets}), flush=True)
            words = sys.stdin.readline().split()
    finally:
        nodes.close()


if __name__ == "__main__":
    main()
