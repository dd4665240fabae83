"""A model as GGUF and as a plain model of its family: the same logits, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from slm_ray.export.command import main
from slm_ray.export.vocabulary import split_name
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.padding import pad_to_plain
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.commands import run_command
from tests.models.tiny import random_spec, tiny_family, tiny_ids, tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

TEXT = "The search keeps the head, and 13 of them.\n  naïve"
NODE = os.environ.get("SLM_RAY_NODE", "")  # a folder with node_modules/node-llama-cpp


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(sentences(200))


def _teacher(tokenizer, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=128, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _specs(family, config) -> dict[str, SubnetSpec]:
    full = full_subnet(family.architecture(config))
    layers = list(full.layers)

    def changed(at: int, **units) -> list:
        return [dataclasses.replace(layer, **units) if number == at else layer for number, layer in enumerate(layers)]

    few = dataclasses.replace(layers[2], kv_heads=(1,), query_heads=(layers[2].query_heads[1][:1],))
    cases = {
        "uniform": [dataclasses.replace(layer, neurons=tuple(range(64))) for layer in layers],
        "differing": [*changed(1, neurons=tuple(range(0, 64)))[:2], few, layers[3]],
        "without first attention": changed(0, kv_heads=(), query_heads=()),
        "without an MLP": changed(1, neurons=()),
    }
    return {name: SubnetSpec(full.hidden, tuple(kept)) for name, kept in cases.items()}


CASES = [("uniform", True), ("uniform", False), ("differing", True), ("without first attention", True),
         ("without an MLP", False)]  # fmt: skip


def _student(tokenizer, folder: Path, case: str, *, tied: bool) -> Path:
    teacher, family = _teacher(tokenizer, tied=tied), tiny_family("llama")
    spec = _specs(family, teacher.config)[case]
    save_student(extract(teacher.state_dict(), teacher.config, family, spec), folder, tokenizer, "fp32")
    return folder


def _export(*words: object) -> int:
    return run_command(main, [str(word) for word in words])


@pytest.mark.parametrize(
    "name", ["llama", "llama_untied", "qwen2", "qwen3", "gpt_neox", "gpt_neox_sequential", "mistral"]
)
def test_a_padded_model_computes_the_same(name):
    family, model = tiny_family(name), tiny_model(name)
    spec = random_spec(family.architecture(model.config), 4, drop_hidden=False)
    student = extract(model.state_dict(), model.config, family, spec)
    plain = pad_to_plain(student, family)
    assert plain.config.model_type == family.model_type
    with torch.no_grad():
        assert torch.allclose(plain(tiny_ids()).logits, student(tiny_ids()).logits, atol=1e-5)


def test_norms_over_all_heads_are_not_padded(tmp_path, capsys):
    family, model = tiny_family("olmo2"), tiny_model("olmo2")
    spec = random_spec(family.architecture(model.config), 4, drop_hidden=False)
    save_student(extract(model.state_dict(), model.config, family, spec), tmp_path / "model")
    assert _export(tmp_path / "model", "--to", "plain") == 2
    assert "normalises queries over all heads" in capsys.readouterr().err


def test_a_plain_model_is_read_back_by_transformers(tokenizer, tmp_path):
    folder = _student(tokenizer, tmp_path / "model", "uniform", tied=False)
    assert _export(folder, "--quantize", "F32,Q8_0") == 0
    own = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        want = own(ids).logits
        for kind, tolerance in (("F32", 1e-4), ("Q8_0", 0.5)):
            found = AutoModelForCausalLM.from_pretrained(tmp_path / "model-gguf", gguf_file=f"model-{kind}.gguf")
            assert torch.allclose(found(ids).logits, want, atol=tolerance * want.abs().max().item())
    assert (tmp_path / "model-gguf/Modelfile").read_text() == "FROM ./model-F32.gguf\n"


def test_what_llama_cpp_would_pass_over_is_filled(tokenizer, tmp_path):
    """Its deci leaves out the attention of a layer without MLP, and takes a head's width from the first layer."""
    for case, at, heads, neurons in (("without an MLP", 1, 4, 32), ("without first attention", 0, 1, 96)):
        folder = _student(tokenizer, tmp_path / case, case, tied=True)
        assert _export(folder, "--quantize", "F32", "--out", tmp_path / "out" / case) == 0
        file = gguf.GGUFReader(next((tmp_path / "out" / case).glob("*.gguf")))
        assert file.fields["general.architecture"].contents() == "deci"
        for field, value in (("attention.head_count", heads), ("feed_forward_length", neurons)):
            found = file.fields[f"deci.{field}"].contents()
            assert (found[at] if isinstance(found, list) else found) == value
    filled = next(tensor for tensor in file.tensors if tensor.name == "blk.0.attn_output.weight")
    assert not filled.data.any()


@pytest.mark.slow
@pytest.mark.skipif(not NODE or not shutil.which("node"), reason="SLM_RAY_NODE names no folder with node-llama-cpp")
@pytest.mark.parametrize(("case", "tied"), CASES)
def test_llama_cpp_computes_the_same(tokenizer, tmp_path, case, tied):
    folder = _student(tokenizer, tmp_path / "model", case, tied=tied)
    assert _export(folder, "--quantize", "F32") == 0
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    want = torch.log_softmax(logits.double(), -1)
    script = Path(shutil.copy(Path(__file__).with_name("logprobs.mjs"), NODE))
    command = ["node", str(script), str(tmp_path / "model-gguf/model-F32.gguf"), json.dumps(ids), TEXT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=NODE)
    found = json.loads(done.stdout.splitlines()[-1])
    expected = [want[at, following].item() for at, following in enumerate(ids[1:])]
    assert found["logprobs"] == pytest.approx(expected, abs=1e-3)
    assert found["likeliest"] == want.argmax(-1).tolist()[:-1] and found["ids"] == ids


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantize", "Q9"], "'Q9' is not one of them"),
        (["--to", "plain", "--quantize", "F16"], "--quantize is for --to gguf"),
        (["--quantize", "Q4_K_M"], "llama-quantize, which is not on the PATH"),
        (["--out", "."], "exists already"),
    ],
)
def test_a_wrong_word_is_one_sentence(tokenizer, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    _student(tokenizer, tmp_path / "model", "uniform", tied=True)
    assert _export("model", *words) == 2
    assert said in capsys.readouterr().err and sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("name", ["gpt_neox", "qwen2"])
def test_what_llama_cpp_has_no_architecture_for_is_one_sentence(tokenizer, tmp_path, capsys, name):
    family, model = tiny_family(name), tiny_model(name)
    spec = random_spec(family.architecture(model.config), 4, drop_hidden=False)
    save_student(extract(model.state_dict(), model.config, family, spec), tmp_path / "model", tokenizer)
    assert _export(tmp_path / "model") == 2
    assert "--to plain first" in (said := capsys.readouterr().err) or "no architecture of llama.cpp" in said
    assert not (tmp_path / "model-gguf").exists()


def test_splits_are_told_apart():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert split_name({"pre_tokenizer": byte_level}) == "gpt-2"
    assert split_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}}) == "smollm"
