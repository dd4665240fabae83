"""Models that a teacher's makers published themselves: what a student of that size has to be held against."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

# Hub id to parameters, tied embeddings counted once, by a pattern of the names of the family's models.
_FAMILIES: Mapping[str, Mapping[str, int]] = {
    r"pythia-\d": {
        "EleutherAI/pythia-14m": 14_067_712, "EleutherAI/pythia-31m": 30_494_720, "EleutherAI/pythia-70m": 70_426_624,
        "EleutherAI/pythia-160m": 162_322_944, "EleutherAI/pythia-410m": 405_334_016,
        "EleutherAI/pythia-1b": 1_011_781_632, "EleutherAI/pythia-1.4b": 1_414_647_808,
        "EleutherAI/pythia-2.8b": 2_775_208_960, "EleutherAI/pythia-6.9b": 6_857_302_016,
        "EleutherAI/pythia-12b": 11_846_072_320,
    },
    r"smollm2": {
        "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
        "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    },
    r"gpt2": {
        "openai-community/gpt2": 124_439_808, "openai-community/gpt2-medium": 354_823_168,
        "openai-community/gpt2-large": 774_030_080, "openai-community/gpt2-xl": 1_557_611_200,
    },
    r"qwen2\.5": {
        "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
        "Qwen/Qwen2.5-7B": 7_615_616_512,
    },
    r"qwen3": {
        "Qwen/Qwen3-0.6B-Base": 596_049_920, "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
        "Qwen/Qwen3-4B-Base": 4_022_468_096,
    },
    r"open_?llama": {"openlm-research/open_llama_3b": 3_426_473_600, "openlm-research/open_llama_7b": 6_738_415_616},
}  # fmt: skip
# A published model of another size than this would say little about the student.
_FARTHEST = 2.0


def published_peer(teacher: str, teacher_params: int, params: int) -> str | None:
    """The published model of the teacher's family that is nearest in size to a student.

    Args:
        teacher: The teacher's name: a hub id, or a folder's.
        teacher_params: Its parameters; the peer has fewer.
        params: The student's.

    Returns:
        A hub id, or None where the family published none within a factor of two.
    """
    models = next((found for pattern, found in _FAMILIES.items() if re.search(pattern, teacher, re.IGNORECASE)), {})
    distances = {
        name: abs(math.log(size / params)) for name, size in models.items() if size < 0.98 * teacher_params and params
    }
    nearest = min(distances, key=lambda name: distances[name], default=None)
    return nearest if nearest is not None and distances[nearest] <= math.log(_FARTHEST) else None
