"""Ministral with per-layer sizes."""

from transformers import MinistralConfig
from transformers.models.ministral.modeling_ministral import MinistralDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = MinistralDecoderLayer


SlmRayMinistralConfig, SlmRayMinistralModel, SlmRayMinistralForCausalLM, SlmRayMinistralForSequenceClassification = (
    student_classes(__name__, "SlmRayMinistral", MinistralConfig, _Layers)
)
