"""FLOPs, peak speeds, use of the machine, and energy that is measured or said to be unknown."""

from __future__ import annotations

import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from slm_ray.pretrain import accounting
from slm_ray.pretrain.accounting import UsageSampler, peak_memory_bytes, training_flops
from slm_ray.pretrain.energy import Energy, EnergyMeter
from slm_ray.pretrain.hardware import model_flops_utilization, peak_flops


def test_training_takes_three_forward_passes_or_four():
    assert training_flops(2e9) == 6e9
    assert training_flops(2e9, activation_checkpointing=True) == 8e9


def test_three_forward_passes_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    layers = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
    inputs = torch.randn(5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = layers(inputs).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() + backward.get_total_flops() == training_flops(2 * 5 * 3 * 16 * 16)


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


def _spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_processor_use_is_that_between_two_samples():
    sampler = UsageSampler()
    start = time.monotonic()
    _spin(0.3)
    share = 100 * 0.3 / (time.monotonic() - start)
    assert sampler.sample().cpu_percent == pytest.approx(share, rel=0.25)


def test_children_that_have_ended_are_counted(monkeypatch):
    monkeypatch.setattr(accounting, "_CHILDREN_SECONDS", 0.0)
    sampler = UsageSampler()
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"], check=True)
    seconds = time.monotonic() - start
    assert sampler.sample().cpu_percent * seconds / 100 > 0.35


def test_peak_memory_counts_what_was_given_back():
    before = peak_memory_bytes()
    # The interpreter's own peak may be above what it holds now, so ask for more than that.
    held = torch.ones((before + (64 << 20)) // 4)
    del held
    after = peak_memory_bytes()
    assert after >= before + (32 << 20) and UsageSampler().sample().memory_bytes >= after


def test_without_a_gpu_its_figures_are_unknown():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    usage = UsageSampler().sample()
    assert usage.gpu_percent is None and usage.gpu_memory_bytes is None


class FakeTracker:
    """Measures 1 Wh on the processor, 2 on GPUs and 4 in memory, and can have any of codecarbon's parts."""

    parts: tuple[SimpleNamespace, ...] = ()

    def __init__(self, **options):
        assert not options["save_to_file"] and not options["save_to_api"]
        self._hardware = []

    def start(self):
        self._hardware = [SimpleNamespace(), *self.parts]

    def stop(self):
        self.final_emissions_data = SimpleNamespace(cpu_energy=1e-3, gpu_energy=2e-3, ram_energy=4e-3)


RAPL, LOAD, GPU = SimpleNamespace(_mode="intel_rapl"), SimpleNamespace(_mode="cpu_load"), SimpleNamespace(num_gpus=2)


def _install(monkeypatch, *, rapl, nvml, parts):
    def module(name, **contents):
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    tracker = type("Tracker", (FakeTracker,), {"parts": parts})
    module("codecarbon", OfflineEmissionsTracker=tracker)
    module("codecarbon.core")
    module("codecarbon.core.cpu", is_rapl_available=lambda: rapl)
    module("codecarbon.core.gpu", is_nvidia_system=lambda: nvml)


def _measure(processor=True):
    meter = EnergyMeter(processor=processor)
    meter.start()
    return meter.stop()


@pytest.mark.parametrize(
    ("rapl", "nvml", "parts", "processor", "joules", "counters"),
    [
        (True, False, (RAPL,), True, 3600, ["processors"]),
        (True, True, (RAPL, GPU), True, 3600 + 7200, ["processors", "GPUs"]),
        (True, True, (RAPL, GPU), False, 7200, ["GPUs"]),
        (False, True, (LOAD, GPU), True, 7200, ["GPUs"]),
    ],
)
def test_only_what_counters_measured_is_energy(monkeypatch, rapl, nvml, parts, processor, joules, counters):
    _install(monkeypatch, rapl=rapl, nvml=nvml, parts=parts)
    found = _measure(processor)
    assert found.joules == pytest.approx(joules)
    measured = found.source.removeprefix("measured: ").split(";")[0].split(", ")
    assert [name.split()[0] for name in measured] == counters
    assert ("not counted: processors" in found.source) == (processor and "processors" not in counters)


@pytest.mark.parametrize(
    ("rapl", "nvml", "parts"),
    [(False, False, (LOAD,)), (True, False, (LOAD,)), (False, True, (LOAD, SimpleNamespace(num_gpus=0)))],
)
def test_estimates_are_not_energy(monkeypatch, rapl, nvml, parts):
    _install(monkeypatch, rapl=rapl, nvml=nvml, parts=parts)
    assert _measure() == Energy(None, "unknown: no RAPL counter that may be read, no GPU with NVML")


def test_one_worker_of_a_machine_counts_its_processors(monkeypatch):
    _install(monkeypatch, rapl=True, nvml=False, parts=(RAPL,))
    assert _measure(processor=False).joules is None


def test_without_codecarbon_energy_is_unknown(monkeypatch):
    for name in ("codecarbon", "codecarbon.core.cpu", "codecarbon.core.gpu"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _measure() == Energy(None, "unknown: codecarbon is not installed")
