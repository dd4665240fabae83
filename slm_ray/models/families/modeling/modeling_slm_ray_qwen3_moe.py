"""Qwen3's mixtures with per-layer sizes."""

from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Qwen3MoeDecoderLayer


SlmRayQwen3MoeConfig, SlmRayQwen3MoeModel, SlmRayQwen3MoeForCausalLM, SlmRayQwen3MoeForSequenceClassification = (
    student_classes(__name__, "SlmRayQwen3Moe", Qwen3MoeConfig, _Layers)
)
