"""Steps that a GPU is to run without waiting: on the meta device every read of a value by the host is an error."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from slm_ray.distill.losses import Divergence
from slm_ray.distill.signal import DenseSignal
from slm_ray.models.lm_head import final_hidden
from slm_ray.pretrain.module import StudentLoss
from tests.models.tiny import tiny_ids, tiny_model

META = torch.device("meta")


@pytest.fixture(autouse=True)
def _transformers_own_read(monkeypatch):
    """Its masks look once per pass whether positions begin anew, unless it is compiled."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


@pytest.mark.parametrize("kd_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_micro_batch_of_training_reads_nothing(name, kd_weight):
    student, teacher = tiny_model(name).train().to(META), tiny_model(name).to(META)
    ids = tiny_ids(2, length=16).to(META)
    module = StudentLoss(student, Divergence(name="forward_kl") if kd_weight else None, torch.float32)
    signal = None
    if kd_weight:
        hidden = final_hidden(teacher, ids)[:, :-1].flatten(0, 1).detach()
        signal = DenseSignal(hidden, teacher.get_output_embeddings().weight.detach())
    parts = module(ids, None, torch.full((2 * 15,), 1 / 30, device=META), signal, kd_weight)
    parts[0].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
