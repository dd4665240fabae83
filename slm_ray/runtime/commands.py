"""How every command ends: 0 when done, 2 with one sentence when the user can fix it, 130 and 141 when cut short.

130 is an interruption, 141 a reader of its output that has gone, as shells say it.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import select
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.records.files import explain_os_error

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # what a shell reports of a process that SIGPIPE ended

# A process that ends looks for garbage among all that torch and transformers have made: over a second, for nothing.
atexit.register(gc.freeze)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run.

    Attributes:
        run: The folder to resume; None where there is no run yet
    """

    def __init__(self, run: str | None) -> None:
        super().__init__()
        self.run = run


def print_anywhere() -> None:
    """Let no print of this process fail for a character that the terminal does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn what goes wrong into an exit status.

    ``--debug`` anywhere among the arguments shows the traceback as well.

    ``argv``: The arguments; the process's own by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    print_anywhere()
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _fail(str(error), debug)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return EXIT_NO_READER
        place = f" {error.filename}" if error.filename else ""
        return _fail(str(explain_os_error(error, f"file access{place}")), debug)
    except KeyboardInterrupt as error:
        if debug:
            traceback.print_exc()
        run = error.run if isinstance(error, Interrupted) else None
        print(f"interrupted: what was finished is kept; continue with --resume {run}" if run else "interrupted",
              file=sys.stderr)  # fmt: skip
        return EXIT_INTERRUPTED


def command_line(prog: str, argv: Sequence[str]) -> str:
    """The command as it was given, for the record, quoted for a shell."""
    return " ".join([prog, *map(shlex.quote, argv)])


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more, as after ``| head``; then it goes nowhere from here on."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # not a file of the system's, as under a test runner
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {redact(message)}", file=sys.stderr)
    return EXIT_USER_ERROR
