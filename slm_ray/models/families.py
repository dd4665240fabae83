"""Where each axis lives in a family's tensors: one small declaration per family.

To add a family, declare its tensors here, give it a class in ``hetero.py``, and add a tiny config of it to
``tests/models/tiny.py``: every test of extraction, cost and importance then runs on it (docs/adding_a_family.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture, LayerShape, Structure

# The axes a tensor's dimensions may run along. A dimension with no axis (None) is kept whole.
HIDDEN = "hidden"  # residual channels
QUERIES = "queries"  # query heads x head_dim
KEYS = "keys"  # key-value heads x head_dim
NEURONS = "neurons"  # MLP neurons
QKV_PER_HEAD = "qkv_per_head"  # per head: its query, key and value rows (GPT-NeoX)
QKV_STACKED = "qkv_stacked"  # all queries, then all keys, then all values (GPT-2)

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        model_type: Hugging Face's name of it.
        layer_prefix: What a layer's tensors are called, with ``{}`` for its number.
        global_tensors: Name to axes, for the tensors outside the layers.
        attention_tensors: Name within a layer to axes: the attention sub-layer and its norm.
        mlp_tensors: Name within a layer to axes: the MLP sub-layer and its norm.
        attention_output: The projection whose input is the concatenated heads.
        mlp_output: The projection whose input is the neurons.
        layers_path: The attribute path of the layer list in the causal LM.
        student_class: Name of its class in ``hetero.py``, and of its config class.
        structure: Reads the constants off a config.
        intermediate_size: Reads the MLP width off a config.
        intermediate_field: The config field of the MLP width.
        free_head_dim: The plain class takes ``head_dim`` from the config, so heads need not fill the hidden size.
    """

    model_type: str
    layer_prefix: str
    global_tensors: Mapping[str, Axes]
    attention_tensors: Mapping[str, Axes]
    mlp_tensors: Mapping[str, Axes]
    attention_output: str
    mlp_output: str
    layers_path: str
    student_class: tuple[str, str]
    structure: Callable[[Any], Structure]
    intermediate_size: Callable[[Any], int]
    intermediate_field: str = "intermediate_size"
    free_head_dim: bool = True

    def architecture(self, config: Any) -> Architecture:
        """The sizes of a plain (homogeneous) model of this family."""
        shape = LayerShape(
            int(config.num_attention_heads),
            int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
            int(self.intermediate_size(config)),
        )
        return Architecture(self.structure(config), int(config.hidden_size), (shape,) * int(config.num_hidden_layers))

    def layer_tensors(self) -> dict[str, Axes]:
        """All tensors of a layer."""
        return {**self.attention_tensors, **self.mlp_tensors}

    def layer_list_prefix(self) -> str:
        """What the names of all layer tensors begin with."""
        return self.layer_prefix.split("{}")[0]


def _structure(config: Any, **changes: Any) -> Structure:
    """The constants most families share, with what differs."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, Any] = {
        "family": config.model_type,
        "vocab_size": int(config.vocab_size),
        "head_dim": int(head_dim),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "gated_mlp": True,
        "qkv_bias": False,
        "attention_output_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "qk_norm": False,
        "learned_positions": 0,
        "output_head_bias": False,
        "max_position_embeddings": int(config.max_position_embeddings),
    }
    return Structure(**{**values, **changes})


def _llama_structure(config: Any) -> Structure:
    bias = bool(config.attention_bias)
    return _structure(config, qkv_bias=bias, attention_output_bias=bias, mlp_bias=bool(config.mlp_bias))


def _qwen3_structure(config: Any) -> Structure:
    bias = bool(config.attention_bias)
    return _structure(config, qkv_bias=bias, attention_output_bias=bias, qk_norm=True)


def _neox_structure(config: Any) -> Structure:
    bias = bool(config.attention_bias)
    return _structure(
        config, gated_mlp=False, qkv_bias=bias, attention_output_bias=bias, mlp_bias=True, norm_bias=True
    )  # fmt: skip


def _gpt2_structure(config: Any) -> Structure:
    return _structure(
        config, gated_mlp=False, qkv_bias=True, attention_output_bias=True, mlp_bias=True, norm_bias=True,
        learned_positions=int(config.n_positions),
    )  # fmt: skip


def _projection(name: str, out_axis: str, in_axis: str) -> dict[str, Axes]:
    """A linear layer's weight (out, in) and its bias, where it has one."""
    return {f"{name}.weight": (out_axis, in_axis), f"{name}.bias": (out_axis,)}


def _conv1d(name: str, in_axis: str, out_axis: str) -> dict[str, Axes]:
    """GPT-2's Conv1D: the weight is (in, out)."""
    return {f"{name}.weight": (in_axis, out_axis), f"{name}.bias": (out_axis,)}


