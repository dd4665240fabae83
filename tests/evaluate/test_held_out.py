"""The held-out loss: the mean over predicted tokens, its error, the same however the sequences are dealt out."""

import math

import numpy as np
import pytest
import torch

from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.evaluate.held_out import HeldOutLoss, held_out_loss

COUNT, LENGTH = 7, 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out") / "shards"
    rows = np.arange(COUNT * LENGTH, dtype=np.int32).reshape(COUNT, LENGTH)
    write_shards(folder, rows, np.array([0, 4, 5, 13, 30]), vocab_size=COUNT * LENGTH, num_bytes=100)
    return TokenShards.open(folder)


def losses(ids, positions):
    """A token's loss is a hundredth of its number, so that every one of them can be told in the sum."""
    return ids[:, 1:].flatten().float() / 100


def expected(separate):
    sums, counts = [], []
    for row in range(COUNT):
        tokens = [row * LENGTH + place for place in range(1, LENGTH)]
        kept = [token for token in tokens if not (separate and token in (4, 5, 13, 30))]
        sums.append(sum(kept) / 100)
        counts.append(len(kept))
    mean = sum(sums) / sum(counts)
    spread = sum((total - mean * count) ** 2 for total, count in zip(sums, counts, strict=True))
    return mean, math.sqrt(spread * COUNT / (COUNT - 1)) / sum(counts), sum(counts)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_mean_over_predicted_tokens(shards, separate, batch):
    found = held_out_loss(losses, shards, separate=separate, batch=batch)
    mean, stderr, tokens = expected(separate)
    assert found.loss == pytest.approx(mean) and found.stderr == pytest.approx(stderr) and found.tokens == tokens
    assert found.bits_per_byte == pytest.approx(mean * COUNT * LENGTH / 100 / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(mean))


@pytest.mark.parametrize("world", [3, 9])
def test_several_workers_measure_what_one_does_and_are_called_equally_often(shards, world):
    alone = held_out_loss(losses, shards, separate=True, batch=2)
    parts, calls = [], []
    for rank in range(world):
        count = []

        def counted(ids, positions, count=count):
            count.append(len(ids))
            return losses(ids, positions)

        held_out_loss(
            counted, shards, separate=True, batch=2, rank=rank, world=world,
            reduce=lambda sums: parts.append(sums) or sums,
        )  # fmt: skip
        calls.append(count)
    assert all(count == calls[0] for count in calls)
    together = held_out_loss(losses, shards, separate=True, reduce=lambda _sums: sum(parts), world=world)
    assert together == alone


def test_losses_that_are_no_numbers_stay_so(shards):
    found = held_out_loss(lambda ids, positions: torch.full((ids[:, 1:].numel(),), math.inf), shards, separate=False)
    assert found.loss == math.inf and found.perplexity == math.inf
    assert HeldOutLoss(800.0, 0.0, 1, 1.0).perplexity == math.inf


def test_a_masked_loss_without_bound_spoils_nothing(shards):
    """The first token of a document is not predicted, whatever a model makes of it."""

    def one(ids, positions):
        return torch.where(ids[:, 1:].flatten() == 4, math.inf, losses(ids, positions))

    assert held_out_loss(one, shards, separate=True) == held_out_loss(losses, shards, separate=True)
