"""One task in a process of its own, which ends when the sweep does: ``python -m slm_ray.studies.child MODULE ARGS…``.

The sweep holds the other end of its standard input. However the sweep ends, kill -9 included, that end closes, and this
process ends at once; the stages keep what they finished at every moment.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence

from slm_ray.runtime.commands import EXIT_INTERRUPTED, run_command


def _end_with_the_sweep() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock the interpreter waits for at its end
        pass
    os._exit(EXIT_INTERRUPTED)


def main(argv: Sequence[str]) -> int:
    """Run a stage's command."""
    threading.Thread(target=_end_with_the_sweep, daemon=True, name="end-with-the-sweep").start()
    module, *rest = argv
    return run_command(importlib.import_module(module).main, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
