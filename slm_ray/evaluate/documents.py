"""Whole documents as tokens, in a folder of memory-mapped arrays: what a sliding window reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.shards import digest_array
from slm_ray.records.files import read_json, whole_folder, write_json

_FORMAT = 1
_MANIFEST, _IDS, _ENDS, _BYTES = "manifest.json", "ids.npy", "ends.npy", "bytes.npy"
_BATCH = 32


class DocumentTokens:
    """Documents, token by token.

    Attributes:
        digest: Of ids and ends: two models that share it read the same tokens.
        text_digest: Of the texts: two models that share it read the same documents, in whatever tokens.
        num_documents: How many there are.
        num_tokens: Of all documents, those put in front included.
        num_bytes: ``[documents]`` UTF-8 bytes of each.
        prefixed: Every document begins behind a token that is not of its text.
        largest_id: The largest token id.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use :meth:`open`."""
        self.digest: str = manifest["digest"]
        self.text_digest: str = manifest["text_digest"]
        self.prefixed: bool = manifest["prefixed"]
        self.corpus: str = manifest["corpus"]
        self.corpus_digest: str | None = manifest["corpus_digest"]
        self.tokenizer_digest: str = manifest["tokenizer_digest"]
        self._ids = np.load(folder / _IDS, mmap_mode="r", allow_pickle=False)
        self._ends = np.load(folder / _ENDS, allow_pickle=False)
        self.num_bytes: npt.NDArray[np.int64] = np.load(folder / _BYTES, allow_pickle=False)
        self.num_documents = len(self._ends)
        self.num_tokens = len(self._ids)
        self.largest_id: int = manifest["largest_id"]

    @classmethod
    def open(cls, folder: Path) -> DocumentTokens:
        """Open a folder that :func:`write_documents` wrote.

        Raises:
            UserError: It is damaged.
        """
        manifest = read_json(folder / _MANIFEST)
        try:
            found = cls(folder, manifest)
            if digest_array(found._ids) != manifest["ids_digest"]:
                raise ValueError(f"{_IDS} is not what was written")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"{folder} is damaged ({error}): delete it, and it is made again") from error
        return found

    def tokens(self, document: int) -> npt.NDArray[np.int32]:
        """The ids of one document, the one in front of it included."""
        start = self._ends[document - 1] if document else 0
        ids: npt.NDArray[np.int32] = self._ids[start : self._ends[document]]
        return ids


def prefix_id(tokenizer: Any) -> int | None:
    """The token that documents begin behind: BOS, else EOS, else none."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def tokenise(texts: Sequence[str], tokenizer: Any) -> Iterable[list[int]]:
    """The ids of every text, without special tokens."""
    for first in range(0, len(texts), _BATCH):
        yield from tokenizer(
            list(texts[first : first + _BATCH]), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]


def write_documents(
    folder: Path, texts: Sequence[str], tokenizer: Any, *, corpus: str, corpus_digest: str | None, tokenizer_digest: str
) -> None:
    """Tokenise texts and write them as a folder, whole or not at all.

    Args:
        folder: What it is called.
        texts: The documents, none without text.
        tokenizer: A fast tokenizer.
        corpus: Name of the corpus.
        corpus_digest: Its digest; None for a remote stream.
        tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.

    Raises:
        UserError: The disk is full, or there is nothing to predict.
    """
    before = prefix_id(tokenizer)
    ids: list[npt.NDArray[np.int32]] = []
    for found in tokenise(texts, tokenizer):
        ids.append(np.array(found if before is None else [before, *found], dtype=np.int32))
    ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
    if not len(ends) or ends[-1] <= len(ends):
        raise UserError(f"the corpus '{corpus}' has no token to predict: give more text")
    flat = np.concatenate(ids)
    digest_of_ids = digest_array(flat)
    manifest = {
        "format": _FORMAT, "digest": digest_json([digest_of_ids, digest_array(ends)]), "ids_digest": digest_of_ids,
        "text_digest": digest_json(list(texts)), "prefixed": before is not None, "largest_id": int(flat.max()),
        "corpus": corpus, "corpus_digest": corpus_digest, "tokenizer_digest": tokenizer_digest,
    }  # fmt: skip
    with whole_folder(folder) as temporary:
        np.save(temporary / _IDS, flat, allow_pickle=False)
        np.save(temporary / _ENDS, ends, allow_pickle=False)
        sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        np.save(temporary / _BYTES, sizes, allow_pickle=False)
        write_json(temporary / _MANIFEST, manifest)
