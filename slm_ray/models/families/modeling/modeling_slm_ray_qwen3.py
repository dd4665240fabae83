"""Qwen3 with per-layer sizes."""

from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Qwen3DecoderLayer


SlmRayQwen3Config, SlmRayQwen3Model, SlmRayQwen3ForCausalLM, SlmRayQwen3ForSequenceClassification = student_classes(
    __name__, "SlmRayQwen3", Qwen3Config, _Layers
)
