"""Mixtral with per-layer sizes."""

from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = MixtralDecoderLayer


SlmRayMixtralConfig, SlmRayMixtralModel, SlmRayMixtralForCausalLM, SlmRayMixtralForSequenceClassification = (
    student_classes(__name__, "SlmRayMixtral", MixtralConfig, _Layers)
)
