"""The sizes of a decoder-only language model, in Hugging Face's field names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from slm_ray.config.digest import digest_json


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a model family and its checkpoint fix, and what no search changes."""

    family: str  # Hugging Face's ``model_type``
    vocab_size: int  # Rows of the token embedding
    head_dim: int  # Width of one attention head
    tie_word_embeddings: bool  # The output head is the token embedding
    gated_mlp: bool  # The MLP has gate, up and down projections (else up and down)
    qkv_bias: bool  # The query, key and value projections have biases
    attention_output_bias: bool  # The attention's output projection has a bias
    mlp_bias: bool  # The MLP's projections have biases
    norm_bias: bool  # Norms have a bias (LayerNorm), else only a scale (RMSNorm)
    qk_norm: bool  # Queries and keys are normalised per head (two scales of ``head_dim``)
    learned_positions: int  # Rows of the learned position table; 0 for rotary positions
    output_head_bias: bool  # The output head has a bias
    max_position_embeddings: int  # The longest sequence the model is made for
    norms_per_sub_layer: int = 1  # Norms of attention and of MLP: one before or behind it, or both
    qk_norm_over_heads: bool = False  # The norms of queries and keys are over all heads at once, not per head
    # Neurons of one expert of a mixture, whose layers have as many experts as ``intermediate_size`` says; 0: an MLP
    expert_size: int = 0
    experts_per_token: int = 0  # Experts that a mixture's router chooses for a token

    @property
    def mlp_unit(self) -> str:
        """What ``intermediate_size`` counts, in words."""
        return "experts" if self.expert_size else "neurons"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; fields with defaults only where they differ, so that older digests hold."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != defaults[name]}


@dataclass(frozen=True)
class LayerShape:
    """The sizes of one transformer layer. Zero heads, or zero neurons, means that sub-layer is skipped."""

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int  # MLP neurons, or a mixture's experts
    sliding_window: int = 0  # Tokens that attention looks back over, its own included; 0: over all of them

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if min(heads, kv_heads, self.intermediate_size) < 0:
            raise ValueError(f"sizes must not be negative, got {self}")
        if (heads == 0) != (kv_heads == 0) or (kv_heads and heads % kv_heads):
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and {kv_heads}"
            )


@dataclass(frozen=True)
class Architecture:
    """A model's sizes: a structure, a width, and the sizes of every layer."""

    structure: Structure
    hidden_size: int
    layers: tuple[LayerShape, ...]

    def __post_init__(self) -> None:
        if self.hidden_size <= 0:
            raise ValueError(f"hidden_size must be positive, got {self.hidden_size}")

    @property
    def num_hidden_layers(self) -> int:
        """How many layers there are, those with one skipped sub-layer included."""
        return len(self.layers)

    @property
    def is_uniform(self) -> bool:
        """Every layer has the same sizes and skips nothing; windows may differ."""
        shapes = {dataclasses.replace(layer, sliding_window=0) for layer in self.layers}
        return len(shapes) <= 1 and all(shape.num_attention_heads and shape.intermediate_size for shape in shapes)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; :meth:`from_json` reads it back."""
        windows = [layer.sliding_window for layer in self.layers]
        return {
            "structure": self.structure.to_json(),
            "hidden_size": self.hidden_size,
            "num_attention_heads": [layer.num_attention_heads for layer in self.layers],
            "num_key_value_heads": [layer.num_key_value_heads for layer in self.layers],
            "intermediate_size": [layer.intermediate_size for layer in self.layers],
            **({"sliding_window": windows} if any(windows) else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Architecture:
        """Read what :meth:`to_json` wrote."""
        names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        windows = value.get("sliding_window") or [0] * len(value[names[0]])
        sizes = zip(*(value[name] for name in names), windows, strict=True)
        layers = tuple(LayerShape(*map(int, one)) for one in sizes)
        return cls(Structure(**value["structure"]), int(value["hidden_size"]), layers)

    @property
    def digest(self) -> str:
        """Equal architectures have equal digests."""
        return digest_json(self.to_json())
