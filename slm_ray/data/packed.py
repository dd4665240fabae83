"""Packed tokens: the arrays, and what must be known of them to use them rightly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.config.digest import canonical_json


@dataclass(frozen=True)
class PackedTokens:
    """Tokens and where they come from.

    Attributes:
        ids: Token ids, int32 [num_sequences, sequence_length], read-only.
        document_starts: Where in the flattened ids each document (or piece of a long one) begins, int64, rising from 0.
        part: ``calibration``, ``train`` or ``held_out``.
        num_bytes: UTF-8 bytes of the text the tokens stand for; what bits per byte divides by.
        separator: The id that ends each document (the tokenizer's EOS), or None if the tokenizer has none.
        corpus: Name of the corpus.
        corpus_digest: Its digest; None for a remote stream.
        tokenizer_digest: See :func:`tokenizer_digest`.
        digest: SHA-256 of shape and ids: what two runs must share to have seen the same tokens.
    """

    ids: npt.NDArray[np.int32] = field(repr=False)
    document_starts: npt.NDArray[np.int64] = field(repr=False)
    part: str
    num_bytes: int
    separator: int | None
    corpus: str
    corpus_digest: str | None
    tokenizer_digest: str
    digest: str

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return int(self.ids.shape[0])

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence."""
        return int(self.ids.shape[1])

    @property
    def num_tokens(self) -> int:
        """Number of tokens, separators included."""
        return int(self.ids.size)

    def describe(self) -> dict[str, Any]:
        """What a run's record keeps of it: JSON-like, without the tokens."""
        return {
            "part": self.part,
            "num_sequences": self.num_sequences,
            "sequence_length": self.sequence_length,
            "num_documents": len(self.document_starts),
            "num_bytes": self.num_bytes,
            "separator": self.separator,
            "corpus": self.corpus,
            "corpus_digest": self.corpus_digest,
            "tokenizer_digest": self.tokenizer_digest,
            "digest": self.digest,
        }


def digest_array(array: npt.NDArray[Any]) -> str:
    """The SHA-256 of an array's shape and its little-endian bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256(canonical_json(list(array.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
