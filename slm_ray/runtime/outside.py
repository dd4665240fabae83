"""``--address ray://HEAD:10001``: a command given on a machine that is not part of the cluster.

Ray's client connects to the head; the same command runs there, with its files sent before and fetched after. So the
driver is near its workers, reads and writes its files as ever, and no option means anything else.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import slm_ray
from slm_ray.config.errors import UserError
from slm_ray.runtime.client import client_address, connected
from slm_ray.runtime.commands import EXIT_INTERRUPTED
from slm_ray.runtime.luggage import Luggage, pack
from slm_ray.runtime.progress import Console
from slm_ray.runtime.transfers import Head, fetch, send

_LOOK_EVERY_SECONDS = 0.5
# With one of these nothing is written, or the words say where.
_NO_NEW_RUN = ("--dry-run", "--table", "--wandb-sweep", "--export", "--resume", "--out")
_Main = Callable[[Sequence[str]], int]


def also_from_outside(module: str) -> Callable[[_Main], _Main]:
    """Let a command be given with ``--address ray://…`` too.

    Args:
        module: What ``python -m`` runs it by.
    """

    def wrap(main: _Main) -> _Main:
        @functools.wraps(main)
        def begin(argv: Sequence[str]) -> int:
            address = client_address(argv)
            if address is None or {"--help", "-h"} & set(argv):
                return main(argv)
            with connected(address) as (head, cluster):
                return run_on(head, cluster, module, list(argv), Path.cwd())

        return begin

    return wrap


def run_on(head: Head, cluster: str, module: str, words: list[str], here: Path) -> int:
    """Run a command on a cluster's head.

    Args:
        head: Where.
        cluster: The address that it joins there.
        module: What ``python -m`` runs it by.
        words: Its arguments as they were given here.
        here: The folder they were given in.

    Returns:
        The command's exit status.

    Raises:
        UserError: Files cannot be sent or fetched, the head has another version, or the command was killed there.
    """
    there = head.call("version")
    if there != slm_ray.__version__:
        raise UserError(
            f"the head has slm_ray {there} and this machine {slm_ray.__version__}: install the same on both"
        )
    address = str(client_address(words))
    luggage = pack(_with_out([word.replace(address, cluster) for word in words], module), here)
    luggage.names[cluster] = address
    console = Console()
    before = send(head, luggage, console)
    head.call("start", module, luggage.words)
    printed = _Printed(luggage)
    try:
        status = _follow(head, printed)
    except KeyboardInterrupt:
        head.call("interrupt")
        _follow(head, printed)
        status = EXIT_INTERRUPTED
    fetch(head, luggage, before, console)
    head.call("clear")
    if status < 0:
        raise UserError(
            f"the command was ended on the head by signal {-status}: what was finished is kept; use --resume"
        )
    return status


def _with_out(words: list[str], module: str) -> list[str]:
    """The words with a run folder, which is fetched in the end."""
    if any(word.partition("=")[0] in _NO_NEW_RUN for word in words):
        return words
    stage, stamp = module.split(".")[1], datetime.now().strftime("%Y%m%d-%H%M%S")
    return [*words, "--out", f"runs/{stage}-{stamp}"]


@dataclass
class _Printed:
    """What of a command's output and errors has been read, and the beginning of a line of each."""

    luggage: Luggage
    starts: list[int] = field(default_factory=lambda: [0, 0])
    rest: list[bytes] = field(default_factory=lambda: [b"", b""])

    def take(self, parts: Sequence[bytes], is_end: bool) -> None:
        """Print whole lines, in the end what there is."""
        for index, (data, stream) in enumerate(zip(parts, (sys.stdout, sys.stderr), strict=True)):
            self.starts[index] += len(data)
            lines, newline, rest = (self.rest[index] + data).rpartition(b"\n")
            ready, self.rest[index] = (lines + newline + rest, b"") if is_end else (lines + newline, rest)
            stream.write(self.luggage.back(ready.decode("utf-8", "replace")))
            stream.flush()


def _follow(head: Head, printed: _Printed) -> int:
    """Print what the command prints until it has ended; gives its status."""
    while True:
        *parts, status = head.call("said", tuple(printed.starts))
        is_end = status is not None and not any(parts)
        printed.take(parts, is_end)
        if is_end:
            return int(status)
        if not any(parts):
            time.sleep(_LOOK_EVERY_SECONDS)
