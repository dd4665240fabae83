import shutil

import numpy as np
import pytest
import torch

from slm_ray.models.gates import GatedTeacher, GateGradients
from slm_ray.models.importance import activation_scores, magnitude_scores, taylor_change
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import cached_scores
from tests.models.tiny import tiny_family, tiny_ids, tiny_model
from tests.references import mixture, unit_outputs, unit_tensors

ARRAYS = ("hidden", "layers", "kv_heads", "query_heads", "neurons")


def magnitude_of(name: str):
    model, family = tiny_model(name), tiny_family(name)
    architecture, state = family.architecture(model.config), model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")  # as teachers hold them
    return magnitude_scores(state, family, architecture), model, architecture


def norm(tensors) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in tensors)) ** 0.5


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2"])
def test_magnitude_is_the_norm_of_what_would_go(name):
    scores, model, architecture = magnitude_of(name)
    shape = architecture.layers[0]
    group = shape.num_attention_heads // shape.num_key_value_heads
    for layer in range(architecture.num_hidden_layers):
        query, kv, neuron = unit_tensors(model, layer)
        np.testing.assert_allclose(scores.query_heads[layer], [norm(tensors) for tensors in query], rtol=1e-5)
        np.testing.assert_allclose(scores.neurons[layer], [norm(tensors) for tensors in neuron], rtol=1e-5)
        whole = [
            norm([*kv[head], *(t for one in query[head * group : (head + 1) * group] for t in one)])
            for head in range(shape.num_key_value_heads)
        ]
        np.testing.assert_allclose(scores.kv_heads[layer], whole, rtol=1e-5)
    assert not scores.comparable


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_magnitude_of_channels_and_layers_counts_every_weight_once(name):
    scores, model, architecture = magnitude_of(name)
    for layer, score in enumerate(scores.layers):
        prefix = tiny_family(name).layer_prefix.format(layer)
        own = [tensor for key, tensor in model.named_parameters() if key.startswith(prefix)]
        assert score == pytest.approx(norm(own), rel=1e-5)
    inputs = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "query_key_value", "dense_h_to_4h")
    outputs = ("o_proj", "down_proj", "attention.dense.", "dense_4h_to_h")
    total = np.zeros(architecture.hidden_size)
    for key, tensor in model.named_parameters():
        squares = tensor.detach().double().square()
        gpt2 = model.config.model_type == "gpt2"
        if "q_norm" in key or "k_norm" in key:
            continue
        if tensor.ndim == 2 and not gpt2:
            if any(part in key for part in inputs) or "embed" in key or "lm_head" in key:
                total += squares.sum(0).numpy()
            elif any(part in key for part in outputs):
                total += squares.sum(1).numpy()
        elif tensor.ndim == 2:
            total += (squares.sum(1) if "c_attn" in key or "c_fc" in key else squares.sum(0)).numpy()
        elif "norm" in key or "ln_" in key or any(part in key for part in (*outputs, "c_proj.bias")):
            total += squares.numpy()
    np.testing.assert_allclose(scores.hidden, np.sqrt(total), rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_activation_scores_are_mean_sizes_of_outputs(name):
    model, family = tiny_model(name), tiny_family(name)
    runner, ids = SubnetRunner(model.state_dict(), model.config, family), tiny_ids(batch=5)
    scores = activation_scores(runner, ids)
    groups = runner.teacher.layers[0].num_key_value_heads
    hidden = np.zeros(runner.teacher.hidden_size)
    for layer, entry in enumerate(unit_outputs(model, ids)):
        heads = entry["heads"].norm(dim=-1).mean(0).numpy()
        np.testing.assert_allclose(scores.query_heads[layer], heads, rtol=1e-4)
        np.testing.assert_allclose(scores.kv_heads[layer], heads.reshape(groups, -1).sum(1), rtol=1e-4)
        np.testing.assert_allclose(scores.neurons[layer], entry["neurons"].abs().mean(0).numpy(), rtol=1e-4, atol=1e-6)
        before, after = entry["before"].double(), entry["after"].double()
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert scores.layers[layer] == pytest.approx(float((1 - cosine).mean()), rel=1e-4, abs=1e-5)
        hidden += (after / after.norm(dim=-1, keepdim=True)).abs().mean(0).numpy()
    np.testing.assert_allclose(scores.hidden, hidden, rtol=1e-4)


def test_experts_score_the_mean_size_of_what_they_write_for_their_tokens():
    model, family = tiny_model("qwen3_moe"), tiny_family("qwen3_moe")
    runner, ids = SubnetRunner(model.state_dict(), model.config, family), tiny_ids(batch=5)
    scores, mlp, seen = activation_scores(runner, ids), model.model.layers[1].mlp, []
    hook = mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(ids)
        hook.remove()
        x, every = seen[0], range(model.config.num_experts)
        sizes = [mixture(mlp, model.config, x, every, torch.eye(len(every))[expert]).norm(dim=-1) for expert in every]
        goes = torch.stack(sizes) > 0
        wanted = (torch.stack(sizes).sum(1) / goes.sum(1)).numpy()
    np.testing.assert_allclose(scores.neurons[1], wanted, rtol=1e-4)
    assert scores.neurons.shape == (3, 8) and not scores.comparable
    weights = magnitude_scores(model.state_dict(), family, runner.teacher).neurons[1]
    own = [mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj]
    np.testing.assert_allclose(weights, [norm([tensor[expert] for tensor in own]) for expert in every], rtol=1e-5)


def same(first, second) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAYS)