def _norm(name: str) -> dict[str, Axes]:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _llama_like(model_type: str, class_stem: str, structure: Callable[[Any], Structure]) -> Family:
    return Family(
        model_type=model_type,
        layer_prefix="model.layers.{}.",
        global_tensors={
            "model.embed_tokens.weight": (None, HIDDEN), **_norm("model.norm"), "lm_head.weight": (None, HIDDEN),
        },
        attention_tensors={
            **_norm("input_layernorm"),
            **_projection("self_attn.q_proj", QUERIES, HIDDEN),
            **_projection("self_attn.k_proj", KEYS, HIDDEN),
            **_projection("self_attn.v_proj", KEYS, HIDDEN),
            **_projection("self_attn.o_proj", HIDDEN, QUERIES),
            "self_attn.q_norm.weight": (None,),
            "self_attn.k_norm.weight": (None,),
        },
        mlp_tensors={
            **_norm("post_attention_layernorm"),
            **_projection("mlp.gate_proj", NEURONS, HIDDEN),
            **_projection("mlp.up_proj", NEURONS, HIDDEN),
            **_projection("mlp.down_proj", HIDDEN, NEURONS),
        },
        attention_output="self_attn.o_proj",
        mlp_output="mlp.down_proj",
        layers_path="model.layers",
        student_class=(f"SlmRay{class_stem}ForCausalLM", f"SlmRay{class_stem}Config"),
        structure=structure,
        intermediate_size=lambda config: config.intermediate_size,
    )  # fmt: skip


_NEOX = Family(
    model_type="gpt_neox",
    layer_prefix="gpt_neox.layers.{}.",
    global_tensors={
        "gpt_neox.embed_in.weight": (None, HIDDEN), **_norm("gpt_neox.final_layer_norm"),
        "lm_head.weight": (None, HIDDEN),
    },
    attention_tensors={
        **_norm("input_layernorm"),
        **_projection("attention.query_key_value", QKV_PER_HEAD, HIDDEN),
        **_projection("attention.dense", HIDDEN, QUERIES),
    },
    mlp_tensors={
        **_norm("post_attention_layernorm"),
        **_projection("mlp.dense_h_to_4h", NEURONS, HIDDEN),
        **_projection("mlp.dense_4h_to_h", HIDDEN, NEURONS),
    },
    attention_output="attention.dense",
    mlp_output="mlp.dense_4h_to_h",
    layers_path="gpt_neox.layers",
    student_class=("SlmRayGPTNeoXForCausalLM", "SlmRayGPTNeoXConfig"),
    structure=_neox_structure,
    intermediate_size=lambda config: config.intermediate_size,
    free_head_dim=False,
)  # fmt: skip

_GPT2 = Family(
    model_type="gpt2",
    layer_prefix="transformer.h.{}.",
    global_tensors={
        "transformer.wte.weight": (None, HIDDEN), "transformer.wpe.weight": (None, HIDDEN),
        **_norm("transformer.ln_f"), "lm_head.weight": (None, HIDDEN),
    },
    attention_tensors={
        **_norm("ln_1"),
        **_conv1d("attn.c_attn", HIDDEN, QKV_STACKED),
        **_conv1d("attn.c_proj", QUERIES, HIDDEN),
    },
    mlp_tensors={
        **_norm("ln_2"),
        **_conv1d("mlp.c_fc", HIDDEN, NEURONS),
        **_conv1d("mlp.c_proj", NEURONS, HIDDEN),
    },
    attention_output="attn.c_proj",
    mlp_output="mlp.c_proj",
    layers_path="transformer.h",
    student_class=("SlmRayGPT2LMHeadModel", "SlmRayGPT2Config"),
    structure=_gpt2_structure,
    intermediate_size=lambda config: config.n_inner or 4 * config.hidden_size,
    intermediate_field="n_inner",
    free_head_dim=False,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _llama_like("llama", "Llama", _llama_structure),
        _llama_like("qwen2", "Qwen2", lambda config: _structure(config, qkv_bias=True)),
        _llama_like("qwen3", "Qwen3", _qwen3_structure),
        _NEOX,
        _GPT2,
    )
}


def unsupported_family(name: str, model_type: str) -> UserError:
    """The error for a model of a family that is not declared here; it lists those that are."""
    if model_type.startswith("slm_ray_"):
        return UserError(
            f"{name} is a student whose layers differ in size, which cannot be a teacher: give its own teacher, or a "
            "student from a space with model-wide sizes (coarse, fine_uniform, depth)"
        )
    supported = ", ".join(sorted(FAMILIES))
    return UserError(
        f"{name} is of the family '{model_type}', which is not supported: use a teacher of one of {supported}, "
        "or declare the family (docs/adding_a_family.md)"
    )


def family_of(config: Any, name: str) -> Family:
    """The family of a config.

    Args:
        config: A Hugging Face config.
        name: What to call the model in an error.

    Raises:
        UserError: The family is not supported, or the model uses a feature of it that is not.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise unsupported_family(name, config.model_type)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise UserError(
            f"{name} uses sliding-window attention layers, which are not supported: use a full-attention teacher"
        )
    if getattr(config, "add_cross_attention", False):
        raise UserError(f"{name} is a decoder with cross-attention: use a decoder-only language model")
    return family
