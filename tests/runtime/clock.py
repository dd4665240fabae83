"""A clock of a run's processes that can be set wrong, without touching the machine's."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

_OFFSET = "SLM_RAY_TEST_CLOCK"


class Clock:
    """The time of day of this process's forks and of all that they start."""

    def __init__(self, offset: Path) -> None:
        self._offset = offset

    def jump(self, seconds: int) -> None:
        """Set it to the machine's time and so many seconds."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def clock_of(work: Path) -> Clock:
    """Have such a clock; this process is started again with it, for a library is preloaded at a start only.

    Args:
        work: A folder for the library and the file that holds the seconds.
    """
    offset, library = work / "clock", work / "clock.so"
    if os.environ.get(_OFFSET) == str(offset):
        return Clock(offset)
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    offset.write_bytes(struct.pack("q", 0))
    os.environ |= {"LD_PRELOAD": str(library), _OFFSET: str(offset)}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
