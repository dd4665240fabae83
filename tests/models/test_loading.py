"""Weights that a model folder may not have, wherever it is loaded: as a teacher or as a student."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm_ray.config.errors import UserError
from slm_ray.models.families import FAMILIES, scratch_structure
from slm_ray.models.loading import load_student
from slm_ray.models.teacher_sizes import BUNDLED_ARCHITECTURE, look_up_teacher
from slm_ray.models.teachers import load_teacher
from slm_ray.records.cost import num_params
from tests.models.test_teachers import save
from tests.models.tiny import tiny_family, tiny_model

BROKEN = "model.layers.1.mlp.up_proj.weight"


def drop(state):
    del state[BROKEN]


def spoil(value):
    def change(state):
        state[BROKEN][3, 5] = value

    return change


def add(name):
    def change(state):
        state[name] = torch.ones(4, 4)

    return change


ADAPTER = "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("load", [lambda folder, cache: load_teacher(str(folder), cache), load_student])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, rf"no weights for 1 of its parameters, '{BROKEN}' first"),
        (spoil(float("nan")), f"not finite, '{BROKEN}' first"),
        (add(ADAPTER), f"1 tensor that its class does not read, '{ADAPTER}' first: merge an adapter"),
    ],
)
def test_weights_are_whole_read_and_finite(load, change, says, tmp_path):
    folder = save(tiny_model("llama", dtype=torch.bfloat16), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=says) as raised:
        load(folder, tmp_path / "cache" if load is not load_student else "it")
    assert "\n" not in str(raised.value)


def test_buffers_of_older_checkpoints_are_passed_over(tmp_path):
    old = {"gpt_neox": "gpt_neox.layers.0.attention.masked_bias", "gpt2": "transformer.h.1.attn.bias"}
    for name, buffer in old.items():
        folder = save(tiny_model(name), tmp_path / name)
        state = load_file(folder / "model.safetensors") | {buffer: torch.ones(1, 1)}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        load_teacher(str(folder), tmp_path / "cache")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_config_alone_tells_the_sizes(name, tmp_path):
    model = tiny_model(name, dtype=torch.bfloat16)
    model.config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    sizes = look_up_teacher(str(tmp_path))
    assert sizes.architecture == tiny_family(name).architecture(model.config)
    assert (sizes.dtype, sizes.weight_bytes) == ("bf16", 2) and "not in its folder yet" in sizes.note


def test_the_bundled_sizes_are_those_of_smollm2():
    assert num_params(BUNDLED_ARCHITECTURE) == 134_515_008
    assert BUNDLED_ARCHITECTURE.structure.family in FAMILIES and scratch_structure(64, 32).head_dim == 32
