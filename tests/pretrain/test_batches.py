"""Which tokens a step sees, what each of them counts, and how many fit into a forward pass."""

import numpy as np
import pytest
import torch

from slm_ray.data.shards import TokenShards
from slm_ray.pretrain.batches import Batches, default_micro_batch, find_micro_batch, target_mask
from slm_ray.pretrain.engine import Place
from slm_ray.pretrain.module import StudentLoss
from tests.models.tiny import NAMES, tiny_model
from tests.pretrain.tiny_pretrain import (
    HERE,
    LENGTH,
    SEQUENCES,
    evals_of,
    make_job,
    run,
    steps_of,
    write_start,
)


@pytest.fixture(scope="module")
def shards(data):
    return TokenShards.open(data / "shards")


def step_of(shards, step, world, micro_batch, separate=True):
    """All micro-batches of a step, worker by worker."""
    return [
        list(Batches(shards, 5, 8, separate=separate, rank=rank, world=world).at(step, micro_batch))
        for rank in range(world)
    ]


@pytest.mark.parametrize("separate", [True, False])
def test_a_step_is_the_same_tokens_at_the_same_weights_however_it_is_dealt_out(shards, separate):
    (whole,) = step_of(shards, 3, 1, 8, separate)
    (alone,) = whole
    for world, micro_batch in ((1, 4), (1, 1), (2, 4), (2, 2), (4, 1), (8, 1)):
        workers = step_of(shards, 3, world, micro_batch, separate)
        parts = [part for worker in workers for part in worker]
        for field in ("ids", "positions"):
            if getattr(alone, field) is not None:
                assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(alone, field))
        # An engine takes the mean over workers and micro-batches, so a part's weights are as much larger.
        weights = torch.cat([part.weights for part in parts]) / len(parts)
        torch.testing.assert_close(weights, alone.weights)
        assert weights.sum().item() == pytest.approx(1, rel=1e-5)


def test_an_epoch_has_every_sequence_once_and_the_next_another_order(shards):
    read_by = Batches(shards, 5, 4, separate=True)
    steps = SEQUENCES // 4
    epochs = [
        np.concatenate([part.indices for step in range(steps) for part in read_by.at(epoch * steps + step, 2)])
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == list(range(SEQUENCES)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert np.array_equal(next(read_by.at(0, 4)).ids.numpy(), shards.rows(epochs[0][:4]))


def test_a_part_of_the_shards_is_read_again_and_again_whatever_the_seed(shards):
    read = []
    for seed in (5, 6):
        read_by = Batches(shards, seed, 4, separate=True, sequences=12)
        epochs = [[part.indices for step in range(3) for part in read_by.at(epoch * 3 + step, 4)] for epoch in range(2)]
        first, second = (np.concatenate(epoch).tolist() for epoch in epochs)
        assert sorted(first) == sorted(second) and first != second
        read.append(sorted(first))
    assert read[0] == read[1] and len(set(read[0])) == 12
    assert read[0] != list(range(12)), "drawn from all of the shards, not their beginning"
    everything = Batches(shards, 5, 4, separate=True, sequences=10 * SEQUENCES)
    assert everything.order.num_sequences == SEQUENCES


def test_a_documents_first_token_is_not_predicted(shards):
    (part,) = Batches(shards, 5, 8, separate=True).at(0, 8)
    counted = part.weights.view(8, LENGTH - 1) > 0
    assert torch.equal(counted, part.positions[:, 1:] > 0)
    assert 0 < counted.sum() < counted.numel()
    assert target_mask(np.array([[0, 1, 0, 0, 1]], dtype=np.int32)).tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_train_as_each_of_them_alone(name, shards):
    """Loss and gradients of packed sequences are the means over documents that are run one by one."""
    (batch,) = Batches(shards, 5, 8, separate=True).at(1, 8)
    model = tiny_model(name, seed=2)
    module = StudentLoss(model, None, torch.float32)
    loss, ce = module(batch.ids, batch.positions, batch.weights)
    loss.backward()
    packed = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}

    model.zero_grad()
    total, count = torch.zeros(()), 0
    for row, places in zip(batch.ids, batch.positions, strict=True):
        starts = (places == 0).nonzero()[:, 0].tolist()
        for begin, end in zip(starts, [*starts[1:], LENGTH], strict=True):
            if end - begin > 1:
                logits = model(row[None, begin:end], use_cache=False).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(logits, row[begin + 1 : end], reduction="sum")
                count += end - begin - 1
    (total / count).backward()
    assert loss.item() == ce.item() == pytest.approx((total / count).item(), rel=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(packed[key], parameter.grad, rtol=1e-3, atol=1e-5)


GPU = Place(0, 1, torch.device("cuda"))


def test_what_is_taken_where_nothing_is_asked():
    assert default_micro_batch(8, 512, HERE) == 4
    assert default_micro_batch(6, 512, HERE) == 3
    assert default_micro_batch(8, 4096, HERE) == 1
    assert default_micro_batch(8, 4096, GPU) == 8


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


def test_results_do_not_depend_on_it(data, tmp_path):
    whole = run(make_job(write_start(tmp_path / "whole"), data, micro_batch=8))
    for size in (2, "auto", None):
        records = run(make_job(write_start(tmp_path / f"m{size}"), data, micro_batch=size))
        assert records[0].micro_batch == (size if isinstance(size, int) else 8)
        assert steps_of(records) == pytest.approx(steps_of(whole), rel=1e-5)
        assert evals_of(records) == pytest.approx(evals_of(whole), rel=1e-5)
