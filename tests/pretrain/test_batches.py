"""Which tokens a step sees, and what each of them counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm_ray.data.shards import TokenShards
from slm_ray.pretrain.batches import Batches, target_mask
from slm_ray.pretrain.module import StudentLoss, check_documents, check_logits
from tests.models.tiny import NAMES, tiny_model
from tests.pretrain.tiny_pretrain import LENGTH, SEQUENCES, make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return TokenShards.open(make_shards(tmp_path_factory.mktemp("data")) / "shards")


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
    batches = Batches(shards, 5, 4, separate=True)
    steps = SEQUENCES // 4
    epochs = [
        np.concatenate([part.indices for step in range(steps) for part in batches.at(epoch * steps + step, 2)])
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == list(range(SEQUENCES)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert np.array_equal(next(batches.at(0, 4)).ids.numpy(), shards.rows(epochs[0][:4]))


def test_a_part_of_the_shards_is_read_again_and_again_whatever_the_seed(shards):
    read = []
    for seed in (5, 6):
        batches = Batches(shards, seed, 4, separate=True, sequences=12)
        epochs = [[part.indices for step in range(3) for part in batches.at(epoch * 3 + step, 4)] for epoch in range(2)]
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


class _Rounding(torch.nn.Module):
    """Blows up the rounding of its products, which is another for other shapes, as some pruned models do."""

    config = SimpleNamespace(vocab_size=50)

    def base_model(self, ids, *, position_ids, use_cache):
        hidden = torch.stack([ids + position_ids, ids * 0 + 1], -1).float()
        return SimpleNamespace(last_hidden_state=hidden + 0.1 * ids.numel())


def test_a_model_that_blows_up_rounding_does_not_look_across_documents():
    check_documents(_Rounding(), "rounding")


@pytest.mark.parametrize("name", NAMES)
def test_every_family_passes_the_checks(name):
    model = tiny_model(name, seed=2).train()
    check_logits(model, name)
    check_documents(model, name)
    assert model.training and not model.base_model._forward_hooks
