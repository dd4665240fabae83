"""Continuations against a slow loop without cache and padding, for every kind of model; sampling; what does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from slm_ray.config.errors import UserError
from slm_ray.evaluate.decoding import GumbelNoise, Sampling, continue_rows, end_tokens
from slm_ray.evaluate.generation import Prompt, generate, prompts_digest
from slm_ray.models.extraction import extract
from slm_ray.models.families.modeling.modeling_slm_ray_positions import KINDS
from slm_ray.models.scratch import build_scratch, make_shape, with_positions
from slm_ray.records.measurement import GenerationSettings
from tests.models import tiny
from tests.search.tiny_run import make_tokenizer, sentences
from tests.text_references import naive_continuation

ROWS = [tiny.tiny_ids(1, seed=seed, length=length)[0].tolist() for seed, length in enumerate((3, 9, 1, 6, 9))]
NAMES = [str(number) for number in range(len(ROWS))]


def written(loaded, tokenizer, prompts, say=print, *, batch=2, **changes):
    """The record, of greedy continuations of six tokens unless something else is given."""
    values = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "seed": 0, "references": False} | changes
    settings = GenerationSettings(**values, prompts_digest=prompts_digest(prompts))
    header = {"name": "generation", "key": "k", "settings": {}, "model": "m", "params": 1, "seconds": 0}
    return generate(loaded, tokenizer, prompts, settings, header, batch=batch, say=say)


def loaded(model, *, bf16=False):
    return SimpleNamespace(name="tiny", model=model.eval(), device=torch.device("cpu"), bf16=bf16)


def student(name, axis):
    teacher, family = tiny.tiny_model(name), tiny.tiny_family(name)
    spec = tiny.axis_specs(family.architecture(teacher.config))[axis]
    return extract(teacher.state_dict(), teacher.config, family, spec)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(sentences(40))


@pytest.fixture(scope="module")
def llama(tokenizer):
    return loaded(tiny.tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None))


MODELS = [(name, "") for name in tiny.NAMES] + [("llama", "first attention"), ("gpt2", "everything")]
MODELS += [("positions", kind) for kind in KINDS]


def scratch(positions):
    """Llama with other positions, its weights large enough to differ from each other."""
    model = build_scratch(with_positions(make_shape(tiny.VOCAB, 64, 2, 64), positions, 64), positions, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model


@pytest.mark.parametrize(("name", "axis"), MODELS)
def test_greedy_text_is_that_of_a_loop_without_cache_or_padding(name, axis):
    model = scratch(axis) if name == "positions" else student(name, axis) if axis else tiny.tiny_model(name)
    ends = [5, 11]
    expected = [naive_continuation(model, row, 7, ends) for row in ROWS]
    assert continue_rows(loaded(model), ROWS, NAMES, ends, Sampling(max_new_tokens=7)) == expected


def test_samples_do_not_depend_on_the_batch_but_on_the_seed():
    model, sampling = loaded(tiny.tiny_model("llama")), Sampling(max_new_tokens=8, temperature=1.3, top_p=0.9, seed=4)
    together = continue_rows(model, ROWS, NAMES, [], sampling)
    alone = [continue_rows(model, [row], [name], [], sampling)[0] for row, name in zip(ROWS, NAMES, strict=True)]
    assert together == alone
    assert together != continue_rows(model, ROWS, NAMES, [], Sampling(max_new_tokens=8, temperature=1.3, seed=5))
    one, other = continue_rows(model, [ROWS[0]] * 2, ["a", "b"], [], sampling)
    assert one != other


def test_noise_draws_from_the_softmax():
    scores = torch.tensor([[0.0, 1.0, -1.0, 2.0, float("-inf")]])
    noise = GumbelNoise(["x"], 0)
    drawn = [int(noise(torch.zeros(1, 0), scores).argmax()) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    assert torch.allclose(shares, scores.softmax(-1)[0], atol=0.025) and shares[4] == 0


def test_top_p_and_temperature_limit_what_is_drawn():
    model = tiny.tiny_model("llama")
    sampling = Sampling(max_new_tokens=1, temperature=0.5, top_p=0.6)
    found = continue_rows(loaded(model), [ROWS[1]] * 200, [str(number) for number in range(200)], [], sampling)
    chances = (model(torch.tensor([ROWS[1]])).logits[0, -1] / 0.5).softmax(-1)
    order = chances.argsort(descending=True)
    before = chances[order].cumsum(0) - chances[order]
    nucleus = set(order[before < 0.6].tolist())  # Holtzman et al. 2020: the fewest likeliest that have the share
    assert 1 < len(nucleus) < 60
    assert {tokens[0] for tokens, _ in found} == nucleus


def test_a_model_s_own_settings_for_sampling_are_not_used():
    model = tiny.tiny_model("llama")
    expected = naive_continuation(model, ROWS[0], 5)
    own = GenerationConfig(do_sample=True, repetition_penalty=5.0, min_new_tokens=9, eos_token_id=expected[0][1])
    model.generation_config = own
    assert continue_rows(loaded(model), [ROWS[0]], ["a"], [], Sampling(max_new_tokens=5)) == [expected]
    assert model.generation_config is own


@pytest.mark.parametrize(
    ("listed", "own", "ends"), [(2, 0, [0]), ([0, 9], 0, [0, 9]), (3, None, [3]), (None, None, []), (0, 0, [0])]
)
def test_what_ends_a_text(listed, own, ends):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=listed))
    assert end_tokens(model, SimpleNamespace(eos_token_id=own)) == ends


def test_the_record(llama, tokenizer):
    prompts = [
        Prompt(text=f"The {word}", id=word, references=("keeps the layer",)) for word in ("seed", "layer", "loss")
    ]
    records = [written(llama, tokenizer, prompts, batch=batch, references=True) for batch in (1, 3)]
    assert records[0] == records[1]
    record, figures = records[0], records[0].figures
    assert figures.prompts == 3 and len(figures.settings.prompts_digest) == 16
    assert [sample.prompt for sample in figures.samples] == [prompt.text for prompt in prompts]
    assert record.values["length"] == tuple(sample.tokens for sample in figures.samples)
    assert {"bleu", "chrf", "distinct-1", "seq-rep-4"} <= set(figures.metrics)
    assert set(record.statistics) == set(record.signatures) == {"bleu", "chrf"}
    ids = tokenizer(prompts[1].text)["input_ids"]
    new, ended = naive_continuation(llama.model, ids, 6, [tokenizer.eos_token_id])
    whole = tokenizer.decode(ids + new, skip_special_tokens=True)
    assert prompts[1].text + figures.samples[1].text == whole and figures.samples[1].ended == ended


def test_prompts_that_are_too_long_are_cut_from_the_left(llama, tokenizer):
    text, said = "The teacher drops the budget. " * 20, []
    figures = written(llama, tokenizer, [Prompt(text=text, id="long")], said.append).figures
    ids = tokenizer(text)["input_ids"]
    assert figures.samples[0].cut == len(ids) - (64 - 6) > 0
    new, _ = naive_continuation(llama.model, ids[-58:], 6, [tokenizer.eos_token_id])
    assert figures.samples[0].tokens == len(new)
    assert "1 of 1 prompts are longer" in figures.notes[0] and said == list(figures.notes)


def test_what_does_not_fit_gets_one_sentence(llama, tokenizer):
    with pytest.raises(UserError, match=r"leaves no room .* give 63 or less"):
        written(llama, tokenizer, [Prompt(text="The", id="a")], max_new_tokens=64)
    with pytest.raises(UserError, match="not of the same model"):
        written(loaded(tiny.tiny_model("llama")), tokenizer, [Prompt(text="teacher", id="a")])
