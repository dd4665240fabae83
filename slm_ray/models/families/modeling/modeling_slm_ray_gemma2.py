"""Gemma 2 with per-layer sizes."""

from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Gemma2DecoderLayer
    attention_name = ("self_attn", "input_layernorm", "post_attention_layernorm")
    mlp_name = ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm")


SlmRayGemma2Config, SlmRayGemma2Model, SlmRayGemma2ForCausalLM, SlmRayGemma2ForSequenceClassification = student_classes(
    __name__, "SlmRayGemma2", Gemma2Config, _Layers
)
