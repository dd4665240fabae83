"""Llama with per-layer sizes."""

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = LlamaDecoderLayer


SlmRayLlamaConfig, SlmRayLlamaModel, SlmRayLlamaForCausalLM, SlmRayLlamaForSequenceClassification = student_classes(
    __name__, "SlmRayLlama", LlamaConfig, _Layers
)
