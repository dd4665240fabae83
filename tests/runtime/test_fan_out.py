"""One fan-out for everything that is spread over processes."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from slm_ray.config.errors import UserError
from slm_ray.runtime.fan_out import FanOut, Share

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_squares(made: Path | None = None, problem: str = ""):
    """A function that squares, and breaks down or complains on demand."""
    if problem:
        raise UserError(problem)
    if made is not None:
        (made / f"{os.getpid()}").touch()

    def work(item, send=None):
        if isinstance(item, Path):  # dies the first time, and says so
            if not item.exists():
                item.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "second try"
        if item == "always dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "mistake":
            raise UserError("items must be numbers, got 'mistake': give others")
        if item == "fault":
            raise ZeroDivisionError("ours")
        if send is not None:
            for part in range(item):
                send(f"{part} of {item}")
        return item * item

    return work


@pytest.fixture(params=[0, pytest.param(2, marks=pytest.mark.slow)], ids=["here", "on ray"])
def workers(request):
    """In this process, and on Ray."""
    if request.param:
        request.getfixturevalue("one_ray")
    return request.param


def test_results_by_place_and_setup_once_per_worker(workers, tmp_path):
    with FanOut(partial(make_squares, tmp_path), workers) as pool:
        assert pool.map(range(8)) == [number**2 for number in range(8)]
        assert dict(pool.run(iter([5, 6]))) == {0: 25, 1: 36}
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_mistakes_of_users_and_faults_of_ours(workers):
    with FanOut(make_squares, workers) as pool:
        with pytest.raises(UserError, match="items must be numbers, got 'mistake': give others"):
            pool.map([1, "mistake", 3])
        told = []
        found = dict(pool.run([1, "mistake", 3], on_failure=lambda index, error: told.append((index, str(error)))))
        assert found == {0: 1, 2: 9} and [index for index, _ in told] == [1]
        with pytest.raises(ZeroDivisionError):
            pool.map(["fault"])
        assert pool.map([4]) == [16]
    with FanOut(partial(make_squares, problem="no such model"), workers) as pool:
        with pytest.raises(UserError, match="no such model"):
            pool.map([1])


def test_messages_come_before_their_result(workers):
    seen = []
    with FanOut(make_squares, workers) as pool:
        for index, result in pool.run([2, 3], receive=lambda index, message: seen.append((index, message))):
            seen.append((index, result))
    assert [entry for entry in seen if entry[0] == 0] == [(0, "0 of 2"), (0, "1 of 2"), (0, 4)]
    assert [entry for entry in seen if entry[0] == 1][-1] == (1, 9) and len(seen) == 7


def test_a_lost_workers_item_goes_to_another(one_ray, tmp_path):
    said = []
    with FanOut(make_squares, 2, say=said.append, name="scorer") as pool:
        assert pool.map([1, tmp_path / "died", 3]) == [1, "second try", 9]
        assert said == ["a scorer died (ActorDiedError); its item is given to another one"]
        with pytest.raises(UserError, match="the scorer of item 1 died 3 times: is memory short"):
            pool.map([1, "always dies", 3])
        failed = []
        left = pool.run(["always dies", 2], remaining=lambda _, item: 7, on_failure=lambda *told: failed.append(told))
        assert dict(left) == {0: 49, 1: 4} and not failed


def test_a_share_that_no_machine_has(one_ray):
    with FanOut(make_squares, 1, Share(cpus=64), name="scorer") as pool:
        with pytest.raises(UserError, match="a scorer needs 64 CPU, and the Ray cluster has 2 CPU: give it room"):
            pool.map([1])
    assert Share(2, 0.5).how_many_fit({"CPU": 8, "GPU": 1}) == 2 and Share(2).how_many_fit({"CPU": 5}) == 2
