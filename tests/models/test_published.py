"""The table of published models has their real sizes, so that dry runs and peers need no hub."""

import pytest

from slm_ray.models.families import published
from slm_ray.records.cost import num_params

PARAMS = {
    "EleutherAI/pythia-14m": 14_067_712, "EleutherAI/pythia-31m": 30_494_720, "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944, "EleutherAI/pythia-410m": 405_334_016, "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808, "EleutherAI/pythia-2.8b": 2_775_208_960,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384, "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168, "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200, "openlm-research/open_llama_3b": 3_426_473_600,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen3-0.6B": 596_049_920, "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952, "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
}  # fmt: skip


def test_sizes_are_those_of_the_published_models():
    found = {name: num_params(published.published_architecture(name)) for name in published._PUBLISHED}
    assert found == PARAMS


@pytest.mark.parametrize(("name", "count"), [("/models/Pythia-1b-deduped", 8), ("smollm2-135m", 3), ("my-own", 0)])
def test_a_family_is_found_by_a_name_of_it(name, count):
    assert len(published.published_family(name)) == count
