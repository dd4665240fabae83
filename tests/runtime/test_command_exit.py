import errno
import os
import subprocess
import sys

import pytest

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.runtime.commands import run_command


def _raiser(error: BaseException):
    def main(_arguments):
        raise error

    return main


def test_a_command_that_succeeds_gives_its_own_status_and_gets_its_arguments(monkeypatch):
    seen = []

    def main(arguments):
        seen.append(list(arguments))
        return 0

    assert run_command(main, ["--trials", "5"]) == 0
    monkeypatch.setattr(sys, "argv", ["search", "--debug", "--space", "fine"])
    assert run_command(main) == 0
    assert seen == [["--trials", "5"], ["--space", "fine"]]


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    assert run_command(_raiser(unknown_name("space", "fines", ["fine", "coarse"])), []) == 2
    assert capsys.readouterr() == ("", "error: unknown space 'fines': did you mean 'fine'? (valid: coarse, fine)\n")


def test_debug_shows_where_it_came_from(capsys):
    assert run_command(_raiser(UserError("no such file")), ["--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: no such file\n")


def test_a_full_disk_anywhere_is_one_line(capsys):
    assert run_command(_raiser(OSError(errno.ENOSPC, "No space left on device", "runs/a")), []) == 2
    assert capsys.readouterr().err == "error: file access runs/a: the disk is full: free some space\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(lines):
    code = f"""
import sys
from slm_ray.runtime.commands import run_command
sys.stdin.readline()
sys.exit(run_command(lambda _: print("line\\n" * {lines}) or 0, []))
"""
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command.stdout.close()
    _, said = command.communicate(b"go\n")
    assert (command.returncode, said) == (141, b"")


def test_an_interruption_without_a_run_offers_no_resume(capsys):
    assert run_command(_raiser(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", "a · b ? × ? ? é"), ("ascii", "a ? b ? ? ? ? ?")])
def test_no_print_ends_a_command_on_a_terminal_that_lacks_a_character(encoding, shown):
    code = "import sys; from slm_ray.runtime.commands import run_command\n"
    code += "sys.exit(run_command(lambda _: print('a · b … × ≥ 語 é') or 0, []))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding},
                          capture_output=True, check=True)  # fmt: skip
    assert done.stdout.decode(encoding) == shown + "\n"


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(_raiser(ZeroDivisionError()), [])
