"""The vocabularies that a search chooses among, and texts written with each.

A smaller vocabulary is the teacher's own tokens, those that a text needs least gone first. A text is written with it by
putting a token's pieces where the token was, and what the pieces cost is counted for the token: losses are nats per
token of the *teacher's own* tokenizer, whatever the vocabulary, so that candidates of all vocabularies are compared on
the same text token by token. ``exp`` of their mean is the perplexity per teacher token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.tokenizer_training import text_sample
from slm_ray.data.tokenizer_trimming import IntArray, TrimmableVocabulary, blend, count_tokens, read_vocabulary
from slm_ray.records.subnet import SubnetSpec

_CHARACTERS = 20_000_000  # of the train part whose tokens are counted


@dataclass(frozen=True, eq=False)
class WrittenText:
    """Sequences of a teacher's tokens, written with some of its tokens only."""

    ids: torch.Tensor  # ``[sequences, longest]``, the teacher's ids; behind a sequence's end any of them
    owner: torch.Tensor  # ``[sequences, longest]``: of which of the sequence's tokens each is a piece; ``length``: none
    length: int  # Tokens of a sequence as the teacher writes it

    def to(self, device: torch.device) -> WrittenText:
        """The same text on a device."""
        return WrittenText(self.ids.to(device), self.owner.to(device), self.length)

    def per_token(self, losses: torch.Tensor, first: int) -> torch.Tensor:
        """What each of the teacher's tokens costs.

        ``losses``: ``[batch, longest - 1]`` nats of sequences ``first ..``, one per written token but the first.
        Returns ``[batch, length - 1]``.
        """
        owner = self.owner[first : first + len(losses), 1:]
        return losses.new_zeros(len(losses), self.length + 1).scatter_add(1, owner, losses)[:, 1 : self.length]


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


def keep_order(tokenizer: Any, corpus: Corpus | None, general: float) -> KeepOrder:
    """The order for a corpus's train part, with a share ``general`` of any other text; for any other alone without one.

    How often other text has a token is not counted but follows from its id, for a tokenizer numbers its tokens as it
    learned them, the most frequent first: by Zipf's law, as one over its rank.
    """
    vocabulary = read_vocabulary(tokenizer)
    any_other = 1 / np.arange(1, max(vocabulary.contents) + 2, dtype=np.float64)
    if corpus is None:
        return KeepOrder(vocabulary, vocabulary.order(any_other))
    own = count_tokens(vocabulary.tokenizer, text_sample(corpus, _CHARACTERS), len(any_other))
    return KeepOrder(vocabulary, vocabulary.order(blend(own, any_other, general)))


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The vocabularies of a search: how many tokens each has, and which."""

    sizes: tuple[int | None, ...] = (None,)  # Most likely first; None: the whole vocabulary
    order: KeepOrder | None = None  # None where the whole one is the only one
    _kept: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _pieces: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)

    def kept(self, size: int | None) -> tuple[int, ...] | None:
        """The token ids of one of the vocabularies, ascending; None for the whole one."""
        if size is None or self.order is None:
            return None
        return self._kept.setdefault(size, self.order.first(size))

    def tokenizer(self, spec: SubnetSpec, whole: Any) -> Any:
        """The tokenizer of a sub-network of a teacher, whose own is ``whole``."""
        return whole if spec.vocabulary is None or self.order is None else self.order.vocabulary.trim(spec.vocabulary)

    def written(self, ids: NDArray[np.int32]) -> dict[int, WrittenText]:
        """Sequences ``[sequences, length]`` of the teacher's tokens in every smaller vocabulary, by its size."""
        return {size: self._write(ids, size) for size in self.sizes if size is not None}

    def rewritten(self, ids: NDArray[np.int32], spec: SubnetSpec) -> NDArray[np.int32]:
        """Sequences of the same length in a sub-network's vocabulary: all the text, what fills no sequence left out."""
        if spec.vocabulary is None:
            return ids
        text = self._write(ids, len(spec.vocabulary))
        flat = text.ids[text.owner < text.length].numpy().astype(np.int32)
        return flat[: len(flat) // ids.shape[1] * ids.shape[1]].reshape(-1, ids.shape[1])

    def _write(self, ids: NDArray[np.int32], size: int) -> WrittenText:
        rows, length = [self._expanded(row.tolist(), size) for row in ids], ids.shape[1]
        longest = max(len(row) for row, _ in rows)
        written = torch.zeros(len(rows), longest, dtype=torch.long)
        owner = torch.full_like(written, length)
        for place, (row, owners) in enumerate(rows):
            written[place, : len(row)] = torch.tensor(row)
            written[place, len(row) :] = row[-1]
            owner[place, : len(row)] = torch.tensor(owners)
        return WrittenText(written, owner, length)

    def _expanded(self, row: Sequence[int], size: int) -> tuple[list[int], list[int]]:
        """A row's tokens in a smaller vocabulary, and of which of them each is a piece."""
        found = [self._pieces_of(token, size) for token in row]
        owners = [place for place, pieces in enumerate(found) for _ in pieces]
        return [piece for pieces in found for piece in pieces], owners

    def _pieces_of(self, token: int, size: int) -> tuple[int, ...]:
        known = self._pieces.get(size)
        if known is None:
            known = self._pieces[size] = {one: (one,) for one in self.kept(size) or ()}
        if token not in known:
            assert self.order is not None
            parts = self.order.vocabulary.pieces[token]
            known[token] = tuple(piece for part in parts for piece in self._pieces_of(part, size))
        return known[token]

    @cached_property
    def is_whole(self) -> bool:
        """There is nothing to choose: every candidate has the teacher's vocabulary."""
        return self.sizes == (None,)


def measured_with(texts: Mapping[int, WrittenText], spec: SubnetSpec) -> WrittenText | None:
    """The text in a sub-network's vocabulary; None where that is the teacher's, whose text needs no writing anew."""
    return None if spec.vocabulary is None else texts[len(spec.vocabulary)]


def renumbered(ids: torch.Tensor, spec: SubnetSpec) -> torch.Tensor:
    """A teacher's ids as the ids of a sub-network that keeps them all."""
    return ids if spec.vocabulary is None else torch.searchsorted(torch.tensor(spec.vocabulary, device=ids.device), ids)


def vocabulary_sizes(rows: int, step: int, least: int) -> tuple[int | None, ...]:
    """The whole vocabulary of a teacher with so many rows, and halves of halves of it, in whole steps, down to least.

    The first half comes first: it was best at most sizes of most models (benchmarks/README.md).
    """
    sizes: list[int | None] = []
    size = rows // 2
    while size >= least:
        sizes.append(size // step * step)
        size //= 2
    sizes = [one for one in sizes if one is not None and one >= least]
    return (*sizes[:1], None, *sizes[1:])
