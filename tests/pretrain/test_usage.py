"""FLOPs, and use of the machine."""

from __future__ import annotations

import torch

from slm_ray.config.base import build_config
from slm_ray.pretrain import callbacks
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.engine import EngineSettings
from slm_ray.pretrain.forecast import training_flops
from slm_ray.pretrain.zero import deepspeed_config


def config(**options):
    return build_config(PretrainConfig, {"student": "x", **options})


def test_training_takes_three_forward_passes_or_four():
    assert training_flops(2e9, config()) == 6e9
    assert training_flops(2e9, config(activation_checkpointing=True)) == 8e9


def test_three_forward_passes_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    layers = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
    inputs = torch.randn(5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = layers(inputs).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() + backward.get_total_flops() == training_flops(2 * 5 * 3 * 16 * 16, config())


def test_a_gpu_that_does_not_say_how_busy_it_is_ends_no_training(monkeypatch):
    class NVMLError(Exception):
        """As NVML's own, which is no RuntimeError."""

    def refuse():
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert callbacks._gpu_percent() is None


def test_zeros_buckets_are_no_larger_than_the_model():
    settings = EngineSettings("bf16", 1.0, 4, 1, 2, False, torch.device("cpu"), 0, 1)
    assert deepspeed_config(settings, 1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    assert deepspeed_config(settings, 10**10)["zero_optimization"]["reduce_bucket_size"] < 5e8
