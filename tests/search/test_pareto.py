import numpy as np
import pytest

from slm_ray.search.pareto import RunningFront, front_of, hypervolume
from tests.references import dominated_share, non_dominated


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("values", [3, 1000])  # few values: many duplicates and ties
def test_the_front_is_that_of_the_definition(objectives, values):
    rng = np.random.default_rng(objectives)
    for count in (1, 2, 5, 30, 80):
        rows = rng.integers(values, size=(count, objectives)).astype(float)
        assert front_of(rows) == non_dominated(rows.tolist())


def test_of_equal_rows_the_first_is_kept():
    assert front_of(np.array([[2.0, 2.0], [1.0, 3.0], [1.0, 3.0], [2.0, 2.0], [3.0, 3.0]])) == [0, 1]


@pytest.mark.parametrize(
    "rows, share",
    [
        ([[0.0, 0.0]], 1.0),
        ([[1.0, 1.0]], 0.0),
        ([[0.5, 0.5]], 0.25),
        ([[0.25, 0.5], [0.5, 0.25]], 0.375 + 0.375 - 0.25),
        ([[0.0, 0.75], [0.75, 0.0]], 0.25 + 0.25 - 0.0625),
        ([[0.5, 0.5], [0.5, 0.5], [0.6, 0.6]], 0.25),  # duplicates and dominated points add nothing
        ([[-1.0, 0.5]], 0.5),  # better than ideal counts as ideal
        ([[0.5, 2.0]], 0.0),  # worse than the worst counts for nothing
    ],
)
def test_hypervolumes_in_closed_form(rows, share):
    assert hypervolume(np.array(rows), [0, 0], [1, 1]) == pytest.approx(share)
    assert hypervolume(np.array(rows) * [10, 100] + [5, 7], [5, 7], [15, 107]) == pytest.approx(share)


def test_hypervolume_against_counted_cells():
    rng = np.random.default_rng(0)
    for count in (1, 4, 20):
        rows = rng.random((count, 2))
        assert hypervolume(rows, [0, 0], [1, 1]) == pytest.approx(dominated_share(rows, (0, 0), (1, 1)), abs=0.01)


def test_a_running_front_is_the_front_of_all_that_was_added():
    rng = np.random.default_rng(0)
    for size, objectives in ((0, 2), (1, 2), (200, 1), (300, 2), (300, 3)):
        values = rng.integers(0, 12, (size, objectives)).astype(float)  # with many equal rows
        running = RunningFront()
        for row in rng.permutation(size):
            running.add(values[row], int(row), int(row))
        assert sorted(running.items()) == front_of(values)
        assert [values[row][0] for row in running.items()] == sorted(values[row][0] for row in running.items())
