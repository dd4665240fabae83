"""Several models at once on Ray: each loaded once, with the figures that one after another have."""

import json

import pytest

from slm_ray.evaluate.command import main
from slm_ray.runtime.commands import run_command
from tests.models import tiny
from tests.search.tiny_run import make_tokenizer, sentences


def test_two_workers_measure_what_one_does(one_ray, tmp_path):
    text = sentences(300)
    (tmp_path / "text.txt").write_text(text)
    tokenizer = make_tokenizer(text)
    arguments = ["--data", str(tmp_path / "text.txt"), "--eval-tokens", "160", "--sequence-length", "16"]
    arguments += ["--documents", "joined", "--precision", "fp32", "--threads", "1", "--fresh"]
    for seed, name in enumerate("abc"):
        tiny.tiny_model("llama", seed=seed, vocab_size=len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        arguments += ["--model", str(tmp_path / name)]
    found = []
    for workers in ("2", "1"):
        assert run_command(main, [*arguments, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
        found.append(json.loads((tmp_path / workers / "evaluate.json").read_text()))
        assert found[-1]["spent"]["models_loaded"] == 3
    two, one = ([(row["name"], row["text"][0]["loss"]) for row in result["models"]] for result in found)
    assert [name for name, _ in two] == [name for name, _ in one]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-6)
