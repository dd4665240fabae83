"""Which of a teacher's tokens are worth their rows for a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.split import CALIBRATION, sample_part
from slm_ray.data.tokenizer_training import text_sample
from slm_ray.data.tokenizer_trimming import IntArray, TrimmableVocabulary, blend, count_tokens, read_vocabulary
from slm_ray.models.precision import measure_precision
from slm_ray.models.teachers import Teacher
from slm_ray.runtime.progress import Console
from slm_ray.search.teacher_text import teacher_text

_CHARACTERS = 20_000_000  # of the train part whose tokens are counted
_PIECE, _MEASURED_CHARACTERS = 4096, 200_000
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
    chosen = precision or measure_precision("auto", "cpu")
    ids, _ = teacher_text(teacher, "cpu", chosen, _SEQUENCES, _LENGTH, console)
    written = np.bincount(ids.reshape(-1), minlength=size)[:size].astype(np.float64)
    return KeepOrder(vocabulary, vocabulary.order(blend(own, written, general)))


def describe_vocabulary(order: KeepOrder, kept: Sequence[int], trimmed: Teacher, corpus: Corpus) -> str:
    """One line on what is kept, and on how much longer that makes the text."""
    texts = sample_part(corpus, CALIBRATION, _PIECE, _MEASURED_CHARACTERS).pieces
    both, size = (order.vocabulary.tokenizer, trimmed.tokenizer()), order.vocabulary.size
    before, after = (count_tokens(one, texts, size).sum() for one in both)
    return (
        f"vocabulary: {len(kept):,} of {size:,} tokens, {after / max(before, 1):.4f} of them in the text for each of "
        "the teacher's; perplexities of this run are per token of the smaller vocabulary, and to that power they "
        "are per teacher token"
    )
