"""OLMo 2 with per-layer sizes."""

from transformers import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = Olmo2DecoderLayer
    attention_name = ("self_attn", "post_attention_layernorm")
    mlp_name = ("mlp", "post_feedforward_layernorm")


SlmRayOlmo2Config, SlmRayOlmo2Model, SlmRayOlmo2ForCausalLM, SlmRayOlmo2ForSequenceClassification = student_classes(
    __name__, "SlmRayOlmo2", Olmo2Config, _Layers
)
