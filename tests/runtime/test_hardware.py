"""Peaks of memory, times of runs, and what devices reach and could reach."""

from __future__ import annotations

import itertools

import pytest
import torch

from slm_ray.runtime import hardware
from slm_ray.runtime.hardware import (
    KERNEL,
    POLLED,
    Effort,
    PeakMemory,
    distribution_ms,
    matmul_flops_per_second,
    model_flops_utilization,
    peak_flops,
    time_runs,
)

CPU, MIB = torch.device("cpu"), 1 << 20


@pytest.mark.parametrize("source", [KERNEL, POLLED])
def test_a_peak_is_counted_from_its_own_beginning(source, monkeypatch):
    if source == POLLED:
        monkeypatch.setattr(hardware, "reset_kernel_peak", lambda: False)
    elif not hardware.reset_kernel_peak():
        pytest.skip("this kernel does not reset its mark")
    before = torch.ones(64 * MIB, dtype=torch.uint8)
    del before  # higher than what follows, and over
    kept = torch.ones(16 * MIB, dtype=torch.uint8)
    with PeakMemory(CPU) as peak:
        for _ in range(20):  # long enough to be seen by one who looks now and then
            held = torch.ones(32 * MIB, dtype=torch.uint8)
            del held
    assert peak.source == source and kept.numel()
    assert 28 * MIB <= peak.bytes <= 40 * MIB


def test_where_the_kernel_only_seems_to_reset_its_mark_it_is_polled(monkeypatch):
    monkeypatch.setattr(hardware, "peak_memory_bytes", lambda: hardware.resident_bytes() + 512 * MIB)
    with PeakMemory(CPU) as peak:
        pass
    assert peak.source == POLLED and peak.bytes < 64 * MIB


@pytest.mark.parametrize(
    ("each", "runs"),
    [(0.001, 500), (0.01, 50), (0.1, 10), (1.0, 5), (3.0, 3)],
)
def test_runs_are_many_enough_and_take_long_enough(monkeypatch, each, runs):
    clock = itertools.count()
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: each * next(clock))
    effort = Effort(warm_up=0, least_runs=10, least_seconds=0.4995, most_seconds=4.9)
    times = time_runs(lambda: None, CPU, effort)
    assert len(times) == runs and sum(times) == pytest.approx(runs * each)


def test_a_warm_up_is_not_counted():
    seen = []
    times = time_runs(lambda: seen.append(1), CPU, Effort(warm_up=4, least_runs=5, least_seconds=0, most_seconds=1))
    assert len(times) == 5 and len(seen) == 9


def test_a_distribution_is_in_milliseconds():
    found = distribution_ms([0.001 * number for number in range(1, 102)])
    assert found == pytest.approx({"median": 51, "p90": 91, "p99": 100, "min": 1, "max": 101})


def test_the_rate_of_a_product_is_counted_from_its_size():
    small = matmul_flops_per_second(CPU, torch.float32, size=64)
    assert 1e7 < small < 1e14


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("A100-SXM4-40GB", "tf32", 156e12),
        ("NVIDIA A100 80GB PCIe", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("NVIDIA GeForce RTX 3090", "fp32", 35.6e12),
    ],
)
def test_known_devices(name, dtype, peak):
    assert peak_flops(name, dtype) == peak


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA L40", "bf16"),
        ("NVIDIA H100 NVL MIG 1g.12gb", "bf16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),
        ("AMD Instinct MI300X", "bf16"),
        ("cpu", "fp32"),
    ],
)
def test_others_are_not_guessed(name, dtype):
    assert peak_flops(name, dtype) is None


def test_utilization_is_a_share_of_all_devices():
    assert model_flops_utilization(312e12 * 4, 10, "NVIDIA A100-SXM4-80GB", "bf16", 2) == pytest.approx(0.2)
    assert model_flops_utilization(1e12, 1, "cpu", "fp32", 1) is None
    assert model_flops_utilization(1e12, 0, "NVIDIA A100-SXM4-80GB", "bf16", 1) is None