def some_gradients(seed: int = 0) -> GateGradients:
    rng = np.random.default_rng(seed)
    shapes = ((5, 3, 4), (5, 3, 6), (5, 8))
    return GateGradients(*(rng.normal(size=shape).astype(np.float32) for shape in shapes), loss=70.0, tokens=20)


@pytest.mark.parametrize("curvature", [None, 0.0, 0.25])
def test_taylor_change_is_the_formula(curvature):
    gradients = some_gradients()
    scores = taylor_change(gradients, 2, curvature)

    def rise(values: list[float]) -> float:
        squares, total = sum(value * value for value in values), sum(values)
        return (squares if curvature is None else curvature * squares - total) / 20

    for layer in range(3):
        for head in range(4):
            assert scores.query_heads[layer, head] == pytest.approx(
                rise(gradients.query_heads[:, layer, head].tolist())
            )
        for group in range(2):  # a key-value head is one gate over both its query heads
            both = gradients.query_heads[:, layer, 2 * group] + gradients.query_heads[:, layer, 2 * group + 1]
            assert scores.kv_heads[layer, group] == pytest.approx(rise(both.tolist()), rel=1e-5)
        for neuron in range(6):
            assert scores.neurons[layer, neuron] == pytest.approx(rise(gradients.neurons[:, layer, neuron].tolist()))
        whole = gradients.query_heads[:, layer].sum(-1) + gradients.neurons[:, layer].sum(-1)
        assert scores.layers[layer] == pytest.approx(rise(whole.tolist()), rel=1e-5)
    assert scores.hidden[3] == pytest.approx(rise(gradients.hidden[:, 3].tolist()))
    assert scores.comparable


def test_first_order_scores_predict_what_a_small_gate_change_does():
    """With no curvature, scores are exact for a loss that is linear in the gates: checked on a one per cent step."""
    model, family = tiny_model("llama"), tiny_family("llama")
    ids = tiny_ids(batch=4)
    gradients = GatedTeacher(model.state_dict(), model.config, family).gradients(ids)
    scores = taylor_change(gradients, 2, 0.0)
    before = gradients.loss / gradients.tokens
    share = 0.01
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, :12] *= 1 - share  # twelve neurons put out one per cent less
    after = GatedTeacher(model.state_dict(), model.config, family).gradients(ids)
    assert after.loss / after.tokens - before == pytest.approx(share * scores.neurons[1, :12].sum(), rel=0.05, abs=1e-5)


def test_scores_are_kept_and_read_back(tmp_path):
    scores = taylor_change(some_gradients(), 2, 0.25)
    calls = []

    def compute():
        calls.append(1)
        return [scores, taylor_change(some_gradients(1), 2, 0.25)]

    key = {"teacher": "a", "tokens": "b"}
    first, was_cached = cached_scores(tmp_path, key, compute)
    assert not was_cached
    again, was_cached = cached_scores(tmp_path, key, compute)
    assert was_cached and len(calls) == 1 and len(again) == 2
    assert all(map(same, again, first)) and not same(*again)
    cached_scores(tmp_path, key | {"tokens": "c"}, compute)
    assert len(calls) == 2  # other tokens are other scores


@pytest.mark.parametrize("file", ["0/scores.safetensors", "1/manifest.json", "count.json", "1"])
@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, None])
def test_damaged_or_missing_scores_are_computed_again(file, damage, tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return [taylor_change(some_gradients(seed), 2, 0.25) for seed in (0, 1)]

    first, _ = cached_scores(tmp_path, {}, compute)
    place = next(tmp_path.glob(f"importance/*/{file}"))
    if place.is_dir():
        shutil.rmtree(place)
    elif damage is None:
        place.unlink()
    else:
        place.write_bytes(damage)
    again, was_cached = cached_scores(tmp_path, {}, compute)
    assert not was_cached and len(calls) == 2
    assert cached_scores(tmp_path, {}, compute)[1]
    assert all(map(same, again, first)) and (again[0].method, again[0].comparable) == ("taylor", True)
