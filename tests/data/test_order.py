import numpy as np
import pytest

from slm_ray.data.order import SequenceOrder

SIZES = [1, 2, 3, 4, 5, 16, 17, 1000, 65537]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1, -7, 2**70])
def test_every_epoch_is_a_permutation(size, seed):
    order = SequenceOrder(size, seed)
    for epoch in (0, 1, 2, 1_000_003):
        indices = order.indices(epoch * size, size)
        assert indices.dtype == np.int64
        assert np.array_equal(np.sort(indices), np.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [SequenceOrder(1000, seed).indices(epoch * 1000, 1000) for seed in range(4) for epoch in range(4)]
    for first in range(len(orders)):
        for second in range(first):
            same = int((orders[first] == orders[second]).sum())
            assert same < 12, "two orders share many places; one is expected by chance"


def test_a_position_far_away_costs_no_more_than_a_near_one():
    order = SequenceOrder(10**12, 0)
    indices = order.indices(10**17 + 12345, 64)
    assert len(set(indices.tolist())) == 64
    assert ((indices >= 0) & (indices < 10**12)).all()
