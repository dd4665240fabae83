"""Two workers do what one does, with every engine; and a run goes on with another number of them."""

import pytest

from tests.pretrain.tiny_pretrain import evals_of, make_job, make_shards, run, run_apart, steps_of, write_start

ENGINES = {
    "torch": {},
    "zero0": {"engine": "deepspeed", "zero": 0},
    "zero1": {"engine": "deepspeed", "zero": 1},
    "zero2": {"engine": "deepspeed", "zero": 2},
    "zero3": {"engine": "deepspeed", "zero": 3},
}
ACCUMULATED = {"micro_batch": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    return run(make_job(write_start(tmp_path_factory.mktemp("one") / "whole"), data))


@pytest.fixture(scope="module")
def found(data, expected, tmp_path_factory):
    """Whole runs of two workers; and runs of which one worker did the first third, two the second, one the last."""
    folder = tmp_path_factory.mktemp("two")
    whole, first, middle = [], [], []
    for name, engine in ENGINES.items():
        whole.append(make_job(write_start(folder / f"{name}-whole"), data, **engine, **ACCUMULATED))
        start = write_start(folder / name)
        first.append(make_job(start, data, 2, **engine))
        middle.append(make_job(start, data, 4, **engine))
    alone = run_apart(first, folder / "first")
    both = run_apart([*whole, *middle], folder / "middle", workers=2)
    last = run_apart([make_job(folder / name, data, **engine) for name, engine in ENGINES.items()], folder / "last")
    halves = [one + two + three for one, two, three in zip(alone, both[len(whole) :], last, strict=True)]
    return {"whole": dict(zip(ENGINES, both, strict=False)), "parts": dict(zip(ENGINES, halves, strict=True))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_two_workers_train_as_one(name, expected, found):
    records = found["whole"][name]
    assert steps_of(records) == pytest.approx(steps_of(expected), rel=1e-5)
    assert evals_of(records) == pytest.approx(evals_of(expected), rel=1e-5)
    assert steps_of(records, "grad_norm") == pytest.approx(steps_of(expected, "grad_norm"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_more_workers_or_fewer_go_on(name, expected, found):
    records = found["parts"][name]
    assert steps_of(records, "step") == [1, 2, 3, 4, 5, 6]
    assert steps_of(records) == pytest.approx(steps_of(expected), rel=1e-5)
    assert evals_of(records)[-1] == pytest.approx(evals_of(expected)[-1], rel=1e-5)
