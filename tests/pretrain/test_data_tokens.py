"""``--data-tokens``: fewer different tokens than are trained on, so that epochs can be held against fresh text."""

import pytest

from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.pretrain import inputs
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.runtime.progress import Console


def config(**more) -> PretrainConfig:
    given = {"student": "a", "distill": "none", "tokens": "8192", "sequence_length": 128, "batch_size": 8, **more}
    return build_config(PretrainConfig, given)


def test_so_many_tokens_are_asked_of_the_corpus(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(inputs, "prepare_shards", lambda *_, **more: asked.append(more["num_tokens"]))
    monkeypatch.setattr(inputs, "load_corpus", lambda *_, **__: None)
    (tmp_path / "tokenizer").mkdir()
    for given in (config(), config(data_tokens="2k"), config(data_tokens="1M")):
        inputs.training_shards(given, None, tmp_path, Console(), 1)
    assert asked == [8192, 2000, 8192]


def test_no_more_are_trained_on_however_many_are_prepared():
    assert [config(data_tokens=some).data_sequences for some in (None, "2k", "1M")] == [None, 15, 64]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data_tokens": "100"}, "--data-tokens 100 is below one step of 1,024 tokens"),
        ({"data_tokens": "2k", "shards": "x"}, "--data-tokens and --shards are both given"),
        ({"data_tokens": "many"}, "'many' is not a number"),
    ],
)
def test_what_does_not_go_together_is_said(more, says):
    with pytest.raises(UserError, match=says):
        config(**more)
