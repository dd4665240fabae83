"""Models with random weights: standard Llamas, or Llamas with another way of telling positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from slm_ray.config.errors import unknown_name
from slm_ray.models.sizes import POSITIONS_TYPE
from slm_ray.records.architecture import Architecture

ROTARY, LEARNED = "rotary", "learned"
POSITIONS = (ROTARY, LEARNED, "alibi", "none")
# Positions that no table ends may be read further out than was trained: that far does a model say it goes.
_FURTHER = 16


def positions_limit(positions: str, sequence_length: int) -> int:
    """The longest sequence that a model takes: with learned positions, ``sequence_length``, which it is trained on.

    How well it reads beyond what it was trained on is up to the positions, and what length extrapolation measures.
    """
    return sequence_length if positions == LEARNED else _FURTHER * sequence_length


def with_positions(architecture: Architecture, positions: str, sequence_length: int) -> Architecture:
    """A rotary Llama's sizes with other positions; the layers are the same, a table of positions comes on top.

    Args:
        architecture: As the ladder gives it.
        positions: One of ``POSITIONS``.
        sequence_length: Tokens per sequence in training.

    Raises:
        UserError: There are no such positions.
    """
    if positions not in POSITIONS:
        raise unknown_name("kind of positions", positions, POSITIONS)
    structure = dataclasses.replace(
        architecture.structure, family="llama" if positions == ROTARY else POSITIONS_TYPE,
        learned_positions=sequence_length if positions == LEARNED else 0,
        max_position_embeddings=positions_limit(positions, sequence_length),
    )  # fmt: skip
    return dataclasses.replace(architecture, structure=structure)


def scratch_config(architecture: Architecture, positions: str, tokenizer: Any = None) -> Any:
    """The Hugging Face config of a model with these sizes.

    Args:
        architecture: Uniform layers; from :func:`with_positions`.
        positions: One of ``POSITIONS``.
        tokenizer: Whose special tokens it names; None: none.
    """
    from transformers import LlamaConfig

    from slm_ray.models.positions import SlmRayPositionsConfig

    structure, layer = architecture.structure, architecture.layers[0]
    # Not the padding token: often it is the end of a document, whose embedding Llama would then never train.
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
    fields: dict[str, Any] = {
        "vocab_size": structure.vocab_size, "hidden_size": architecture.hidden_size,
        "intermediate_size": layer.intermediate_size, "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": layer.num_attention_heads, "num_key_value_heads": layer.num_key_value_heads,
        "head_dim": structure.head_dim, "max_position_embeddings": structure.max_position_embeddings,
        "tie_word_embeddings": structure.tie_word_embeddings, **special,
    }  # fmt: skip
    return LlamaConfig(**fields) if positions == ROTARY else SlmRayPositionsConfig(**fields, positions=positions)


def build_scratch(architecture: Architecture, positions: str, seed: int, tokenizer: Any = None) -> Any:
    """A model in fp32 with weights as its class draws them (normal, standard deviation 0.02; norms are 1).

    Args:
        architecture: Its sizes.
        positions: One of ``POSITIONS``.
        seed: Of the weights. The same seed gives the same layers whatever the positions.
        tokenizer: Whose special tokens its config names.
    """
    from transformers import LlamaForCausalLM

    from slm_ray.models.positions import SlmRayPositionsForCausalLM

    config = scratch_config(architecture, positions, tokenizer)
    torch.manual_seed(seed)
    model: Any = (LlamaForCausalLM if positions == ROTARY else SlmRayPositionsForCausalLM)(config)
    model = model.float()
    model.config.dtype = torch.float32
    return model
