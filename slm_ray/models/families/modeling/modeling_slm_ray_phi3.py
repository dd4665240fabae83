"""Phi-3 with per-layer sizes."""

from __future__ import annotations

from typing import Any

from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _OwnHeads:
    """The model's config with one layer's number of heads, by which Phi-3's attention takes its projection apart."""

    def __init__(self, shared: Any, heads: int) -> None:
        self.shared, self.num_attention_heads = shared, heads

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)  # not there yet: it is being copied
        return getattr(self.shared, name)


class _Layers(PerLayerModel):
    layer_class = Phi3DecoderLayer

    @classmethod
    def attention_config(cls, shared: Any, own: Any) -> Any:
        """The model's config with the layer's number of heads."""
        return _OwnHeads(shared, own.num_attention_heads)


SlmRayPhi3Config, SlmRayPhi3Model, SlmRayPhi3ForCausalLM, SlmRayPhi3ForSequenceClassification = student_classes(
    __name__, "SlmRayPhi3", Phi3Config, _Layers
)
