"""Workers that take candidates from a plan: lost ones, those that join, those that cannot be set up, and the front."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm_ray.config.errors import UserError
from slm_ray.runtime.fan_out import Share
from slm_ray.search import measuring
from slm_ray.search import tune_workers as workers
from slm_ray.search.measuring import Report
from slm_ray.search.tasks import Task
from slm_ray.search.tune_workers import Board
from tests.search.test_plan import plan_in


def task(index):
    return Task(index, 0, "seed", f"genes {index}", None)


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


def test_what_a_worker_cannot_prepare_ends_the_search_in_one_sentence(one_ray, tmp_path, monkeypatch):
    class Light(workers.Worker):  # local, so that workers are sent it and need not import this file
        @staticmethod
        def measurer(settings, stack):
            raise UserError("the teacher's file is gone: give another one")

    monkeypatch.setattr(workers, "Worker", Light)
    settings = SimpleNamespace(share=Share(1), teacher=SimpleNamespace(folder=Path("/nowhere")))
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
