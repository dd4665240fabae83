"""Attention in blocks of queries against the definition, one position at a time."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface

from slm_ray.models.attention import BLOCKED, blocked_attention
from slm_ray.models.gates import GatedTeacher
from tests.models.tiny import tiny_family, tiny_ids, tiny_model


def by_definition(query, key, value, scaling):
    """``[batch, tokens, heads, width]``."""
    rows = []
    for at in range(query.shape[2]):
        heads = []
        for head in range(query.shape[1]):
            group = head * key.shape[1] // query.shape[1]
            scores = scaling * torch.einsum("bw,btw->bt", query[:, head, at], key[:, group, : at + 1])
            heads.append(torch.einsum("bt,btw->bw", scores.softmax(-1), value[:, group, : at + 1]))
        rows.append(torch.stack(heads, 1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("tokens, scaling", [(130, None), (128, 0.3), (5, None)])
def test_blocks_give_what_the_definition_gives_and_its_gradients(tokens, scaling):
    torch.manual_seed(0)
    shapes = ((2, 4, tokens, 8), (2, 2, tokens, 8), (2, 2, tokens, 8))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, _ = blocked_attention(module, *inputs, None, scaling=scaling)
    expected = by_definition(*inputs, 8**-0.5 if scaling is None else scaling)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_gated_teacher_alone_computes_attention_so():
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return blocked_attention(*args, **kwargs)

    model = tiny_model("llama")
    AttentionInterface.register(BLOCKED, counted)
    try:
        GatedTeacher(model.state_dict(), model.config, tiny_family("llama")).gradients(tiny_ids())
        assert len(calls) == model.config.num_hidden_layers
        model(tiny_ids())
        assert len(calls) == model.config.num_hidden_layers
    finally:
        AttentionInterface.register(BLOCKED, blocked_attention)
