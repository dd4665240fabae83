"""Energy that is measured, or said to be unknown."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from slm_ray.runtime.energy import Energy, EnergyMeter


class FakeTracker:
    """Measures 1 Wh on the processor, 2 on GPUs and 4 in memory."""

    gpus: int | None = None

    def __init__(self, **options):
        assert not options["save_to_file"] and not options["save_to_api"]

    def start(self):
        pass

    def stop(self):
        self.final_emissions_data = SimpleNamespace(
            cpu_energy=1e-3, gpu_energy=2e-3, ram_energy=4e-3, gpu_count=self.gpus
        )


def _install(monkeypatch, *, rapl, nvml, gpus):
    def module(name, **contents):
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    tracker = type("Tracker", (FakeTracker,), {"gpus": gpus})
    module("codecarbon", OfflineEmissionsTracker=tracker)
    module("codecarbon.core")
    module("codecarbon.core.cpu", is_rapl_available=lambda: rapl)
    module("codecarbon.core.gpu", is_nvidia_system=lambda: nvml)


def _measure():
    meter = EnergyMeter()
    meter.start()
    return meter.stop()


@pytest.mark.parametrize(
    ("rapl", "nvml", "gpus", "joules", "counters"),
    [
        (True, False, None, 3600, ["processors"]),
        (True, True, 2, 3600 + 7200, ["processors", "GPUs"]),
        (False, True, 2, 7200, ["GPUs"]),
    ],
)
def test_only_what_counters_measured_is_energy(monkeypatch, rapl, nvml, gpus, joules, counters):
    _install(monkeypatch, rapl=rapl, nvml=nvml, gpus=gpus)
    found = _measure()
    assert found.joules == pytest.approx(joules)
    measured = found.source.removeprefix("measured: ").split(";")[0].split(", ")
    assert [name.split()[0] for name in measured] == counters
    assert ("not counted: processors" in found.source) == ("processors" not in counters)


@pytest.mark.parametrize(("nvml", "gpus"), [(False, None), (True, 0)])
def test_estimates_are_not_energy(monkeypatch, nvml, gpus):
    _install(monkeypatch, rapl=False, nvml=nvml, gpus=gpus)
    assert _measure() == Energy(None, "unknown: no RAPL counter that may be read, no GPU with NVML")


def test_without_codecarbon_energy_is_unknown(monkeypatch):
    for name in ("codecarbon", "codecarbon.core.cpu", "codecarbon.core.gpu"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _measure() == Energy(None, "unknown: codecarbon is not installed")
