"""The ladder: every size it gives is near what was asked for, exactly counted, and usual in shape."""


import pytest

from slm_ray.config.errors import UserError
from slm_ray.models.scratch import (
    POSITIONS,
    build_scratch,
    find_rung,
    make_shape,
    scratch_config,
    with_positions,
)
from slm_ray.records.cost import num_params

COUNTS = {"1M": 1e6, "3M": 3e6, "20M": 20e6, "40M": 40e6, "70M": 70e6, "110M": 110e6, "160M": 160e6, "2B": 2e9}


def rung_of(size: str, vocabulary: int = 8192):
    return find_rung(int(COUNTS[size]), vocabulary)


@pytest.mark.parametrize("vocabulary", [320, 8192, 49152])
@pytest.mark.parametrize("size", COUNTS)
def test_a_size_is_hit_with_usual_proportions_in_multiples_of_64(size, vocabulary):
    if vocabulary == 49152 and COUNTS[size] < 20e6:
        pytest.skip("the embedding alone is larger")
    rung = rung_of(size, vocabulary)
    shape, layer = rung.architecture, rung.architecture.layers[0]
    assert num_params(shape) == rung.params == pytest.approx(COUNTS[size], rel=0.03)
    assert shape.hidden_size % 64 == layer.intermediate_size % 64 == vocabulary % 64 == 0
    assert layer.num_attention_heads * shape.structure.head_dim == shape.hidden_size
    assert 2 <= layer.intermediate_size / shape.hidden_size <= 4
    assert 8 <= shape.hidden_size / shape.num_hidden_layers <= 128


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_count_is_that_of_the_hugging_face_model(positions):
    rung = rung_of("1M")
    shape = with_positions(rung.architecture, positions, 32)
    model = build_scratch(shape, positions, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params(shape)
    tables = [model.get_input_embeddings().weight.numel(), 32 * shape.hidden_size if positions == "learned" else 0]
    assert num_params(shape) - sum(tables) == rung.matrix_params


def test_the_config_names_the_tokenizers_ends_but_not_its_padding():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 0, 0, 0

    config = scratch_config(make_shape(64, 64, 1, 64), "rotary", Tokenizer())
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, None)


def test_rates_and_batches_are_the_published_ones_at_the_published_size():
    rung = find_rung(114_000_000, 8192)
    ratio = rung.matrix_params / 108e6
    assert ratio == pytest.approx(1, rel=0.03)
    assert rung.batch_tokens() == pytest.approx(160 * 2048 * ratio ** (2 / 3))
    assert rung.learning_rate(rung.batch_tokens()) == pytest.approx(0.0047 * ratio ** (-1 / 3))
    assert rung.learning_rate(rung.batch_tokens() / 4) == pytest.approx(0.0047 * ratio ** (-1 / 3) / 2)


def test_batches_grow_with_the_tokens_and_divide_among_workers():
    rung = rung_of("20M")
    whole = rung.batch_tokens(20 * rung.matrix_params)
    assert whole == pytest.approx(rung.batch_tokens())
    assert rung.batch_tokens(2 * rung.matrix_params) == pytest.approx(whole * 0.1**0.383)
    for multiple in (1, 2, 3, 12):
        size = rung.batch_size(20 * rung.matrix_params, 512, multiple)
        assert size % multiple == 0 and size * 512 == pytest.approx(whole, rel=0.3)
    assert rung.batch_size(1000, 512, 4) == 4


@pytest.mark.parametrize(
    ("target", "vocabulary", "says"),
    [
        (1_000_000, 49152, r"too small.* 49,152.* has 3.15M.* the smallest model has 3.19M \(3,186,880\)"),
        (5_000_000, 49152, r"nearest sizes are 3.67M \(3,671,104\) and 6.46M \(6,455,680\)"),
        (10, 320, "must lie between"),
        (10**12, 320, "must lie between"),
    ],
)
def test_a_size_that_cannot_be_had_is_told_with_one_that_can(target, vocabulary, says):
    with pytest.raises(UserError, match=says):
        find_rung(target, vocabulary)
