"""Progress with an estimate of the time left, on a terminal and in a log file alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from slm_ray.config.redact import redact
from slm_ray.config.units import format_seconds

_TERMINAL_INTERVAL_SECONDS = 0.5
_LINE_INTERVAL_SECONDS = 10.0


class Console:
    """Prints lines for a person and appends the same lines, with the time, to a log file.

    Attributes:
        on_progress: Called whenever any phase says how much of it is done.
        later: Seconds that the phases after the running one will take; None where nobody knows.
    """

    def __init__(self, log_file: Path | None = None, stream: TextIO | None = None) -> None:
        """Write to ``stream`` (standard error by default) and, when given, to ``log_file``."""
        self.log_file = log_file
        self.stream = stream if stream is not None else sys.stderr
        self.is_terminal = self.stream.isatty()
        self.on_progress: Callable[[], None] = lambda: None
        self.later: Callable[[], float | None] = lambda: None
        self._overwritable = False

    def line(self, text: str) -> None:
        """Print one lasting line."""
        text = redact(text)
        if self._overwritable:
            self.stream.write("\r\033[K")
            self._overwritable = False
        self.stream.write(text + "\n")
        self.stream.flush()
        self._log(text)

    def overwrite(self, text: str) -> None:
        """Print a line that the next one replaces (terminals only)."""
        if self.is_terminal:
            self.stream.write("\r\033[K" + redact(text))
            self.stream.flush()
            self._overwritable = True

    def _log(self, text: str) -> None:
        if self.log_file is None:
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.writelines(f"{stamp} {part}\n" for part in text.splitlines())
        except OSError:
            # A full disk must not stop the work through its log; the records say so themselves.
            self.log_file = None


class Progress:
    """One phase of a run: what is done, out of how much, and when it will be over."""

    def __init__(self, console: Console, label: str, total: float, unit: str = "", already_done: float = 0) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done = self._start_done = already_done
        self._start = time.monotonic()
        self._last_print = self._start

    def eta_seconds(self) -> float | None:
        """Seconds left at the rate seen so far; None while nothing is known."""
        advanced = self.done - self._start_done
        if self.total <= 0 or advanced <= 0:
            return None
        return (time.monotonic() - self._start) / advanced * max(self.total - self.done, 0)

    def text(self, note: str = "") -> str:
        """The line that says where the phase stands."""
        parts = [self.label]
        if self.total > 0:
            parts.append(f"{self.done:,.0f}/{self.total:,.0f} {self.unit}".rstrip())
        eta = self.eta_seconds()
        if eta is not None:
            parts.append(f"ETA {format_seconds(eta)}")
            if later := self.console.later():
                parts.append(f"all done in {format_seconds(eta + later)}")
        return " · ".join(parts + ([note] if note else []))

    def update(self, done: float, note: str = "") -> None:
        """Say how much is done; prints at most twice a second on a terminal, every ten seconds elsewhere."""
        self.done = done
        self.console.on_progress()
        now = time.monotonic()
        interval = _TERMINAL_INTERVAL_SECONDS if self.console.is_terminal else _LINE_INTERVAL_SECONDS
        if now - self._last_print < interval:
            return
        self._last_print = now
        if self.console.is_terminal:
            self.console.overwrite(self.text(note))
        else:
            self.console.line(self.text(note))

    def finish(self, note: str = "") -> float:
        """End the phase with one lasting line.

        Returns the seconds it took.
        """
        seconds = time.monotonic() - self._start
        self.console.line(" · ".join([self.label, *([note] if note else []), format_seconds(seconds)]))
        return seconds
