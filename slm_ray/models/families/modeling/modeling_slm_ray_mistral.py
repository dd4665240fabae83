"""Mistral with per-layer sizes."""

from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = MistralDecoderLayer


SlmRayMistralConfig, SlmRayMistralModel, SlmRayMistralForCausalLM, SlmRayMistralForSequenceClassification = (
    student_classes(__name__, "SlmRayMistral", MistralConfig, _Layers)
)
