"""What a dry run says of costs: sizes from configs alone, memory beside the machine's, and advice that helps."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm_ray.config.base import build_config
from slm_ray.models.families import config_architecture
from slm_ray.pretrain import forecast as costs
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import forecast, own_type, plan_text, training_bytes
from slm_ray.records.cost import flops_per_token, num_params
from tests.models.tiny import tiny_config
from tests.search.tiny_run import sentences

GIB = 2**30
LARGE = {
    "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14_336,
}  # fmt: skip


def write_config(folder: Path, **changes: object) -> Path:
    """A folder with config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_config("llama", **changes).save_pretrained(folder)
    return folder


def config_of(student: Path, **options: object) -> PretrainConfig:
    given = {"student": str(student), "tokens": "100k", "sequence_length": 64, "distill": "none"}
    return build_config(PretrainConfig, given | options)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text(sentences(50))
    return str(tmp_path / "corpus.txt")


def test_configs_alone_are_enough(tmp_path, corpus):
    """Of student and teacher: an 8B can be planned without its weights."""
    student, teacher = write_config(tmp_path / "s"), write_config(tmp_path / "t", num_hidden_layers=5)
    config = config_of(student, teacher=str(teacher), distill="full", data=corpus)
    found = forecast(config)
    sizes = [config_architecture(tiny_config("llama", **changes)) for changes in ({}, {"num_hidden_layers": 5})]
    tokens = config.num_tokens
    assert found.flops_of("training") == 3 * tokens * flops_per_token(sizes[0], 64)
    assert found.flops_of("teacher") == tokens * flops_per_token(sizes[1], 64)
    assert "1 model, 99.8K tokens each: 195 steps of 8 x 64" in plan_text(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "give --activation-checkpointing"),
        ({"num_hidden_layers": 2}, None),
    ],
)
def test_memory_is_held_against_the_machines(changes, says, tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(costs, "describe_environment", lambda: SimpleNamespace(memory_bytes=int(23.5 * GIB)))
    monkeypatch.setattr(costs, "usable_cpus", lambda: 2)
    student = write_config(tmp_path / "s", **LARGE | changes)
    config = config_of(student, data=corpus, threads=1)
    text = plan_text(config)
    assert "this machine has 23.5 GiB" in text
    assert (re.search(f"note: it does not fit: {says}", text) is not None) if says else "it does not fit" not in text


def test_state_is_shared_out_by_zero():
    sizes = config_architecture(tiny_config("llama", **LARGE))
    per_worker = [
        training_bytes(sizes, config_of(Path("x"), workers=4, zero=zero), None, on_gpu=False) for zero in range(4)
    ]
    params = num_params(sizes)
    assert [before - after for before, after in itertools.pairwise(per_worker)] == pytest.approx(
        [8 * params * 3 / 4, 4 * params * 3 / 4, 4 * params * 3 / 4]
    )


@pytest.mark.parametrize(("dtype", "name", "size"), [("bfloat16", "bf16", 2), ("float32", "fp32", 4)])
def test_the_exported_type_and_size_are_told(dtype, name, size, tmp_path, corpus):
    student = write_config(tmp_path / "s", dtype=dtype)
    assert own_type(str(student)) == name
    params = num_params(config_architecture(tiny_config("llama")))
    assert f"{size * params / 1024:.1f} KiB {name}" in plan_text(config_of(student, data=corpus))
    assert own_type("x.gguf") == "bf16"
