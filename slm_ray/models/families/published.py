"""Sizes of published models, as their own config.json says, so that a dry run needs no hub."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from slm_ray.models.families import config_architecture
from slm_ray.records.architecture import Architecture


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocab, "tie_word_embeddings": True,
        "max_position_embeddings": 8192, **more,
    }  # fmt: skip


def _pythia(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "vocab_size": 50304, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": 50257}


def _gemma3(hidden: int, layers: int, mlp: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": mlp, "vocab_size": 262144,
        "sliding_window": 512, "max_position_embeddings": 32768,
    }  # fmt: skip


_PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _llama(576, 30, 9, 3, 1536, 49152),
    "HuggingFaceTB/SmolLM2-360M": _llama(960, 32, 15, 5, 2560, 49152),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(2048, 24, 32, 32, 8192, 49152),
    "EleutherAI/pythia-14m": _pythia(128, 6, 4),
    "EleutherAI/pythia-31m": _pythia(256, 6, 8),
    "EleutherAI/pythia-70m": _pythia(512, 6, 8),
    "EleutherAI/pythia-160m": _pythia(768, 12, 12),
    "EleutherAI/pythia-410m": _pythia(1024, 24, 16),
    "EleutherAI/pythia-1b": _pythia(2048, 16, 8),
    "EleutherAI/pythia-1.4b": _pythia(2048, 24, 16),
    "EleutherAI/pythia-2.8b": _pythia(2560, 32, 32),
    "openai-community/gpt2": _gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
    "openlm-research/open_llama_3b": _llama(3200, 26, 32, 32, 8640, 32000, tie_word_embeddings=False,
                                            max_position_embeddings=2048),
    "google/gemma-3-270m": _gemma3(640, 18, 2048),
    "google/gemma-3-1b-pt": _gemma3(1152, 26, 6912),
    "HuggingFaceTB/SmolLM3-3B": _llama(2048, 36, 16, 4, 11008, 128256, model_type="smollm3",
                                       max_position_embeddings=65536),
    "allenai/OLMo-2-0425-1B": _llama(2048, 16, 16, 16, 8192, 100352, model_type="olmo2", tie_word_embeddings=False,
                                     max_position_embeddings=4096),
    "Qwen/Qwen3-0.6B": _llama(1024, 28, 16, 8, 3072, 151936, model_type="qwen3", head_dim=128,
                              max_position_embeddings=40960),
    "Qwen/Qwen3-30B-A3B": _llama(2048, 48, 32, 4, 6144, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128,
                                 num_experts_per_tok=8, moe_intermediate_size=768, tie_word_embeddings=False,
                                 max_position_embeddings=40960),
    "allenai/OLMoE-1B-7B-0924": _llama(2048, 16, 16, 16, 1024, 50304, model_type="olmoe", tie_word_embeddings=False,
                                       max_position_embeddings=4096),
    "Qwen/Qwen2.5-0.5B": _llama(896, 24, 14, 2, 4864, 151936, model_type="qwen2", max_position_embeddings=32768),
}  # fmt: skip


# Patterns of the names of a family's models.
_FAMILIES = (r"pythia-\d", r"smollm2", r"gpt2", r"open_?llama", r"qwen2\.5")


def published_family(name: str) -> list[str]:
    """Hub ids of the published models that we know of a model's family, by the model's name."""
    pattern = next((pattern for pattern in _FAMILIES if re.search(pattern, name, re.IGNORECASE)), None)
    return [known for known in _PUBLISHED if pattern and re.search(pattern, known, re.IGNORECASE)]


@cache
def published_architecture(name: str) -> Architecture | None:
    """The sizes of a published model that we know; None for any other name."""
    from transformers import AutoConfig

    fields = dict(_PUBLISHED.get(name, {}))
    if not fields:
        return None
    return config_architecture(AutoConfig.for_model(fields.pop("model_type"), **fields))
