"""Positions: each kind against a slow model written from its definition; documents, padding, caches, lengths."""

import itertools

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import LoadedModel, find_model
from slm_ray.models.families.modeling.modeling_slm_ray_positions import SlmRayPositionsConfig
from slm_ray.models.scratch import POSITIONS, build_scratch, make_shape, with_positions
from slm_ray.pretrain.module import check_documents, check_logits
from tests.references import llama_logits

LENGTH, VOCAB = 12, 64


def model_of(positions: str, hidden_size: int = 64, seed: int = 0):
    """Two layers with large random weights, norms too, so that a mistake anywhere shows."""
    shape = with_positions(make_shape(VOCAB, hidden_size, 2, 64), positions, LENGTH)
    model = build_scratch(shape, positions, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else 1 + 0.2 * noise)
    return model


def ids_of(length: int = LENGTH, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def generate(model, ids, **options):
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("hidden_size", [64, 96])  # two heads; three, which is no power of two
@pytest.mark.parametrize("positions", POSITIONS)
def test_logits_are_those_of_the_definition(positions, hidden_size):
    model, ids = model_of(positions, hidden_size), ids_of(7, batch=1)
    expected = llama_logits(model.state_dict(), model.config, positions, ids[0].tolist())
    torch.testing.assert_close(logits(model, ids)[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_documents_of_a_sequence_do_not_see_each_other(positions):
    model, ids = model_of(positions), ids_of()
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1]])
    packed = logits(model, ids, position_ids=places, use_cache=False)
    for row, starts in enumerate(([0, 5, 8, 12], [0, 1, 10, 12])):
        for start, end in itertools.pairwise(starts):
            alone = logits(model, ids[row : row + 1, start:end], use_cache=False)
            torch.testing.assert_close(packed[row : row + 1, start:end], alone, rtol=1e-4, atol=1e-4)
    check_documents(model, positions)
    check_logits(model, positions)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_on_the_left_changes_nothing(positions, kernel):
    model, ids = model_of(positions), ids_of(6)
    model.set_attn_implementation(kernel)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    torch.testing.assert_close(
        logits(model, padded, attention_mask=mask)[:, 3:], logits(model, ids), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(generate(model, padded, attention_mask=mask)[:, 3:], generate(model, ids))


@pytest.mark.parametrize("positions", POSITIONS)
def test_generation_with_a_cache_is_generation_without(positions):
    model, ids = model_of(positions), ids_of(5)
    without = generate(model, ids, use_cache=False)
    assert torch.equal(generate(model, ids), without)
    assert torch.equal(generate(model, ids, cache_implementation="static"), without)
    beams = {"num_beams": 3, "length_penalty": 0.0}
    assert torch.equal(generate(model, ids, **beams), generate(model, ids, use_cache=False, **beams))


@pytest.mark.parametrize("positions", POSITIONS)
def test_lengths_beyond_training_are_measured_where_positions_allow(positions, tmp_path):
    model_of(positions).save_pretrained(tmp_path)
    loaded = LoadedModel(find_model(str(tmp_path)), "fp32", torch.device("cpu"))
    if positions == "learned":
        with pytest.raises(UserError, match="--sequence-length 24 is over the 12 positions"):
            loaded.check_fits(2 * LENGTH, separate=False)
        with pytest.raises(ValueError, match="position 23 is behind the last of this model's 12 learned positions"):
            loaded.losses(ids_of(2 * LENGTH), None)
        return
    loaded.check_fits(2 * LENGTH, separate=True)
    assert torch.isfinite(loaded.losses(ids_of(2 * LENGTH), None)).all()
    with pytest.raises(UserError, match="is over the 192 positions"):
        loaded.check_fits(17 * LENGTH, separate=False)


def test_unknown_positions_are_refused():
    with pytest.raises(UserError, match="did you mean 'rotary'"):
        with_positions(make_shape(VOCAB, 64, 1, 64), "rotory", LENGTH)
    with pytest.raises(Exception, match="positions must be one of learned, alibi, none, got 'sines'"):
        SlmRayPositionsConfig(positions="sines")
