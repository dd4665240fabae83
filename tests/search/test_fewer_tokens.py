"""A search with fewer tokens: winners with a smaller tokenizer, inside the budget, and a teacher on the same ids."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_ray.models.teachers import load_teacher
from slm_ray.models.vocabulary import on_ids_of
from slm_ray.records.lineage import find_lineage
from slm_ray.records.subnet import from_ranges

OPTIONS = ("--trials", "6", "--reconstruct-tokens", "1024", "--general", "0", "--vocabulary")


def test_winners_have_the_tokens_the_text_needs(command, tiny, tmp_path, capsys):
    assert command(tiny.arguments(tmp_path / "run", *OPTIONS, "290")) == 0
    assert "vocabulary: 290 of " in capsys.readouterr().err
    winner = tmp_path / "run" / "winners" / "0"
    model, tokenizer = (kind.from_pretrained(winner) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == len(tokenizer) == 290
    text = "The search drops the Ünïcode head 42."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    lineage, whole = find_lineage(winner), load_teacher(str(tiny.teacher))
    kept = from_ranges(lineage.spec["vocabulary"])
    assert lineage.teacher.digest == whole.digest and len(kept) == 290
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    first = next(entry for entry in found["front"] if entry["winner"] == 0)
    assert found["budget"]["low"] <= first["cost"]["params"] == model.num_parameters() <= found["budget"]["high"]

    smaller = on_ids_of(str(winner), whole)
    assert smaller.tokenizer().get_vocab() == tokenizer.get_vocab() and on_ids_of(str(tiny.teacher), whole) is whole
    old, new = (AutoModelForCausalLM.from_pretrained(one.folder) for one in (whole, smaller))
    with torch.no_grad():
        logits = old(torch.tensor([[kept[token] for token in ids]])).logits[..., list(kept)]
        torch.testing.assert_close(new(torch.tensor([ids])).logits, logits)


@pytest.mark.parametrize(("rows", "said"), [("10", "a vocabulary of 10 tokens is not possible"), ("9999", "not below")])
def test_too_few_or_too_many_are_refused(command, tiny, tmp_path, capsys, rows, said):
    assert command(tiny.arguments(tmp_path / "run", *OPTIONS, rows)) == 2
    assert said in capsys.readouterr().err
