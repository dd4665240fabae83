"""The loop of one worker: what stops it and what that leaves, what it records, and models that it refuses."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, CohereConfig, MambaConfig, PhiConfig

from slm_ray.config.errors import UserError
from slm_ray.pretrain import callbacks
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import TorchEngine
from slm_ray.pretrain.module import check_documents, check_logits
from slm_ray.pretrain.trainer import train
from slm_ray.records.training import SpentFlops
from tests.pretrain.tiny_pretrain import (
    HERE,
    LENGTH,
    evals_of,
    failure_of,
    make_job,
    run,
    steps_of,
    write_start,
)


def said_of(events):
    """The sentence of a training that no resume can help: a lower rate can."""
    failure = failure_of(events)
    assert not failure.resumable and "start a new run with a lower --learning-rate than 0.01" in failure.message
    return failure.message


def saved_steps(job):
    return [checkpoint.step for checkpoint in CheckpointFolder(job.storage).all()]


def spoil(monkeypatch, step, change):
    """Have the loss of one step come out as ``change`` makes it."""
    true, count = TorchEngine.backward, iter(range(10**6))

    def backward(self, inputs):
        parts = true(self, inputs)
        return (change(parts[0]), *parts[1:]) if next(count) // 2 == step else parts  # two micro-batches a step

    monkeypatch.setattr(TorchEngine, "backward", backward)


def test_a_loss_that_is_no_number_stops_the_run_with_its_checkpoints_intact(data, tmp_path, monkeypatch):
    job = make_job(write_start(tmp_path / "m"), data)
    spoil(monkeypatch, 4, lambda loss: loss * math.nan)
    events = run(job)
    message = said_of(events)
    assert "the loss is nan at step 5" in message and "step-00000003" in message and "--learning-rate" in message
    assert len(steps_of(events)) == 4 and saved_steps(job) == [0, 3]
    monkeypatch.undo()
    again, whole = run(job), run(make_job(write_start(tmp_path / "w"), data))
    assert steps_of(again) == steps_of(whole)[3:]


def test_a_jump_of_the_loss_stops_the_run_and_spike_0_lets_it_go_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "_SPIKE_AFTER_STEPS", 3)
    spoil(monkeypatch, 4, lambda loss: loss + 9)
    message = said_of(run(make_job(write_start(tmp_path / "m"), data)))
    assert "the loss jumped from" in message and "at step 5" in message and "step-00000003" in message
    spoil(monkeypatch, 4, lambda loss: loss + 9)
    assert len(steps_of(run(make_job(write_start(tmp_path / "n"), data, spike=0.0)))) == 6


def test_a_gradient_that_is_no_number_is_noticed_before_anything_is_saved(data, tmp_path, monkeypatch):
    true = TorchEngine.step

    def step(self, factor):
        next(iter(self.module.parameters())).grad.fill_(math.nan)
        return true(self, factor)

    job = make_job(write_start(tmp_path / "m"), data, checkpoint_every=1)
    monkeypatch.setattr(TorchEngine, "step", step)
    message = said_of(run(job))
    assert "has a gradient of nan at step 1" in message and "step-00000000" in message
    assert saved_steps(job) == [0]


def test_spoilt_weights_are_not_saved(data, tmp_path, monkeypatch):
    """A last step can ruin a model after its loss was found good."""
    true = TorchEngine.step

    def ruin(self, factor):
        norm = true(self, factor)
        if factor < 0.5:
            with torch.no_grad():
                self.module.student.get_output_embeddings().weight.mul_(value)
        return norm

    for value, says in ((math.inf, "on held-out tokens is "), (1e3, "and was ")):
        job = make_job(write_start(tmp_path / f"m{value}"), data, steps=5, checkpoint_every=5, clip=0.0)
        monkeypatch.setattr(TorchEngine, "step", ruin)
        message = said_of(run(job))
        monkeypatch.undo()
        assert says in message and "step-00000000" in message
        assert saved_steps(job) == [0]


def test_the_best_checkpoint_is_kept_beside_the_last(data, tmp_path, monkeypatch):
    losses = iter([5.0, 4.0, 2.0, 3.5, 3.0, 2.5, 2.2])
    true = callbacks.held_out_loss

    def measured(*arguments, **options):
        found = true(*arguments, **options)
        return type(found)(next(losses), found.stderr, found.tokens, found.bits_per_byte)

    monkeypatch.setattr(callbacks, "held_out_loss", measured)
    job = make_job(write_start(tmp_path / "m"), data, checkpoint_every=1, eval_every=6, keep_last=1)
    events = run(job)
    assert saved_steps(job) == [2, 6]
    assert len(evals_of(events)) == 7  # every checkpoint is measured


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_sentence(data, tmp_path, monkeypatch):
    job = make_job(write_start(tmp_path / "m"), data)

    def full(*_arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr(callbacks, "write_state", full)
    failure = failure_of(run(job))
    assert failure.message == "the disk is full" and failure.resumable
    assert saved_steps(job) == [0]


def test_what_a_run_reports(data, tmp_path):
    job = make_job(write_start(tmp_path / "m"), data, flops=SpentFlops(own=3.0, teacher=2.0, capture=7.0))
    events = run(job)
    assert [type(event).__name__ for event in events if not steps_of([event])] == [
        "TrainBegin", "TrainEvaluation", "TrainEvaluation", "Saving", "TrainEvaluation", "Saving", "TrainEnd",
    ]  # fmt: skip
    assert steps_of(events, "step") == [1, 2, 3, 4, 5, 6]
    assert steps_of(events, "tokens") == [8 * LENGTH * step for step in range(1, 7)]
    tokens = 6 * 8 * LENGTH
    assert steps_of(events, "flops")[-1] == SpentFlops(own=3.0 * tokens, teacher=2.0 * tokens, capture=7.0)
    last = events[-1]
    assert last.step == 6 and last.best.loss == min(evals_of(events))
    json.dumps([event.to_json() for event in events], allow_nan=False)


def test_no_checkpoint_to_start_from(data, tmp_path):
    failure = train(make_job(tmp_path / "m", data), HERE, print)
    assert "holds no checkpoint to start from" in failure.message and not failure.resumable


TINY = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**TINY, logit_scale=0.5),
        PhiConfig(**TINY),
    ],
    ids=["scaled", "biased"],
)
def test_models_with_other_logits_are_refused(config):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"^tiny scales, caps or biases its logits, .* use a model of the families"):
        check_logits(model, "tiny")


def test_models_that_cannot_keep_documents_apart_are_refused():
    bloom = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(UserError, match=r"^bloom looks across the documents of a sequence, .* --documents joined$"):
        check_documents(bloom, "bloom")
    mamba = MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match=r"^mamba .* --documents joined$"):
        check_documents(AutoModelForCausalLM.from_config(mamba), "mamba")
