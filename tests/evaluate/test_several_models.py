"""Several models at once on Ray: each loaded once, and a worker that dies loses nothing that was finished."""

import json
import os

import pytest

from slm_ray.evaluate import run
from slm_ray.evaluate.command import main
from slm_ray.evaluate.measure import Loaded, Measured
from slm_ray.runtime.commands import run_command
from tests.models import tiny
from tests.search.processes import kill_below
from tests.search.tiny_run import make_tokenizer, sentences

MODELS = "abc"


def test_a_worker_that_dies_is_replaced_and_nothing_is_measured_twice(one_ray, tmp_path, monkeypatch, capsys):
    text = sentences(300)
    (tmp_path / "first.txt").write_text(text)
    (tmp_path / "second.txt").write_text(sentences(200, seed=1))
    tokenizer = make_tokenizer(text)
    for seed, name in enumerate(MODELS):
        tiny.tiny_model("llama", seed=seed, vocab_size=len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    arguments = [
        "--data", str(tmp_path / "first.txt"), "--data", str(tmp_path / "second.txt"), "--part", "whole",
        "--window", "sliding", "--sequence-length", "16", "--precision", "fp32", "--threads", "1",
    ]  # fmt: skip
    arguments += [word for name in MODELS for word in ("--model", str(tmp_path / name))]
    messages, killed = [], []
    receive = run.Evaluation.receive

    def watched(self, job, message):
        receive(self, job, message)
        messages.append((job.label, message))
        if isinstance(message, Measured) and not killed:
            killed.extend(kill_below(os.getpid(), "ray::_Worker"))

    monkeypatch.setattr(run.Evaluation, "receive", watched)
    assert run_command(main, [*arguments, "--workers", "2", "--out", str(tmp_path / "out")]) == 0
    assert killed and "died" in capsys.readouterr().err
    kept = [(label, message.spec.name) for label, message in messages if isinstance(message, Measured)]
    result = json.loads((tmp_path / "out/evaluate.json").read_text())
    assert [len(model["text"]) for model in result["models"]] == [2, 2, 2]
    assert len(kept) == len(set(kept)) == 6
    loads = [label for label, message in messages if isinstance(message, Loaded)]
    assert result["spent"]["models_loaded"] == len(loads) <= len(MODELS) + len(killed)
    # The same figures as one after another, in this process.
    monkeypatch.setattr(run.Evaluation, "receive", receive)
    assert run_command(main, [*arguments, "--workers", "1", "--fresh", "--out", str(tmp_path / "alone")]) == 0
    alone = json.loads((tmp_path / "alone/evaluate.json").read_text())
    assert alone["spent"]["models_loaded"] == len(MODELS)
    for one, other in zip(result["models"], alone["models"], strict=True):
        for mine, its in zip(one["text"], other["text"], strict=True):
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-6)
