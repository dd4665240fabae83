"""What a model costs to run: counted where it can be counted, sane where it is timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM

from slm_ray.evaluate import efficiency
from slm_ray.evaluate.efficiency import (
    COUNTED,
    SIZES,
    Bench,
    Serving,
    cache_bytes,
    counted_flops,
    measure_efficiency,
    reading_flops,
    shapes_that_fit,
    token_flops,
)
from slm_ray.models.extraction import extract
from slm_ray.runtime import hardware
from slm_ray.runtime.hardware import Effort
from tests.models import tiny

QUICK = Effort(least_runs=2, least_seconds=0.0, most_seconds=0.1)


def measured(one):
    return measure_efficiency(one, say=print, lengths=[8, 16], batches=[1, 3], effort=QUICK).to_json()


@pytest.fixture(autouse=True)
def _small_products(monkeypatch):
    monkeypatch.setitem(hardware._MATMUL_SIZES, "cpu", 128)
    monkeypatch.setattr(hardware, "_MATMUL_EFFORT", Effort(warm_up=0, least_runs=3, least_seconds=0))


def loaded(model, *, bf16=False):
    return SimpleNamespace(name="tiny", model=model.eval().requires_grad_(False), device=torch.device("cpu"), bf16=bf16)


def student(name, axis):
    teacher, family = tiny.tiny_model(name), tiny.tiny_family(name)
    spec = tiny.axis_specs(family.architecture(teacher.config))[axis]
    return extract(teacher.state_dict(), teacher.config, family, spec)


def gemma():
    """Of a family that slm_ray does not know."""
    return GemmaForCausalLM(GemmaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, max_position_embeddings=64,
    ))  # fmt: skip


@pytest.mark.parametrize(("context", "shapes"), [
    (None, [(128, 1), (512, 1), (128, 4)]), (1024, [(128, 1), (512, 1), (128, 4)]), (512, [(128, 1), (128, 4)]),
    (64, [(32, 1), (32, 4)]), (1, [(1, 1), (1, 4)]),
])  # fmt: skip
def test_shapes_fit_the_context(context, shapes):
    assert shapes_that_fit(context, (512, 128), (1, 4), 64) == shapes


@pytest.mark.parametrize(("name", "axis"), [
    ("llama", ""), ("qwen3", ""), ("gpt_neox", ""), ("gpt2", ""), ("llama", "first attention"), ("gpt2", "everything"),
])  # fmt: skip
def test_the_cache_holds_what_the_sizes_say(name, axis):
    model = student(name, axis) if axis else tiny.tiny_model(name)
    record = measured(loaded(model))
    assert record["kv_bytes_per_token"] == record["kv_bytes_per_token_expected"] > 0
    assert record["weights_bytes"] == 4 * record["params"] == 4 * sum(one.numel() for one in model.parameters())
    assert not [note for note in record["notes"] if "processors" not in note]


@pytest.mark.parametrize("name", ["llama", "llama_untied", "qwen3", "gpt_neox", "gpt2"])
def test_flops_are_those_that_torch_counts(name):
    model, ids = tiny.tiny_model(name), tiny.tiny_ids(3)
    each, source = token_flops(model, ids[:1])
    assert source == SIZES and each * ids.shape[1] == counted_flops(model, ids[:1])
    assert reading_flops(model, ids, last_only=False) == counted_flops(model, ids)
    assert reading_flops(model, ids, last_only=True) == counted_flops(model, ids, logits_to_keep=1)


def test_a_model_of_another_family_is_counted():
    record = measured(loaded(gemma()))
    assert record["flops_source"] == COUNTED and record["kv_bytes_per_token_expected"] is None
    assert record["kv_bytes_per_token"] == 2 * 2 * 8 * 4  # keys and values, layers, width, bytes
    linear = sum(one.numel() for name, one in gemma().named_parameters() if one.ndim == 2)
    assert record["flops_per_token"] == 2 * linear + 2 * 2 * 2 * 4 * 8 * 64  # scores and values over all positions


def test_rates_are_at_the_median_latency():
    record = measured(loaded(tiny.tiny_model("llama")))
    assert [(row["prompt_tokens"], row["batch"]) for row in record["prefill"]] == [(8, 1), (16, 1), (8, 3)]
    assert [(row["context_tokens"], row["batch"]) for row in record["decode"]] == [(8, 1), (16, 1), (8, 3)]
    for row in [*record["prefill"], *record["decode"]]:
        latency = row["latency_ms"]
        assert 0 < latency["min"] <= latency["median"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        tokens = row["batch"] * row.get("prompt_tokens", 1)
        assert row["tokens_per_second"] == pytest.approx(1e3 * tokens / latency["median"]) and row["runs"] >= 2
    shares = [row["flops_per_second"] / record["matmul_flops_per_second"] for row in record["prefill"]]
    assert record["mfu_prefill"] == max(shares) and [row["mfu"] for row in record["prefill"]] == shares
    assert record["peak_flops_per_second"] is None and record["threads"] == torch.get_num_threads()
    assert record["energy"]["joules_per_token"] is None or record["energy"]["joules_per_token"] > 0


def test_in_bf16_a_copy_is_measured_and_the_model_stays():
    one = loaded(tiny.tiny_model("llama"), bf16=True)
    record = measured(one)
    assert record["precision"] == "bf16" and record["weights_bytes"] == 2 * record["params"]
    assert record["kv_bytes_per_token"] == record["kv_bytes_per_token_expected"]
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}


def test_steps_follow_a_whole_text():
    """A step sees all that was read: its token is the one of the text read at once."""
    serving = Serving(loaded(tiny.tiny_model("gpt_neox")))
    at, ids = serving.read(serving.prompt(2, 5)), serving.prompt(2, 5)
    for _ in range(4):
        ids = torch.cat([ids, at.tokens], 1)
        at = serving.step(at)
        assert torch.equal(at.tokens, serving.read(ids).tokens)
    assert cache_bytes(at.cache) == cache_bytes(serving.read(ids).cache)


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

    bench = Bench(serving=Serving(loaded(Hungry())), most_steps=1, effort=Effort())
    found, held = bench.memory(2048, 2), 2048 * 2 * 4096 * 4
    assert found.above_weights_bytes == pytest.approx(held, rel=0.25)


def test_what_keeps_no_cache_is_not_decoded():
    model = tiny.tiny_model("llama")
    model.forward = lambda *args, forward=model.forward, **more: forward(*args, **more | {"use_cache": False})
    record = measured(loaded(model))
    assert record["decode"] == [] and record["kv_bytes_per_token"] is None and record["prefill"]
    assert "no key-value cache" in record["notes"][0]
    assert record["energy"] == {"joules_per_token": None, "source": "unknown: nothing was decoded", "of": None}


def test_what_does_not_fit_the_memory_is_left_out(monkeypatch):
    real = efficiency.Bench.prefill

    def prefill(self, length, batch):
        if batch > 1:
            raise torch.cuda.OutOfMemoryError
        return real(self, length, batch)

    monkeypatch.setattr(efficiency.Bench, "prefill", prefill)
    record = measured(loaded(tiny.tiny_model("llama")))
    assert len(record["prefill"]) == 2 and "3 texts of 8 tokens" in record["notes"][0]
