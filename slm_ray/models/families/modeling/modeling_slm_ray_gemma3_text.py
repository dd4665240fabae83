"""Gemma 3, text, with per-layer sizes."""

from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Gemma3DecoderLayer
    attention_name = ("self_attn", "input_layernorm", "post_attention_layernorm")
    mlp_name = ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm")


SlmRayGemma3Config, SlmRayGemma3Model, SlmRayGemma3ForCausalLM, SlmRayGemma3ForSequenceClassification = student_classes(
    __name__, "SlmRayGemma3", Gemma3TextConfig, _Layers
)
