"""The largest micro-batch that fits, found by trying; and that results do not depend on it."""

import pytest
import torch

from slm_ray.pretrain import micro_batch
from slm_ray.pretrain.build import Place
from slm_ray.pretrain.micro_batch import default_micro_batch, divisors, find_micro_batch
from tests.pretrain.tiny_pretrain import HERE, evals_of, make_job, make_shards, run, steps_of, write_start

GPU = Place(0, 1, torch.device("cuda"))
MIB = 1 << 20


class Process:
    """A pretended process: every sequence of a batch takes ``each`` bytes over ``base``; loading once took ``mark``."""

    def __init__(self, each, base=100 * MIB, mark=0):
        self.each, self.base, self.mark, self.tried = each, base, max(mark, base), []

    def run(self, size):
        self.tried.append(size)
        self.mark = max(self.mark, self.base + size * self.each)

    def find(self, share, free, reserve=0):
        return find_micro_batch(
            self.run, share, HERE, reserve=reserve, available=lambda: free, memory=lambda: (self.base, self.mark)
        )


def test_divisors():
    assert divisors(12) == [12, 6, 4, 3, 2, 1]


def test_what_is_taken_where_nothing_is_asked():
    assert default_micro_batch(8, 512, HERE) == 4
    assert default_micro_batch(6, 512, HERE) == 3
    assert default_micro_batch(8, 4096, HERE) == 1
    assert default_micro_batch(8, 4096, GPU) == 8


@pytest.mark.parametrize("free, expected", [(1250, 64), (1000, 64), (640, 32), (500, 32), (300, 16), (100, 8), (20, 1)])
def test_on_a_cpu_two_sizes_are_run_and_the_rest_is_extrapolated(free, expected):
    """Ten MiB a sequence and four fifths of the free memory: 64 sequences need 800 MiB of free memory."""
    process = Process(10 * MIB)
    found = process.find(64, free * MIB)
    assert process.tried == [1, 2][: len(process.tried)]
    assert found == expected


def test_a_peak_that_loading_left_hides_small_batches():
    """With a mark of 190 MiB, nothing rises before eight sequences; at 16 and 32 the slope is known."""
    process = Process(10 * MIB, mark=190 * MIB)
    assert process.find(512, 10_000 * MIB) == 512
    assert process.tried == [1, 2, 4, 8, 16, 32]


def test_the_next_size_is_not_run_where_it_might_not_fit():
    process = Process(100 * MIB, mark=150 * MIB)
    assert process.find(64, 200 * MIB) == 1
    assert process.tried == [1]


def test_a_share_of_one_and_shares_that_are_no_power_of_two():
    assert Process(10 * MIB).find(1, 5 * MIB) == 1
    assert Process(10 * MIB).find(6, 60 * MIB) == 3
    tiny = Process(10)
    assert tiny.find(6, 60 * MIB) == 6 and tiny.tried == [1, 2, 4, 6]


def test_what_training_needs_besides_is_left_free():
    assert Process(10 * MIB).find(64, 500 * MIB) == 32
    assert Process(10 * MIB).find(64, 500 * MIB, reserve=200 * MIB) == 16


def test_free_memory_is_shared_by_the_workers_of_a_machine(monkeypatch):
    monkeypatch.setattr(micro_batch.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert micro_batch._free_memory() == 250


def test_on_a_gpu_sizes_are_tried_from_the_largest_down():
    tried = []

    def run_batch(size):
        tried.append(size)
        if size > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert find_micro_batch(run_batch, 12, GPU) == 3
    assert tried == [12, 6, 4, 3]
    tried.clear()
    assert find_micro_batch(lambda size: run_batch(size + 99), 2, GPU) == 1  # the training's own error says what to do


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def test_results_do_not_depend_on_it(data, tmp_path):
    whole = run(make_job(write_start(tmp_path / "whole"), data, micro_batch=8))
    for size in (1, 2, 4, 0, None):
        records = run(make_job(write_start(tmp_path / f"m{size}"), data, micro_batch=size))
        assert records[0][1]["micro_batch"] == (size or 8)
        assert steps_of(records) == pytest.approx(steps_of(whole), rel=1e-5)
        assert evals_of(records) == pytest.approx(evals_of(whole), rel=1e-5)


def test_finding_one_leaves_no_gradients(data, tmp_path):
    alone = run(make_job(write_start(tmp_path / "m"), data, micro_batch=8))
    assert steps_of(run(make_job(write_start(tmp_path / "n"), data, micro_batch=0))) == steps_of(alone)
