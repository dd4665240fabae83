"""Peak speeds that are known, and the share of them that a run used."""

from __future__ import annotations

import pytest

from slm_ray.runtime.peaks import model_flops_utilization, peak_flops


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156e12),
        ("NVIDIA A100 80GB PCIe", "bf16", 312e12),
        ("A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA A10G", "fp32", 35e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("NVIDIA GeForce RTX 3090", "fp32", 35.6e12),
    ],
)
def test_known_devices(name, dtype, peak):
    assert peak_flops(name, dtype) == peak


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA RTX A1000", "bf16"),
        ("NVIDIA L40", "bf16"),
        ("NVIDIA A100X", "bf16"),
        ("NVIDIA H100 NVL", "bf16"),
        ("NVIDIA H200 NVL", "bf16"),
        ("NVIDIA A10", "fp16"),
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
