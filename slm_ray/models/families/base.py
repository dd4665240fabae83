"""What a model family decides: its tensors with their axes, its norms, positions, scales and classes.

A family is one :class:`Family` in a file of this package, and one modelling file under ``modeling/`` for students that
its plain class cannot express (docs/adding_a_family.md). Costs, the runner, gates, reconstruction, extraction and
models from scratch ask the family; no other module knows a family's name. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.records.architecture import Architecture, LayerShape, Structure

# The axes a tensor's dimensions may run along. A dimension with no axis (None) is kept whole.
HIDDEN = "hidden"  # residual channels
QUERIES = "queries"  # query heads x head_dim
KEYS = "keys"  # key-value heads x head_dim
NEURONS = "neurons"  # MLP neurons, or a mixture's experts
QKV_PER_HEAD = "qkv_per_head"  # per head: its query, key and value rows (GPT-NeoX)
QKV_STACKED = "qkv_stacked"  # all queries, then all keys, then all values (GPT-2, Phi-3)
GATE_UP = "gate_up"  # all neurons' gates, then all neurons' ups (Phi-3)

Axes = tuple[str | None, ...]
STUDENT_PREFIX = "slm_ray_"  # of the model_type of students with per-layer sizes
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class SubLayerNames:
    """How a family names one sub-layer of its decoder layers."""

    module: str  # The attention or MLP module within the layer
    norm: str | None  # The norm before it
    output: str  # The projection that writes to the residual stream; its input is the heads or the neurons
    tensors: Mapping[str, Axes]  # Name within the layer to axes, the norms' tensors included
    post_norm: str | None = None  # The norm behind it, before the residual addition
    experts: str | None = None  # A mixture's experts: called with tokens, their experts, and the router's weights

    @property
    def written(self) -> str:
        """The module whose output is added to the residual stream."""
        return self.post_norm or (self.module if self.experts else self.output)


@dataclass(frozen=True)
class GgufNames:
    """How llama.cpp knows a family."""

    plain: str  # The architecture of plain models
    per_layer: str | None = None  # That of models whose layers differ in heads and neurons
    pairs: bool = False  # It rotates neighbouring channels of queries and keys, not halves


def _one(config: Any) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family. Functions take a config of the family, plain or with per-layer sizes."""

    model_type: str  # Hugging Face's name of it
    stem: str  # What the names of its student classes begin with: ``SlmRayLlama``
    base: str = "model"  # The attribute of the causal LM that holds the layers' model
    layers: str = "layers"  # The attribute of that model that lists the layers
    embedding: str  # The token embedding's tensor
    final_norm: str  # The norm behind the last layer
    global_tensors: Mapping[str, Axes]  # Name to axes, for the tensors outside the layers
    attention: SubLayerNames  # The attention sub-layer's names
    mlp: SubLayerNames  # The MLP sub-layer's names
    # The constants that costs depend on: biases, tied embeddings, positions, gate, q/k norms
    structure: Callable[[Any], Structure]
    intermediate_size: Callable[[Any], int] = lambda config: int(config.intermediate_size)  # The MLP width
    intermediate_field: str = "intermediate_size"  # The config field of the MLP width
    free_head_dim: bool = True  # The plain class takes ``head_dim`` from the config, so heads need not fill the width
    heads_divide_width: bool = False  # The plain class wants a width that is a multiple of the number of heads
    is_parallel: Callable[[Any], bool] = lambda config: False  # Attention and MLP of a layer read the same stream
    # Attention is scaled by the layer's number in the teacher
    scales_by_layer: Callable[[Any], bool] = lambda config: False
    per_layer_fields: tuple[str, ...] = ("layer_types",)  # Config fields that list a value for every layer
    embedding_scale: Callable[[Any], float] = _one  # What the embedding multiplies its rows by
    residual_scale: Callable[[Any], float] = _one  # What sub-layers' outputs are multiplied by before they are added
    logit_scale: Callable[[Any], float] = _one  # What logits are multiplied by
    logit_cap: Callable[[Any], float | None] = lambda config: None  # What scaled logits are squashed to, by tanh
    norm_offset: float = 0.0  # What is added to a norm's weight before it scales
    # What in a config the family does not do, in words; None where it does all
    refuses: Callable[[Any], str | None] = lambda config: None
    gguf: GgufNames | None = None
    can_teach: bool = True  # Models of it may be teachers

    @property
    def student_type(self) -> str:
        """The ``model_type`` of its students with per-layer sizes."""
        return f"{STUDENT_PREFIX}{self.model_type}"

    @property
    def layer_prefix(self) -> str:
        """What a layer's tensors are called, with ``{}`` for its number."""
        return f"{self.base}.{self.layers}.{{}}."

    def attention_kinds(self, config: Any) -> tuple[str, ...]:
        """Per layer, what its attention may look at."""
        one = SLIDING_ATTENTION if getattr(config, "sliding_window", None) else FULL_ATTENTION
        return tuple(getattr(config, "layer_types", None) or (one,) * config.num_hidden_layers)

    def layer_tensors(self) -> dict[str, Axes]:
        """All tensors of a layer."""
        return {**self.attention.tensors, **self.mlp.tensors}

    def student_class(self, kind: str) -> Any:
        """A class of its modelling file; imports torch and transformers."""
        module = importlib.import_module(f"{__package__}.modeling.{self.modeling_file}")
        return getattr(module, f"{self.stem}{kind}")

    @property
    def modeling_file(self) -> str:
        """The name of its modelling file, without ``.py``."""
        return f"modeling_slm_ray_{self.model_type.removeprefix(STUDENT_PREFIX)}"

    def plain_config_class(self) -> Any:
        """The family's own config class in transformers."""
        from transformers import AutoConfig

        return type(AutoConfig.for_model(self.model_type))

    def architecture(self, config: Any) -> Architecture:
        """The sizes of a model of this family, plain or with per-layer sizes."""
        structure = dataclasses.replace(self.structure(config), family=self.model_type)
        if config.model_type == self.student_type:
            layers = list(config.per_layer_config)
        else:
            layers = [config] * int(config.num_hidden_layers)
        shapes = map(self._layer_shape, layers, self.attention_kinds(config))
        return Architecture(structure, int(config.hidden_size), tuple(shapes))

    def _layer_shape(self, config: Any, kind: str) -> LayerShape:
        """One layer's sizes from a config with its values; skipped sub-layers have none."""
        skipped = frozenset(getattr(config, "skip", None) or ())
        heads = 0 if "attention" in skipped else int(config.num_attention_heads)
        kv_heads = 0 if "attention" in skipped else int(getattr(config, "num_key_value_heads", None) or heads)
        window = int(config.sliding_window) if heads and kind == SLIDING_ATTENTION else 0
        return LayerShape(heads, kv_heads, 0 if "mlp" in skipped else int(self.intermediate_size(config)), window)

    def plain_class_refuses(self, architecture: Architecture) -> str | None:
        """Why the family's plain class cannot express these sizes; None where it can.

        Searches over model-wide sizes prefer widths that it can: such a student loads without any code of ours.
        """
        if not architecture.is_uniform:
            return "its layers differ in size"
        width, heads = architecture.hidden_size, architecture.layers[0].num_attention_heads
        head_dim = architecture.structure.head_dim
        if not self.free_head_dim and heads * head_dim != width:
            return f"its {heads} heads of {head_dim} do not fill its width of {width}"
        if self.heads_divide_width and width % heads:
            return f"its width of {width} is no multiple of its {heads} heads"
        return None


