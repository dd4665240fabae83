"""A Ray cluster of several raylets on this machine, that lose machines and get new ones."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import uuid
from typing import Any

from tests.cluster.victims import MARK, marked


class Nodes:
    """A head without CPUs, and machines of one CPU each."""

    def __init__(self, count: int, cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self.mark, self._cpus = uuid.uuid4().hex, cpus
        # Of its own: Ray's usual one says where `--address auto` of this machine's other clusters leads.
        self._scratch = tempfile.mkdtemp(prefix="nodes-")
        before = os.environ.get(MARK)
        os.environ[MARK] = self.mark
        try:
            self._cluster = Cluster(
                initialize_head=True, head_node_args={**self._arguments(0), "temp_dir": self._scratch}
            )
            self.machines = [self._add() for _ in range(count)]
        finally:
            os.environ.pop(MARK)
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
