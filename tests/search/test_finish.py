import contextlib
import json
import os
import subprocess

import pytest

from slm_ray.search.winners import pick_spread
from tests.search.tiny_run import lines_of, outcome_of


@pytest.mark.parametrize(
    "sizes, count, picked",
    [
        ([100, 90, 80, 70, 60], 1, [0]),
        ([100, 90, 80, 70, 60], 2, [0, 4]),
        ([100, 90, 80, 70, 60], 3, [0, 2, 4]),
        ([100, 99, 98, 60], 3, [0, 2, 3]),
        ([100, 60], 5, [0, 1]),
        ([100], 3, [0]),
        ([100, 100, 100], 2, [0, 1]),
        ([], 3, []),
    ],
)
def test_the_best_is_the_first_winner_and_sizes_are_spread(sizes, count, picked):
    assert pick_spread(sizes, count) == picked


@contextlib.contextmanager
def small_disk(path, size):
    """A disk of its own that is soon full; gives a function that makes it larger."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=16m", str(path)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_one_sentence_and_loses_nothing(finished, command, tiny, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "96k") as enlarge:
        run = tmp_path / "disk" / "run"
        assert command(tiny.arguments(run)) == 2
        errors = capsys.readouterr().err
        assert "Traceback" not in errors and "the disk is full: free some space" in errors.splitlines()[-1]
        before = lines_of(run)
        assert not (run / "result.json").exists() or json.loads((run / "result.json").read_text())
        enlarge()
        assert command(["--resume", run]) == 0
        assert lines_of(run)[: len(before)] == before
        assert outcome_of(run) == outcome_of(finished)
        assert (run / "report.html").exists() and not list(run.rglob("*.tmp"))