def common_structure(config: Any, **changes: Any) -> Structure:
    """The constants most families share, with what differs."""
    heads = None if getattr(config, "head_dim", None) else config.num_attention_heads
    bias = bool(getattr(config, "attention_bias", False))
    values: dict[str, Any] = {
        "family": config.model_type,
        "vocab_size": int(config.vocab_size),
        "head_dim": int(config.hidden_size // heads if heads else config.head_dim),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "gated_mlp": True,
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "norm_bias": False,
        "qk_norm": False,
        "learned_positions": 0,
        "output_head_bias": False,
        "max_position_embeddings": int(config.max_position_embeddings),
    }
    return Structure(**{**values, **changes})


def linear(name: str, out_axis: str, in_axis: str) -> dict[str, Axes]:
    """A linear layer's weight (out, in) and its bias, where it has one."""
    return {f"{name}.weight": (out_axis, in_axis), f"{name}.bias": (out_axis,)}


def conv1d(name: str, in_axis: str, out_axis: str) -> dict[str, Axes]:
    """A Conv1D of transformers: the weight is (in, out)."""
    return {f"{name}.weight": (in_axis, out_axis), f"{name}.bias": (out_axis,)}


def norm(name: str) -> dict[str, Axes]:
    """A norm over the residual channels: its scale, and its bias where it has one."""
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def sub_layer(
    module: str, before: str | None, output: str, tensors: Mapping[str, Axes], behind: str | None = None
) -> SubLayerNames:
    """A sub-layer's names; the tensors of its norms are added to the others."""
    norms = {name: axes for one in (before, behind) if one for name, axes in norm(one).items()}
    return SubLayerNames(module=module, norm=before, output=output, tensors={**norms, **tensors}, post_norm=behind)
