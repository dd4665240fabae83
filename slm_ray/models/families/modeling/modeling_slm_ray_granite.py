"""Granite with per-layer sizes."""

from transformers import GraniteConfig
from transformers.models.granite.modeling_granite import GraniteDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = GraniteDecoderLayer


SlmRayGraniteConfig, SlmRayGraniteModel, SlmRayGraniteForCausalLM, _ = student_classes(
    __name__, "SlmRayGranite", GraniteConfig, _Layers
)
