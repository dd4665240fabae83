"""A training state as files: read back as it was written, damage named, a plain model folder to everyone else."""

import shutil

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from slm_ray.config.errors import UserError
from slm_ray.pretrain import state as state_files
from slm_ray.pretrain.state import TrainerState, TrainingState, read_state, write_state, write_weights
from slm_ray.records.training import BestEvaluation
from tests.models.tiny import tiny_ids, tiny_model


@pytest.fixture
def model():
    return tiny_model("llama", seed=3)


@pytest.fixture
def state(model):
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {name: {"exp_avg": value.T if value.ndim == 2 else value, "step": torch.tensor(4.0)}
               for name, value in weights.items()}  # fmt: skip
    return TrainingState(weights, moments, scale=512.0)


@pytest.fixture
def folder(model, state, tmp_path):
    model.save_pretrained(tmp_path / "static")
    (tmp_path / "static" / "notes.md").write_text("kept")
    (tmp_path / "saved").mkdir()
    trainer = TrainerState(step=4, tokens=99, seconds=1.5, best=BestEvaluation(step=2, loss=3.25), recent=3.5)
    write_state(tmp_path / "saved", tmp_path / "static", state, trainer)
    return tmp_path / "saved"


def test_what_is_written_is_read(folder, state):
    found, trainer = read_state(folder)
    assert found.scale == trainer.scale == 512.0
    assert trainer.to_json() == {
        "version": 2,
        "step": 4, "tokens": 99, "seconds": 1.5, "best": {"step": 2, "loss": 3.25}, "recent": 3.5, "scale": 512.0,
        "flops": {"own": 0.0, "teacher": 0.0, "capture": 0.0},
    }  # fmt: skip
    assert found.optimizer.keys() == state.optimizer.keys()
    for name, entry in state.optimizer.items():
        assert all(torch.equal(found.optimizer[name][key], value) for key, value in entry.items())


def test_it_is_a_plain_model_folder(folder, model):
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(tiny_ids()).logits, model(tiny_ids()).logits)
    assert (folder / "notes.md").read_text() == "kept"


def test_damage_is_named(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"optimizer.safetensors is damaged .* resume from one before"):
        read_state(folder)


def test_a_full_disk_is_named(folder, state, tmp_path, monkeypatch):
    def full(*_arguments):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(state_files, "save_file", full)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match=r"could not be written \(I/O error: No space left .* free some space"):
        write_state(folder, tmp_path / "static", state, TrainerState())


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_exported_in_another_type(folder, model, tmp_path, name, dtype):
    (tmp_path / name).mkdir()
    num_bytes = write_weights(folder, tmp_path / name, name)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype} and loaded.config.dtype == dtype
    size = torch.finfo(dtype).bits // 8
    assert num_bytes == size * sum(parameter.numel() for parameter in model.parameters())
    for one, other in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.to(dtype))
    assert not (tmp_path / name / "optimizer.safetensors").exists()
