"""Students in vLLM against transformers in this process; SLM_RAY_VLLM names a Python that has vLLM."""

import dataclasses
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from slm_ray.export.command import main
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.families import FAMILIES
from slm_ray.records.subnet import SubnetSpec, full_subnet
from tests.models.tiny import layer_units
from tests.search.tiny_run import make_tokenizer, sentences

VLLM = os.environ.get("SLM_RAY_VLLM", "")
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = LLM(folder, trust_remote_code=True, model_impl="transformers", dtype="float32", max_model_len=128,
            enforce_eager=True, enable_chunked_prefill=True, max_num_batched_tokens=64, max_num_seqs=32,
            enable_prefix_caching=False)
options = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=0, ignore_eos=True)
found = model.generate([{"prompt_token_ids": ids} for ids in prompts], options, use_tqdm=False)
chosen = lambda out: [next(iter(one.values())).logprob for one in out.prompt_logprobs[1:]]
print(json.dumps([{"log_probs": chosen(out), "text": list(out.outputs[0].token_ids)} for out in found]))
"""


@pytest.fixture(scope="module")
def teacher():
    """A Llama with heads of 32 channels, the fewest that vLLM's attention takes."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(sentences(200))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=96, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model, tokenizer


def student(teacher, folder: Path, case: str) -> Path:
    model, tokenizer = teacher
    family = FAMILIES["llama"]
    sizes = family.architecture(model.config)
    full, neurons = full_subnet(sizes), tuple(range(96))
    choices = {
        "differing": ((0, (0, 1), None, neurons[:40]), (1, (1,), None, neurons), (2, (0, 1), 1, neurons[8:])),
        "skipped": ((0, (), None, neurons), (1, (1,), None, ()), (2, (0, 1), None, neurons[:64])),
    }
    spec = SubnetSpec(full.hidden, tuple(layer_units(sizes, *one) for one in choices.get(case, choices["differing"])))
    if case == "trimmed":
        spec = dataclasses.replace(spec, vocabulary=tuple(range(len(tokenizer) - 20)))
    save_student(extract(model.state_dict(), model.config, family, spec), folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_layers_without_attention_get_a_silent_head(teacher, tmp_path, capsys):
    folder = student(teacher, tmp_path / "model", "skipped")
    assert main([str(folder), "--to", "vllm"]) == 0
    assert "--trust-remote-code --model-impl transformers" in capsys.readouterr().out
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "model-vllm"))
    assert [layer["num_attention_heads"] for layer in before.config.layer_sizes()] == [0, 2, 4]
    assert [layer["num_attention_heads"] for layer in after.config.layer_sizes()] == [2, 2, 4]
    assert [layer["intermediate_size"] for layer in after.config.layer_sizes()] == [96, 0, 64]
    assert after.config.source_layers == before.config.source_layers
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits)


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="SLM_RAY_VLLM names no Python with vLLM")
@pytest.mark.parametrize("case", ["differing", "skipped", "trimmed"])
def test_vllm_computes_the_same(teacher, tmp_path, case):
    folder, rng = student(teacher, tmp_path / "model", case), random.Random(0)
    assert main([str(folder), "--to", "vllm"]) == 0
    prompts = [rng.choices(range(1, 280), k=rng.choice([5, 17, 90])) for _ in range(32)]
    done = subprocess.run(
        [VLLM, "-c", SERVE, str(tmp_path / "model-vllm"), json.dumps(prompts)], capture_output=True, text=True,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for ids, found in zip(prompts, json.loads(done.stdout.splitlines()[-1]), strict=True):
        prompt = torch.tensor([ids])
        with torch.no_grad():
            log_probs = model(prompt).logits[0, :-1].log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0]
        assert max(abs(torch.tensor(found["log_probs"]) - log_probs)) < 1e-3
        text = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=prompt.gt(-1))
        assert text[0, len(ids) :].tolist() == found["text"]
