"""The vocabulary as an axis: candidates of several vocabularies, measured per token of the teacher on the same text."""

import json
import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_ray.data.shards import TokenShards
from slm_ray.data.split import HELD_OUT
from slm_ray.models.extraction import extract
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.teachers import load_teacher
from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main
from slm_ray.search.vocabulary import Vocabularies, keep_order, measured_with, renumbered, vocabulary_sizes
from tests.models.tiny import random_spec
from tests.search.tiny_run import SPACE, make_teacher, make_tokenizer, sentences, trials_of
from tests.search.without_ray import run_without_ray


@pytest.fixture
def teacher(tiny, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    return load_teacher(str(tiny.teacher))


def test_sizes_are_halves_of_halves_in_whole_steps():
    assert vocabulary_sizes(49152, 1024, 8192) == (24576, None, 12288)
    assert vocabulary_sizes(262144, 1024, 40_000) == (131072, None, 65536)
    assert vocabulary_sizes(5000, 1024, 2048) == (2048, None)
    assert vocabulary_sizes(320, 1024, 8192) == (None,)


def test_a_token_that_is_gone_costs_what_its_pieces_cost(teacher):
    tokenizer, family, config = teacher.tokenizer(), teacher.family(), teacher.config()
    ids = np.array(tokenizer(sentences(40, seed=3))["input_ids"][:64], dtype=np.int32).reshape(2, 32)
    choice = Vocabularies((280,), keep_order(tokenizer, None, 0))
    architecture = teacher.architecture()
    spec = random_spec(architecture, seed=1)
    spec = type(spec)(spec.hidden, spec.layers, choice.kept(280))
    text = measured_with(choice.written(ids), spec)
    runner = SubnetRunner(teacher.state(), config, family)
    found = text.per_token(runner.token_losses(spec, text.ids), 0)
    small, student = choice.tokenizer(spec, tokenizer), extract(teacher.state(), config, family, spec)
    assert len(small) == 280 and text.ids.shape[1] > ids.shape[1]
    for row, losses in zip(ids.tolist(), found, strict=True):
        pieces = [small(tokenizer.decode([token]))["input_ids"] for token in row]
        flat = torch.tensor([piece for each in pieces for piece in each])
        with torch.no_grad():
            each = functional.cross_entropy(student(flat[None]).logits[0, :-1], flat[1:], reduction="none")
        ends = np.cumsum([len(one) for one in pieces]) - 1  # among losses, which begin with the second piece
        wanted = [float(each[end - len(one) : end].sum()) for end, one in zip(ends[1:], pieces[1:], strict=True)]
        np.testing.assert_allclose(losses, wanted, rtol=1e-4, atol=1e-4)
    again = choice.rewritten(ids, spec)
    assert again.shape[1] == 32 and set(again.flatten().tolist()) <= set(spec.vocabulary)
    whole = [choice.order.vocabulary.contents[token] for token in again.flatten()]
    assert "".join(whole) == "".join(tokenizer.convert_ids_to_tokens(ids.flatten()))[: len("".join(whole))]
    assert torch.equal(renumbered(torch.tensor(spec.vocabulary), spec), torch.arange(280))


def test_winners_of_any_vocabulary_have_the_perplexity_per_teacher_token_that_is_reported(
    tiny, tmp_path, monkeypatch, capsys
):
    run_without_ray(monkeypatch)
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    letters, rng = "abcdefghijklmnopqrstuvwxyz", random.Random(0)
    words = " ".join("".join(rng.choices(letters, k=6)) for _ in range(2000))
    make_teacher(tmp_path / "teacher", sentences(900), tokenizer=make_tokenizer(sentences(900) + words, 640))
    teacher, run = load_teacher(str(tmp_path / "teacher")), tmp_path / "run"
    (tmp_path / "space.yaml").write_text(SPACE.format(order="taylor") + "  vocabulary: {step: 8, least: 300}\n")
    more = ("--teacher", str(tmp_path / "teacher"), "--space", str(tmp_path / "space.yaml"), "--trials", "9")
    more = (*more, "--teacher-text", "0.2", "--winners", "2")
    assert run_command(main, tiny.arguments(run, *more)) == 0
    assert "vocabulary: 320, 640 of 640 tokens" in capsys.readouterr().err
    seeds = [trial["architecture"]["vocab_size"] for trial in trials_of(run)]
    assert seeds[:2] == [320, 640] and len(set(seeds[2:])) == 1  # the better of both at all smaller sizes
    result = json.loads((run / "result.json").read_text())
    held_out = next(
        shards for path in (tiny.cache / "tokens").iterdir()
        if (shards := TokenShards.open(path)).part == HELD_OUT and shards.num_tokens == 256
        and shards.vocab_size == 640
    )  # fmt: skip
    member = next(one for one in result["front"] if one["winner"] == 0)
    model, small = (kind.from_pretrained(run / "winners" / "0") for kind in (AutoModelForCausalLM, AutoTokenizer))
    model, tokenizer, nats, count = model.float(), teacher.tokenizer(), 0.0, 0
    for row in held_out.ids.tolist():
        pieces = [small(tokenizer.decode([token]))["input_ids"] for token in row]
        flat = torch.tensor([piece for each in pieces for piece in each])
        with torch.no_grad():
            each = functional.cross_entropy(model(flat[None]).logits[0, :-1], flat[1:], reduction="none")
        nats += float(each[len(pieces[0]) - 1 :].sum())
        count += len(row) - 1
    fit = member["reconstruction"]
    reported = fit["after"]["held_out_perplexity"] if fit["kept"] else member["held_out_perplexity"]
    assert math.exp(nats / count) == pytest.approx(reported, rel=0.02)
