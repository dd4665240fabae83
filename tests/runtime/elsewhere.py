"""Another machine, played on this one: the command's files are to be seen only while something runs at home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class _Remote:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class Elsewhere:
    """A :class:`slm_ray.runtime.home.Home` whose disk is hidden from whoever does not ask it.

    Attributes:
        disk: The command's disk; it is there only while a call runs.
        calls: The functions that were run at home, by name.
    """

    here = "another-machine"

    def __init__(self, disk: Path) -> None:
        self.disk, self._hidden = disk, disk.with_name(f"{disk.name}.hidden")
        self.calls: list[str] = []
        self.sent: list[tuple[str, str, int]] = []
        self.actor = self
        self.count = _Remote(lambda *what: self.sent.append(what))
        disk.rename(self._hidden)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function where the disk is to be seen."""
        self.calls.append(function.__name__)
        self._hidden.rename(self.disk)
        try:
            return function(*args)
        finally:
            self.disk.rename(self._hidden)

    def back(self) -> None:
        """Show the disk again, to look at what is there now."""
        self._hidden.rename(self.disk)
