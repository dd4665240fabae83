"""Tiny models of every family with random norms and biases, and sub-networks of them."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)

from slm_ray.models.families import FAMILIES, Family
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet

VOCAB = 61
LENGTH = 12

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
_GQA = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 24}
_NEOX = {**_SIZES, "intermediate_size": 24}
_LOCAL = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_ONE_KV = {**_GQA, "num_key_value_heads": 1, "head_dim": 12}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3}
_GPT2 = {**_SIZES, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

# Name to config; "llama" has grouped queries and every bias, "qwen3" heads that do not fill the hidden size.
_CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {**_GQA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_untied": (LlamaConfig, {**_GQA, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {**_GQA, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {**_GQA, "head_dim": 12, "tie_word_embeddings": True}),
    "gpt_neox": (GPTNeoXConfig, {**_NEOX, "use_parallel_residual": True, "rotary_pct": 0.25}),
    "gpt_neox_sequential": (GPTNeoXConfig, {**_NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "gpt2": (GPT2Config, _GPT2),
    "gpt2_scaled": (GPT2Config, {**_GPT2, "n_inner": 24, "scale_attn_by_inverse_layer_idx": True}),
}
NAMES = tuple(_CONFIGS)
# The other families, and today's with windows in some layers
_CONFIGS |= {
    "qwen2_local": (Qwen2Config, {**_GQA, **_LOCAL, "use_sliding_window": True}),
    "mistral": (MistralConfig, {**_GQA, "sliding_window": 5}),
    "ministral": (MinistralConfig, {**_GQA, **_LOCAL, "head_dim": 12}),
    "smollm3": (SmolLM3Config, {**_GQA, "no_rope_layers": [1, 0, 1], "attention_bias": True, "mlp_bias": True}),
    "granite": (
        GraniteConfig,
        {**_GQA, "embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
         "logits_scaling": 0.25, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "gemma3": (Gemma3TextConfig, {**_ONE_KV, **_LOCAL, "query_pre_attn_scalar": 9}),
    "gemma3_untied": (Gemma3TextConfig, {**_GQA, **_LOCAL, "head_dim": 12, "tie_word_embeddings": False}),
    "gemma2": (Gemma2Config, {**_GQA, **_LOCAL, "head_dim": 12, "attn_logit_softcapping": 3.0,
                              "final_logit_softcapping": 4.0, "attention_bias": True}),
    "olmo2": (Olmo2Config, {**_GQA, "attention_bias": True}),
    "phi3": (Phi3Config, {**_GQA, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    "phi3_local": (Phi3Config, {**_GQA, "sliding_window": 5, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "stablelm": (StableLmConfig, {**_GQA, "use_qkv_bias": True}),
    "mixtral": (MixtralConfig, {**_GQA, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 5}),
    "qwen3_moe": (Qwen3MoeConfig, {**_GQA, **_EXPERTS, "head_dim": 12, "moe_intermediate_size": 16,
                                   "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True}),
    "olmoe": (OlmoeConfig, {**_GQA, **_EXPERTS, "clip_qkv": 2.0}),
}  # fmt: skip
ALL = tuple(_CONFIGS)


def tiny_config(name: str, **changes: Any) -> Any:
    """A tiny config of one of ``NAMES``."""
    config_class, fields = _CONFIGS[name]
    return config_class(**{**fields, **changes})


def tiny_family(name: str) -> Family:
    return FAMILIES[tiny_config(name).model_type]


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A Hugging Face model with every parameter random, norms and biases too, so that none can go missing unseen."""
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.3 * noise)
            parameter.data = parameter.data.to(dtype)  # not model.to, which would round the rotary frequencies too
    model.config.dtype = dtype
    return model


