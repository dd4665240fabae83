"""Winners measured on text of another kind, which decides nothing."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import HELD_OUT
from slm_ray.models.teachers import load_teacher
from slm_ray.runtime.progress import Console
from tests.search.tiny_run import sentences

OPTIONS = ("--trials", "10", "--reconstruct-tokens", "2048", "--other-tokens", "256")


@pytest.fixture
def other(tmp_path):
    """Text with the words of every sentence the other way round."""
    lines = [" ".join(reversed(line.split())) for line in sentences(300, seed=5).splitlines()]
    (tmp_path / "other.txt").write_text("\n".join(lines))
    return tmp_path / "other.txt"


def _result(run):
    return json.loads((run / "result.json").read_text())


def test_winners_are_measured_there_and_nothing_else_changes(command, tiny, tmp_path, other, capsys):
    plain, run = tmp_path / "plain", tmp_path / "run"
    assert command(tiny.arguments(plain, *OPTIONS)) == 0
    assert command(tiny.arguments(run, *OPTIONS, "--other-data", other)) == 0
    shown = capsys.readouterr().out
    assert f"On {other}, 256 tokens: " in shown and "of the teacher's with fitted weights" in shown
    assert "Nothing was learned or chosen by the other text" in (run / "report.md").read_text()
    assert "Nothing was learned or chosen by the other text" not in (plain / "report.md").read_text()

    before, found = _result(plain), _result(run)
    for old, new in zip(before["front"], found["front"], strict=True):
        assert old["held_out_perplexity"] == new["held_out_perplexity"] and old["winner"] == new["winner"]
        assert (new["other_perplexity"] is not None) == (new["winner"] is not None)
    assert found["corpus"]["other"] == {"name": str(other), "tokens": 256}
    assert found["teacher"]["other_perplexity"] > found["teacher"]["held_out_perplexity"]
    winners = [entry for entry in found["front"] if entry["winner"] is not None]
    flops = sum(entry["cost"]["flops"] for entry in [found["teacher"], *winners])
    assert found["spent"]["paid"]["other text"] == {"tokens": 256 * (1 + len(winners)), "flops": 256 * flops}

    ids = prepare_tokens(
        load_corpus(str(other), "text", Console()), load_teacher(str(tiny.teacher)).tokenizer(), HELD_OUT,
        num_tokens=256, sequence_length=32, cache=tmp_path / "tokens", console=Console(),
    ).ids  # fmt: skip
    (entry,) = [entry for entry in found["front"] if entry["winner"] == 0]
    fits = entry["reconstruction"]
    expected = fits["after"]["other_perplexity"] if fits["kept"] else entry["other_perplexity"]
    model = AutoModelForCausalLM.from_pretrained(run / "winners/0")
    ids = torch.from_numpy(ids.copy()).long()
    with torch.no_grad():
        assert math.exp(model(ids, labels=ids).loss) == pytest.approx(expected, rel=1e-4)
