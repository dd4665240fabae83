import errno
import io
import re
import time
from pathlib import Path

import pytest

from slm_ray.runtime.forecast import Forecast, Schedule, Work
from slm_ray.runtime.progress import Console, Progress


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_eta_follows_the_rate(clock):
    progress = Progress(Console(stream=io.StringIO()), "search", 100, "trials")
    assert progress.eta_seconds() is None
    clock.now += 30
    progress.update(25)
    assert progress.eta_seconds() == pytest.approx(90)
    assert progress.text("best 21.4") == "search · 25/100 trials · ETA 1 min 30 s · best 21.4"


def test_a_schedule_says_when_all_of_it_is_over(clock):
    schedule = Schedule(["text", "scores", "fits"])
    assert schedule.begin("text") == "[1/3]" and schedule.left == 0
    flops = {"text": 50, "scores": 100, "fits": 200}
    works = [Work(name=name, kind="search", flops=count) for name, count in flops.items()]
    schedule.expect(Forecast(work=tuple(works)), rate=1.0)
    schedule.end(0.1)  # out of a cache: says nothing of the pace
    assert schedule.begin("scores") == "[2/3]" and (schedule.left, schedule.after) == (300, 200)
    console = Console(stream=io.StringIO())
    console.later = lambda: schedule.after
    progress = Progress(console, "scores", 4)
    clock.now += 5
    progress.update(1)
    assert progress.text() == "scores · 1/4 · ETA 15 s · all done in 3 min 35 s"
    schedule.end(200)
    assert schedule.left == 400 and schedule.undone == ["fits"]


def test_work_done_before_a_resume_does_not_flatter_the_eta(clock):
    progress = Progress(Console(stream=io.StringIO()), "search", 100, "trials", already_done=80)
    clock.now += 10
    progress.update(90)
    assert progress.eta_seconds() == pytest.approx(10)


def test_a_log_gets_a_line_every_ten_seconds_and_a_last_one(clock):
    stream = io.StringIO()
    progress = Progress(Console(stream=stream), "search", 100, "trials")
    for done in range(1, 26):
        clock.now += 1
        progress.update(done)
    assert progress.finish("front of 5") == 25
    lines = stream.getvalue().splitlines()
    assert [line.split(" · ")[1] for line in lines] == ["10/100 trials", "20/100 trials", "front of 5"]
    assert lines[-1] == "search · front of 5 · 25 s"


def test_a_terminal_line_is_overwritten_and_lasting_lines_stay(clock):
    stream = Terminal()
    console = Console(stream=stream)
    progress = Progress(console, "search", 100, "trials")
    for done in (1, 2):
        clock.now += 1
        progress.update(done)
    console.line("a winner")
    shown = re.split(r"\r\033\[K", stream.getvalue())
    assert shown == [
        "",
        "search · 1/100 trials · ETA 1 min 39 s",
        "search · 2/100 trials · ETA 1 min 38 s",
        "a winner\n",
    ]


def test_lasting_lines_are_logged_with_their_time(tmp_path):
    console = Console(tmp_path / "run.log", io.StringIO())
    console.line("first\nsecond")
    console.overwrite("passing")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)


def test_a_log_that_cannot_be_written_does_not_stop_the_work(tmp_path, monkeypatch):
    stream = io.StringIO()
    console = Console(tmp_path / "run.log", stream)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "open", full)
    console.line("one")
    console.line("two")
    assert stream.getvalue() == "one\ntwo\n"
