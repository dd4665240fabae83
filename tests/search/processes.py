"""The processes below a process, by what they are called."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Every process below ``pid``, with its command line."""
    found: dict[int, str] = {}
    try:
        below = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:
        return found  # it has just ended
    for child in map(int, below):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
        except OSError:
            continue
        found |= descendants(child)
    return found


def kill_below(pid: int, name: str) -> list[int]:
    """Kill -9 the processes below ``pid`` whose command line has ``name`` in it."""
    victims = [child for child, command in descendants(pid).items() if name in command]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return victims


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds: {what}"
        time.sleep(0.005)
