"""Qwen2 with per-layer sizes."""

from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Qwen2DecoderLayer


SlmRayQwen2Config, SlmRayQwen2Model, SlmRayQwen2ForCausalLM, SlmRayQwen2ForSequenceClassification = student_classes(
    __name__, "SlmRayQwen2", Qwen2Config, _Layers
)
