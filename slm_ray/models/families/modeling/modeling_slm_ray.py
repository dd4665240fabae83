"""What students of all families share: layers that differ in size, and sub-layers that are skipped.

This file and the family's own are copied beside the weights of every student that its family's plain class cannot
express, so that ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works where slm_ray is not
installed. They need only torch and transformers. Sizes come from the ``per_layer_config`` field of config.json
(transformers 5): a layer may override ``num_attention_heads``, ``num_key_value_heads`` and ``intermediate_size``
(GPT-2: ``n_inner``, mixtures: the number of experts), and ``skip`` its ``attention`` or its ``mlp``.
"""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

AUTO_CLASSES = {
    "AutoModel": (AutoModel, "Model"),
    "AutoModelForCausalLM": (AutoModelForCausalLM, "ForCausalLM"),
    "AutoModelForSequenceClassification": (AutoModelForSequenceClassification, "ForSequenceClassification"),
}
PLAIN_CLASSES = (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)


def register_classes(config_class: Any, *model_classes: Any) -> None:
    """Tell transformers' Auto classes about a family's config and models (base, causal LM, classification or None)."""
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for (auto, _), model_class in zip(AUTO_CLASSES.values(), model_classes, strict=True):
        if model_class is not None:
            auto.register(config_class, model_class, exist_ok=True)


class SavesCode:
    """Mixin for models that are saved with their modelling files beside the weights, whoever saves them."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save, with the classes for all Auto classes named in config.json."""
        config: Any = self.config  # type: ignore[attr-defined]
        files = [inspect.getfile(cls) for cls in (type(self), register_classes)]
        module = os.path.basename(files[0]).removesuffix(".py")
        stem = type(config).__name__.removesuffix("Config")
        config.auto_map = {"AutoConfig": f"{module}.{stem}Config"} | {
            auto: f"{module}.{stem}{suffix}"
            for (auto, (_, suffix)), mapping in zip(AUTO_CLASSES.items(), PLAIN_CLASSES, strict=True)
            if type(config) in mapping
        }
        os.makedirs(save_directory, exist_ok=True)
        for file in files:
            shutil.copyfile(file, os.path.join(save_directory, os.path.basename(file)))
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]


# Not called "...Attention": transformers would take it for a kernel written by hand, and refuse to switch kernels.
class SkippedHeads(nn.Module):
    """Stands where a layer keeps no attention; adds nothing to the residual stream and caches nothing."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Zeros, shaped like the input ``[batch, sequence, hidden]``, and no attention weights."""
        return torch.zeros_like(hidden_states), None


class SkippedNeurons(nn.Module):
    """Stands where a layer keeps no neurons; adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros, shaped like the input ``[batch, sequence, hidden]``."""
        return torch.zeros_like(hidden_states)


