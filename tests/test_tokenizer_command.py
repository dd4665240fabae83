"""The command: a tokenizer from text; a model with a language's words, and its teacher with the same."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_ray.records.base import read_record, write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.training import TeacherSource
from slm_ray.runtime.commands import run_command
from slm_ray.tokenizer import main
from tests.models.tiny import tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

WORDS = "habari ya asubuhi mwalimu anafundisha watoto shuleni kila siku wanafunzi wanasoma vitabu vya kiswahili".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model with its tokenizer and lineage, and texts of a language."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = make_tokenizer(sentences(200))
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_record(folder / "model", Lineage(teacher=TeacherSource(name="somebody"), search_flops=5.0))
    rng = random.Random(0)
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(rng.choices(WORDS, k=40)) + f" {number}.\n")
    return folder


def run(*arguments: str) -> int:
    return run_command(main, list(map(str, arguments)))


def test_a_tokenizer_is_trained_and_left_as_it_is_the_second_time(place, tmp_path, capsys):
    command = ["train", "--data", place / "texts", "--size", "300", "--out", tmp_path / "t"]
    assert run(*command) == 0
    assert "a tokenizer of 300 tokens" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert len(tokenizer) == 300 and json.loads((tmp_path / "t" / "vocabulary.json").read_text())["tokens"] == 300
    assert run(*command) == 0
    assert "is there already" in capsys.readouterr().out
    assert run(*command[:-3], "310", *command[-2:]) == 2
    assert "is something else: choose another --out" in capsys.readouterr().err


def test_a_model_gets_words_and_its_teacher_the_same(place, tmp_path, capsys):
    extend = ["extend", "--model", place / "model", "--data", place / "texts"]
    assert run(*extend, "--add", "30", "--out", tmp_path / "m") == 0
    said = capsys.readouterr().out
    assert "with 30 new tokens" in said and "bytes a token before" in said
    record = json.loads((tmp_path / "m" / "vocabulary.json").read_text())
    assert record["bytes_per_token"]["after"] > 1.3 * record["bytes_per_token"]["before"]
    lineage = read_record(tmp_path / "m", Lineage)
    assert lineage.teacher_name == "somebody" and lineage.search_flops == 5.0 and lineage.vocabulary.new_tokens == 30
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("---\n") and "30 new tokens" in card and "not trained afterwards" in card
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (place / "model", tmp_path / "m"))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (place / "model", tmp_path / "m"))
    assert len(new) == len(old) + 30 and after.config.vocab_size % 64 == 0 == len(new) - record["first_new"] - 30
    embedding, first = before.get_input_embeddings().weight, record["first_new"]
    word = new.convert_ids_to_tokens(first)
    parts = [piece.value for piece in old.backend_tokenizer.model.tokenize(word)]
    expected = embedding[old.convert_tokens_to_ids(parts)].mean(0)
    torch.testing.assert_close(after.get_input_embeddings().weight[first], expected)

    assert run(*extend, "--tokenizer", tmp_path / "m", "--out", tmp_path / "n") == 0
    alike = AutoTokenizer.from_pretrained(tmp_path / "n")
    assert alike.get_vocab() == new.get_vocab()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "n").state_dict()
    assert all(torch.allclose(value, again[name]) for name, value in after.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["learn"], "unknown action 'learn'"),
        (["train"], "--out is missing"),
        (["extend", "--out", "x"], "--model is missing"),
        (["train", "--model", "m", "--out", "x"], "--model belongs to 'extend'"),
        (["train", "--size", "12", "--out", "x"], "must have 258 tokens"),
        (["train", "--siz", "12"], "did you mean '--size'"),
        (["extend", "--model", "nowhere", "--out", "x", "--data", "{texts}"], "nowhere"),
        (["extend", "--model", "{model}", "--out", "x", "--data", "{texts}", "--tokenizer", "y"], "no tokenizer.json"),
        (["train", "--out", "x", "--data", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, says, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [text.format(model=place / "model", texts=place / "texts") for text in arguments]
    assert run(*given) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and not (tmp_path / "x").exists()


def test_a_model_without_a_tokenizer_is_refused(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    assert run("extend", "--model", tmp_path / "model", "--data", place / "texts", "--out", tmp_path / "x") == 2
    assert "tokenizer" in capsys.readouterr().err


def test_a_model_keeps_the_tokens_its_text_needs(place, tmp_path, capsys):
    trim = ["trim", "--model", place / "model", "--data", place / "texts", "--general", "0", "--keep"]
    assert run(*trim, "280", "--out", tmp_path / "m") == 0
    assert "with 280 of its" in capsys.readouterr().out
    model, tokenizer = (
        kind.from_pretrained(tmp_path / "m") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert model.config.vocab_size == len(tokenizer) == 280
    text = "watoto wanasoma: Ünïcode 42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    old, was = (kind.from_pretrained(place / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(text)["input_ids"]
    same = torch.tensor([was.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids))])
    kept = [was.get_vocab()[token] for token in tokenizer.convert_ids_to_tokens(list(range(280)))]
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits, old(same).logits[..., kept])
    assert run(*trim, "10", "--out", tmp_path / "n") == 2
    assert "a vocabulary of 10 tokens is not possible: its bytes, digits" in capsys.readouterr().err


def test_tokens_make_room_for_those_of_the_text(place, tmp_path, capsys):
    exchange = ["exchange", "--model", place / "model", "--data", place / "texts", "--keep", "320", "--add", "30"]
    assert run(*exchange, "--out", tmp_path / "m") == 0
    assert "with 290 of its" in (said := capsys.readouterr().out) and "and 30 new ones is in" in said
    record = json.loads((tmp_path / "m" / "vocabulary.json").read_text())
    assert (record["rows"], record["new_tokens"]) == (320, 30)
    assert record["bytes_per_token"]["after"] > 1.3 * record["bytes_per_token"]["before"]
    model, tokenizer = (kind.from_pretrained(tmp_path / "m") for kind in (AutoModelForCausalLM, AutoTokenizer))
    old, was = (kind.from_pretrained(place / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == len(tokenizer) == 320
    text = "watoto wanasoma: Ünïcode 42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rows, before = model.get_input_embeddings().weight, old.get_input_embeddings().weight
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(320)))):
        if number < 290:
            pieces = [token]
        else:  # in the kept tokens, whose merges are a part of the model's own
            pieces = _pieces(tokenizer, token, 290)
        torch.testing.assert_close(rows[number], before[was.convert_tokens_to_ids(pieces)].mean(0))
    assert run(*exchange[:-1], "320", "--out", tmp_path / "n") == 2
    assert "--add 320 must be less than --keep 320" in capsys.readouterr().err


def _pieces(tokenizer, token, first_new):
    """The tokens below an id that one is merged from, by the merges in the tokenizer's file."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made = {a + b: (a, b) for a, b in merges}
    if tokenizer.convert_tokens_to_ids(token) < first_new:
        return [token]
    return [piece for part in made[token] for piece in _pieces(tokenizer, part, first_new)]
