"""What a model costs to run: counted where it can be counted, sane where it is timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slm_ray.evaluate import efficiency
from slm_ray.evaluate.efficiency import Bench, cache_bytes, measure_efficiency, shapes_that_fit
from slm_ray.models.extraction import extract
from slm_ray.models.families import config_architecture
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token
from slm_ray.runtime.hardware import Effort
from tests.models import tiny

QUICK = Effort(least_runs=2, least_seconds=0.0, most_seconds=0.1)


def loaded(model, *, bf16=False):
    params = sum(one.numel() for one in model.parameters())
    model = model.eval().requires_grad_(False)
    return SimpleNamespace(name="tiny", model=model, device=torch.device("cpu"), bf16=bf16, params=params)


def measured(one):
    return measure_efficiency(one, say=print, lengths=[8, 16], batches=[1, 3], effort=QUICK)


@pytest.mark.parametrize(("context", "shapes"), [
    (None, [(128, 1), (512, 1), (128, 4)]), (512, [(128, 1), (128, 4)]), (64, [(32, 1), (32, 4)]),
    (1, [(1, 1), (1, 4)]),
])  # fmt: skip
def test_shapes_fit_the_context(context, shapes):
    assert shapes_that_fit(context, (512, 128), (1, 4), 64) == shapes


@pytest.mark.parametrize(("name", "axis"), [("llama", ""), ("gpt2", "everything")])
def test_cache_and_flops_are_what_the_sizes_say(name, axis):
    model = tiny.tiny_model(name)
    if axis:
        family = tiny.tiny_family(name)
        spec = tiny.axis_specs(family.architecture(model.config))[axis]
        model = extract(model.state_dict(), model.config, family, spec)
    found, architecture = measured(loaded(model)), config_architecture(model.config)
    assert found.kv_bytes_per_token == kv_bytes_per_token(architecture, 4) > 0
    assert found.flops_per_token == flops_per_token(architecture, found.flops_sequence_length)
    assert found.weights_bytes == 4 * found.params and found.notes == ()


def test_rates_are_at_the_median_latency():
    found = measured(loaded(tiny.tiny_model("llama")))
    for rows, of in ((found.prefill, lambda row: row.batch * row.tokens), (found.decode, lambda row: row.batch)):
        assert [(row.tokens, row.batch) for row in rows] == [(8, 1), (16, 1), (8, 3)]
        for row in rows:
            latency = row.latency_ms
            assert 0 < latency.min <= latency.median <= latency.p90 <= latency.p99 <= latency.max
            assert row.tokens_per_second == pytest.approx(1e3 * of(row) / latency.median) and row.runs >= 2
    assert found.threads == torch.get_num_threads()
    assert found.energy.joules_per_token is None or found.energy.joules_per_token > 0


def test_in_bf16_a_copy_is_measured_and_the_model_stays():
    one = loaded(tiny.tiny_model("llama"), bf16=True)
    found = measured(one)
    assert found.precision == "bf16" and found.weights_bytes == 2 * found.params
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}


def test_steps_follow_a_whole_text():
    """A step sees all that was read: its token is the one of the text read at once."""
    bench = Bench(loaded(tiny.tiny_model("gpt_neox")), QUICK)
    ids = bench.prompt(2, 5)
    cache, tokens = bench.read(ids)
    for _ in range(4):
        ids = torch.cat([ids, tokens], 1)
        cache, tokens = bench.read(tokens, cache)
        assert torch.equal(tokens, bench.read(ids)[1])
    assert cache_bytes(cache) == cache_bytes(bench.read(ids)[0])


def test_memory_is_what_a_step_holds_at_once():
    model = tiny.tiny_model("llama_untied", hidden_size=64, num_attention_heads=4, max_position_embeddings=4096)
    wide = torch.nn.Linear(64, 4096)

    class Hungry(torch.nn.Module):
        """Holds batch x length x 4,096 numbers while it reads."""

        config = model.config

        def get_input_embeddings(self):
            return model.get_input_embeddings()

        def forward(self, ids, use_cache=None):
            held = wide(self.get_input_embeddings()(ids))
            return SimpleNamespace(logits=held.sum(-1, keepdim=True).expand(*ids.shape, 61))

    found, held = Bench(loaded(Hungry()), Effort()).memory(2048, 2), 2048 * 2 * 4096 * 4
    assert found.above_weights_bytes == pytest.approx(held, rel=0.25)


def test_what_keeps_no_cache_is_not_decoded():
    model = tiny.tiny_model("llama")
    model.forward = lambda *args, forward=model.forward, **more: forward(*args, **more | {"use_cache": False})
    found = measured(loaded(model))
    assert found.decode == () and found.kv_bytes_per_token is None and found.prefill
    assert "no key-value cache" in found.notes[0] and found.energy.source == "unknown: nothing was decoded"


def test_what_does_not_fit_the_memory_is_left_out(monkeypatch):
    real = efficiency.Bench.prefill

    def prefill(self, length, batch):
        if batch > 1:
            raise torch.cuda.OutOfMemoryError
        return real(self, length, batch)

    monkeypatch.setattr(efficiency.Bench, "prefill", prefill)
    found = measured(loaded(tiny.tiny_model("llama")))
    assert len(found.prefill) == 2 and "3 texts of 8 tokens" in found.notes[0]