def tiny_ids(batch: int = 2, seed: int = 0, length: int = LENGTH) -> torch.Tensor:
    """``[batch, length]`` random token ids."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def _some(rng: random.Random, count: int, least: int = 1) -> tuple[int, ...]:
    return tuple(sorted(rng.sample(range(count), rng.randint(least, count))))


def layer_units(
    teacher: Architecture, source: int, kv_heads: tuple[int, ...], per_group: int | None, neurons: tuple[int, ...]
) -> LayerUnits:
    """A layer that keeps the last ``per_group`` query heads (all by default) of each key-value head."""
    shape = teacher.layers[source]
    group = shape.num_attention_heads // shape.num_key_value_heads
    kept = group if per_group is None else per_group
    queries = tuple(tuple(range((kv + 1) * group - kept, (kv + 1) * group)) for kv in kv_heads)
    return LayerUnits(source, kv_heads, queries, neurons)


def random_spec(teacher: Architecture, seed: int, *, drop_hidden: bool = True) -> SubnetSpec:
    """A sub-network that drops at random along every axis; every third seed skips sub-layers too."""
    rng = random.Random(seed)
    layers: list[LayerUnits] = []
    while not any(layer.kv_heads for layer in layers):
        layers = []
        for source in _some(rng, teacher.num_hidden_layers, least=2):
            shape = teacher.layers[source]
            group = shape.num_attention_heads // shape.num_key_value_heads
            skip = rng.choice(["attention", "mlp", ""]) if seed % 3 == 0 else ""
            kv_heads = () if skip == "attention" else _some(rng, shape.num_key_value_heads)
            kept = rng.randint(1, group)
            queries = tuple(tuple(sorted(rng.sample(range(kv * group, (kv + 1) * group), kept))) for kv in kv_heads)
            least = max(1, teacher.structure.experts_per_token)
            neurons = () if skip == "mlp" else _some(rng, shape.intermediate_size, least)
            layers.append(LayerUnits(source, kv_heads, queries, neurons))
    hidden = _some(rng, teacher.hidden_size, least=8) if drop_hidden else tuple(range(teacher.hidden_size))
    if teacher.structure.expert_size:  # torch's grouped products want rows of whole 16 bytes
        hidden = hidden[: len(hidden) // 8 * 8]
    return SubnetSpec(hidden, tuple(layers))


def axis_specs(teacher: Architecture) -> dict[str, SubnetSpec]:
    """One sub-network per axis, each dropping along that axis alone, and their combination."""
    full = full_subnet(teacher)
    heads, neurons = teacher.layers[0].num_key_value_heads, teacher.layers[0].intermediate_size
    every_head, every_neuron = tuple(range(heads)), tuple(range(neurons))
    group = teacher.layers[0].num_attention_heads // heads
    depth = teacher.num_hidden_layers

    def layers(*choices: tuple[int, tuple[int, ...], int | None, tuple[int, ...]]) -> SubnetSpec:
        return SubnetSpec(full.hidden, tuple(layer_units(teacher, *choice) for choice in choices))

    specs = {
        "layers": SubnetSpec(full.hidden, (full.layers[0], full.layers[2])),
        "neurons": layers(*((i, every_head, None, every_neuron[i::2][:11]) for i in range(depth))),
        "uneven neurons": layers(*((i, every_head, None, every_neuron[i + 1 :]) for i in range(depth))),
        "first attention": layers((0, (), None, every_neuron), *((i, every_head, None, every_neuron) for i in (1, 2))),
        "an mlp": layers((0, every_head, None, every_neuron), (1, (0,), None, every_neuron), (2, every_head, None, ())),
        "hidden": SubnetSpec(full.hidden[1::2], full.layers),
    }
    if heads > 1:
        specs["heads"] = layers(*((i, (i % heads,), None, every_neuron) for i in range(depth)))
        specs["uneven heads"] = layers(
            (0, (1,), None, every_neuron), *((i, every_head, None, every_neuron) for i in (1, 2))
        )
    if group > 1:
        specs["query heads"] = layers(*((i, every_head, 1, every_neuron) for i in range(depth)))
    return {**specs, "everything": random_spec(teacher, seed=3)}
