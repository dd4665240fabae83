"""Loss with a window that slides over each document, so that few tokens are predicted from little context.

The window moves by a stride; each token is counted once, in the first window that predicts it. It is what transformers'
documentation calls the strided perplexity of fixed-length models. Every document begins behind the tokenizer's BOS (or
EOS) where it has one, as lm-eval's rolling log-likelihoods do, so that its first token is predicted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.shards import digest_array
from slm_ray.evaluate.ticker import Ticker
from slm_ray.records.files import read_json, whole_folder, write_json

Losses = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
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


@dataclass(frozen=True)
class Window:
    """Part of a document that is read at once.

    Attributes:
        document: Its number.
        start: First token that is read.
        end: One behind the last token that is read.
        counted: First token whose loss is counted; at least ``start + 1``.
    """

    document: int
    start: int
    end: int
    counted: int


def windows(document: int, num_tokens: int, length: int, stride: int) -> Iterator[Window]:
    """The windows of one document.

    Args:
        document: Its number.
        num_tokens: How many tokens it has, the one in front of it included.
        length: Tokens read at once, at least 2.
        stride: Tokens that the window moves by, from 1 to ``length - 1``.

    Yields:
        Windows that together count every token but the first exactly once.
    """
    start, counted = 0, 1
    while counted < num_tokens:
        end = min(start + length, num_tokens)
        yield Window(document, start, end, counted)
        start, counted = start + stride, end


def _batches(found: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Windows of like lengths together, so that little is padded; long ones first, so that memory is short at once."""
    ordered = sorted(found, key=lambda window: (window.start - window.end, window.document, window.start))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]


def _read(documents: DocumentTokens, batch: Sequence[Window]) -> torch.Tensor:
    """Token ids ``[batch, longest]``; shorter windows are filled up behind their end, which nothing before looks at."""
    longest = max(window.end - window.start for window in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    for row, window in enumerate(batch):
        ids[row, : window.end - window.start] = documents.tokens(window.document)[window.start : window.end]
    return torch.from_numpy(ids)


def sliding_sums(
    losses: Losses, documents: DocumentTokens, *, length: int, stride: int, batch: int, device: torch.device,
    ticker: Ticker,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:  # fmt: skip
    """Sum of losses and number of predicted tokens of every document.

    Args:
        losses: Gives ``[batch * (sequence - 1)]`` losses for ids.
        documents: What is read.
        length: Tokens of the window.
        stride: Tokens it moves by.
        batch: Windows at once.
        device: Where the model is.
        ticker: Told of windows that are done.

    Returns:
        ``[documents]`` sums in nats, and ``[documents]`` counts.
    """
    sums = np.zeros(documents.num_documents)
    counts = np.zeros(documents.num_documents, dtype=np.int64)
    for group in _batches(list(all_windows(documents, length, stride)), batch):
        ids = _read(documents, group).to(device)
        values = losses(ids, None).double().cpu().numpy().reshape(len(group), -1)
        for row, window in zip(values, group, strict=True):
            counted = row[window.counted - 1 - window.start : window.end - 1 - window.start]
            sums[window.document] += counted.sum()
            counts[window.document] += len(counted)
        ticker.advance(len(group))
    return sums, counts


def all_windows(documents: DocumentTokens, length: int, stride: int) -> Iterator[Window]:
    """The windows of all documents, in order."""
    for number in range(documents.num_documents):
        yield from windows(number, len(documents.tokens(number)), length, stride)