class PerLayerConfig:
    """Mixin for configs with per-layer sizes."""

    def validate_architecture(self) -> None:
        """Heads need not divide the width here: ``head_dim`` is a field of its own."""

    def validate_rope(self) -> None:
        """The rotary parameters are a teacher's, checked there; some families derive a head's width to check them."""

    def layer_sizes(self) -> list[dict[str, int]]:
        """Heads, key-value heads and MLP neurons (or experts) of every layer, 0 where a sub-layer is skipped.

        ``config.num_attention_heads`` itself raises where layers differ: transformers refuses a single answer.
        """
        sizes = []
        for layer in self.per_layer_config:  # type: ignore[attr-defined]
            skipped = frozenset(getattr(layer, "skip", None) or ())
            heads: Any = 0 if "attention" in skipped else layer.num_attention_heads
            kv_heads: Any = heads and (getattr(layer, "num_key_value_heads", None) or heads)
            names = ("n_inner", "num_experts", "num_local_experts", "intermediate_size")
            neurons: Any = next(filter(None, (getattr(layer, name, 0) for name in names)))
            sizes.append({
                "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                "intermediate_size": 0 if "mlp" in skipped else neurons,
            })  # fmt: skip
        return sizes

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved: as transformers', and always the number of layers and what layers may override.

        Where no code may run, transformers reads the file as a config without a family. To read ``per_layer_config`` it
        then needs these under their common names, which a family may call otherwise (GPT-2's ``n_layer``) or leave out.
        """
        whole, names = self.to_dict(), {"num_hidden_layers", *(self.per_layer_attributes or ())}  # type: ignore[attr-defined]
        common = {name: whole.get(self.attribute_map.get(name, name)) for name in names}  # type: ignore[attr-defined]
        return {**super().to_diff_dict(), **{name: value for name, value in common.items() if value is not None}}  # type: ignore[misc]


class PerLayerModel(SavesCode):
    """Mixin that builds the family's own model with no layers, then gives it layers of differing sizes.

    Attention modules are numbered among those of their kind (full, sliding), so that a key-value cache works where the
    first layer (whose length transformers asks for) keeps no attention.
    """

    layer_class: ClassVar[Any]
    layers_name: ClassVar[str] = "layers"
    # A sub-layer's module, and its norms
    attention_name: ClassVar[tuple[str, ...]] = ("self_attn", "input_layernorm")
    mlp_name: ClassVar[tuple[str, ...]] = ("mlp", "post_attention_layernorm")

    @classmethod
    def build_layer(cls, config: Any, index: int) -> nn.Module:
        """One layer. A family whose attention derives its head width from the model's replaces its projections here."""
        layer: nn.Module = cls.layer_class(config, index)
        return layer

    @classmethod
    def attention_config(cls, shared: Any, own: Any) -> Any:
        """What an attention module takes for its config: the model's, or an object that knows the layer's sizes too."""
        return shared

    def __init__(self, config: Any) -> None:
        # One config object for the model and every attention module, so that they agree on the kernel for good; it has
        # no layers while the family's own constructor looks at it.
        own, overrides = copy.copy(config), config.to_dict().get("per_layer_config")
        own.per_layer_config, own.num_hidden_layers = None, 0
        super().__init__(own)  # type: ignore[call-arg]
        kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
        places = {kind: iter([place for place, other in enumerate(kinds) if other == kind]) for kind in set(kinds)}
        layers = []
        for index, layer_config in enumerate(config.per_layer_config):
            skipped = frozenset(getattr(layer_config, "skip", None) or ())
            layer: Any = self.build_layer(copy.copy(layer_config), index)
            if "attention" in skipped:
                self._skip(layer, self.attention_name, SkippedHeads())
            else:
                attention = getattr(layer, self.attention_name[0])
                attention.config = self.attention_config(own, layer_config)
                attention.layer_idx = next(places[kinds[index]])
            if "mlp" in skipped:
                self._skip(layer, self.mlp_name, SkippedNeurons())
            elif experts := getattr(getattr(layer, self.mlp_name[0]), "experts", None):
                experts.config = own
            layers.append(layer)
        base: Any = self.base_model  # type: ignore[attr-defined]
        if hasattr(base, "rotary_emb"):  # some kinds look for the number of heads, which differs, whenever they run
            base.rotary_emb.config = copy.copy(own)
        setattr(base, self.layers_name, nn.ModuleList(layers))
        own.num_hidden_layers, own.per_layer_config = config.num_hidden_layers, overrides
        self.config = base.config = own
        self.post_init()  # type: ignore[attr-defined]

    @staticmethod
    def _skip(layer: nn.Module, names: tuple[str, ...], stand_in: nn.Module) -> None:
        setattr(layer, names[0], stand_in)
        for norm in names[1:]:
            setattr(layer, norm, nn.Identity())


def student_classes(module: str, stem: str, plain: Any, layers: type[PerLayerModel]) -> tuple[Any, Any, Any, Any]:
    """A family's student classes, registered with transformers: config, base model, causal LM, classification.

    The last is None where the family has none of its own.

    ``module``: The modelling file's ``__name__``, where they must be found under their own names.
    """
    where = {"__module__": module}
    named = {**where, "model_type": f"slm_ray_{plain.model_type}"}
    config: Any = strict(type(f"{stem}Config", (PerLayerConfig, plain), named))
    models = [
        type(f"{stem}{suffix}", (layers, mapping[plain]), {**where, "config_class": config})
        if plain in mapping
        else None
        for (_, suffix), mapping in zip(AUTO_CLASSES.values(), PLAIN_CLASSES, strict=True)
    ]
    register_classes(config, *models)
    return config, models[0], models[1], models[2]
