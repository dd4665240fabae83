import pytest
import torch

from slm_ray.models import precision
from slm_ray.models.precision import choose_precision, measure_precision


@pytest.fixture
def rates(monkeypatch):
    """Rates of products, by type; what was measured before is forgotten."""
    found = {torch.float32: 1e11, torch.bfloat16: 1e11}
    monkeypatch.setattr(precision, "matmul_flops_per_second", lambda _device, dtype, _side: found[dtype])
    precision.bf16_gain.cache_clear()
    yield found
    precision.bf16_gain.cache_clear()


@pytest.mark.parametrize(("gain", "expected"), [(0.02, "fp32"), (1.2, "fp32"), (1.3, "bf16"), (7.0, "bf16")])
def test_bf16_is_taken_where_its_products_are_much_faster(rates, gain, expected):
    rates[torch.bfloat16] = gain * rates[torch.float32]
    assert measure_precision("auto") == expected
    rates[torch.bfloat16] = 0.0
    assert measure_precision("auto") == expected  # measured once per process


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_is_asked_for_is_not_measured(monkeypatch, wanted):
    monkeypatch.setattr(precision, "bf16_gain", lambda: pytest.fail("it was measured"))
    assert measure_precision(wanted) == choose_precision(wanted) == wanted
    assert measure_precision("auto", "cuda") == "bf16"


def test_gpus_that_emulate_bf16_take_fp16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_precision("auto", "cuda") == expected and choose_precision("fp32", "cuda") == "fp32"
