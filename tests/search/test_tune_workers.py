"""Workers that take candidates from a plan: lost ones, those that join, those that cannot be set up, and the front."""

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.search import Measurement
from slm_ray.runtime.fan_out import Share
from slm_ray.search import measuring
from slm_ray.search import tune_workers as workers
from slm_ray.search.measuring import Report
from slm_ray.search.tasks import Outcome, Task
from slm_ray.search.tune_workers import Board
from tests.search.test_plan import plan_in, records_of, state_of
from tests.search.without_ray import drive

TEACHER = SimpleNamespace(folder=Path("/nowhere"))
SETTINGS = SimpleNamespace(share=Share(1), teacher=TEACHER, stands_for="settings")


def task(index):
    return Task(index, 0, "seed", f"genes {index}", None)


def _outcome_of():
    def outcome_of(genes):
        """A measurement made up from genes."""
        value = 1.0 + sum(genes.encode()) % 97
        found = Measurement(value=value, stderr=0.1, tokens=64, seconds=0.0, blocks=(value,) * 4)
        return Outcome(measurements={"perplexity": found}, values={"perplexity": value}, decided="full", seconds=0.0)

    return outcome_of  # local, so that workers are sent it and need not import this file


def test_a_board_hands_out_tasks_and_brings_back_reports():
    async def play():
        board = Board()
        first = asyncio.ensure_future(board.take("a", None))
        await board.exchange([task(0), task(1)], 0)
        assert (await first).index == 0
        assert (await board.take("b", None)).index == 1
        last = asyncio.ensure_future(board.take("a", Report(0)))
        assert await board.exchange([], 5) == ([Report(0)], [])
        await board.close()
        assert await last is None and await board.take("b", Report(1)) is None
        assert await board.exchange([], 5) == ([Report(1)], [])

    asyncio.run(asyncio.wait_for(play(), 20))


def light_worker(folder, dies_at):
    """What measures without a teacher; one process dies in the middle of a candidate."""
    outcome_of = _outcome_of()

    class Light(workers.Worker):
        @staticmethod
        def measurer(settings, stack):
            def measure(task):
                if task.index == dies_at and not (folder / "dead").exists():
                    (folder / "dead").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return Report(task.index, outcome_of(task.genes))

            if settings.stands_for == "nothing":
                raise UserError("the teacher's file is gone: give another one")
            return measure

    return Light


def test_a_killed_worker_is_replaced_and_the_front_is_that_of_one_process(one_ray, tmp_path, monkeypatch):
    for name in ("alone", "run"):
        (tmp_path / name).mkdir()
    plan, alone = (plan_in(tmp_path / name, trials=24, population=6) for name in ("run", "alone"))
    monkeypatch.setattr(workers, "Worker", light_worker(tmp_path, dies_at=9))
    workers.run_plan(plan, SETTINGS, 2, tmp_path / "scratch", grows=True)
    plan.journal.close()
    assert (tmp_path / "dead").exists() and not (tmp_path / "scratch").exists()
    drive(alone, lambda task: (_outcome_of()(task.genes), None))
    assert state_of(plan) == state_of(alone)
    assert [record.status for record in records_of(plan)] == ["done"] * 24


def test_what_a_worker_cannot_prepare_ends_the_search_in_one_sentence(one_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "Worker", light_worker(tmp_path, dies_at=None))
    settings = SimpleNamespace(share=Share(1), teacher=TEACHER, stands_for="nothing")
    with pytest.raises(UserError, match="could not prepare to measure candidates: the teacher's file is gone"):
        workers.run_plan(plan_in(tmp_path), settings, 2, tmp_path / "scratch", grows=False)


def test_system_errors_are_tried_again_and_other_failures_are_the_candidates(tmp_path):
    def fail(error):
        def evaluate(spec, rival):
            raise error

        return SimpleNamespace(evaluate=evaluate)

    stack = SimpleNamespace(decode=lambda genes: genes, from_text=lambda text: text)
    found = measuring.measure(fail(OSError("stale file handle")), stack, task(3))
    assert found.may_pass and found.index == 3 and "stale file handle" in found.error
    found = measuring.measure(fail(IndexError("index out of range")), stack, task(3))
    assert not found.may_pass and found.error == "IndexError: index out of range" and found.outcome is None
