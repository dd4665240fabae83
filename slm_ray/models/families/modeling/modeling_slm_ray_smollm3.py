"""SmolLM3 with per-layer sizes."""

from transformers import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import SmolLM3DecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layer_class = SmolLM3DecoderLayer


SlmRaySmolLM3Config, SlmRaySmolLM3Model, SlmRaySmolLM3ForCausalLM, SlmRaySmolLM3ForSequenceClassification = (
    student_classes(__name__, "SlmRaySmolLM3", SmolLM3Config, _Layers)
)
