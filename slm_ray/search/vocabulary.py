"""Which of a teacher's tokens are worth their rows for a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.tokenizer_training import text_sample
from slm_ray.data.tokenizer_trimming import (
    IntArray,
    TrimmableVocabulary,
    blend,
    count_tokens,
    read_vocabulary,
    renumber_settings,
)
from slm_ray.models.precision import measure_precision
from slm_ray.models.teachers import Teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.progress import Console
from slm_ray.search.teacher_text import teacher_text

_CHARACTERS = 20_000_000  # of the train part whose tokens are counted
_SEQUENCES, _LENGTH = 20, 512  # of the teacher's own text: what a search with default options has, too


@dataclass(frozen=True, eq=False)
class KeepOrder:
    """A vocabulary's tokens, those to keep first in front."""

    vocabulary: TrimmableVocabulary
    order: IntArray  # ``[tokens]``; with each prefix that has the fixed tokens every text can be written

    def first(self, count: int) -> tuple[int, ...]:
        """The ids to keep where there is room for so many, ascending."""
        least, most = len(self.vocabulary.fixed), self.vocabulary.size
        if not least <= count <= most:
            raise UserError(
                f"a vocabulary of {count:,} tokens is not possible: its bytes, digits, special and chat tokens are "
                f"{least:,}, and the whole is {most:,}; choose a number between"
            )
        return tuple(sorted(self.order[:count].tolist()))


def keep_order(
    teacher: Teacher, corpus: Corpus, general: float, console: Console, precision: str | None = None
) -> KeepOrder:
    """The order for a corpus's train part, with a share of the teacher's own text."""
    vocabulary = read_vocabulary(teacher.tokenizer())
    size = max(vocabulary.contents) + 1
    own = count_tokens(vocabulary.tokenizer, text_sample(corpus, _CHARACTERS), size)
    if not general:
        return KeepOrder(vocabulary, vocabulary.order(own))
    ids, _ = teacher_text(teacher, precision or measure_precision("auto", "cpu"), _SEQUENCES, _LENGTH, console)
    written = np.bincount(ids.reshape(-1), minlength=size)[:size].astype(np.float64)
    return KeepOrder(vocabulary, vocabulary.order(blend(own, written, general)))


def with_vocabulary(teacher: Architecture, kept: Sequence[int]) -> SubnetSpec:
    """The sub-network that keeps all but some rows of the vocabulary."""
    return dataclasses.replace(full_subnet(teacher), vocabulary=tuple(kept))


def renumbered_generation(settings: Any | None, kept: Sequence[int]) -> Any | None:
    """A generation config with the ids of a trimmed vocabulary."""
    return None if settings is None else type(settings).from_dict(renumber_settings(settings.to_dict(), kept))
