"""Loss with a window that slides over each document, so that few tokens are predicted from little context.

The window moves by a stride; each token is counted once, in the first window that predicts it. It is what transformers'
documentation calls the strided perplexity of fixed-length models. Every document begins behind the tokenizer's BOS (or
EOS) where it has one, as lm-eval's rolling log-likelihoods do, so that its first token is predicted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.shards import digest_array
from slm_ray.evaluate.ticker import Ticker

Losses = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
_BATCH = 32


def prefix_id(tokenizer: Any) -> int | None:
    """The token that documents begin behind: BOS, else EOS, else none."""
    found: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return found


def tokenise(texts: Sequence[str], tokenizer: Any) -> Iterable[list[int]]:
    """The ids of every text, without special tokens."""
    for first in range(0, len(texts), _BATCH):
        yield from tokenizer(
            list(texts[first : first + _BATCH]), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]


class DocumentTokens:
    """Documents in a model's own tokens.

    Attributes:
        tokens: Per document its ids, the one in front of it included.
        num_bytes: ``[documents]`` UTF-8 bytes of each.
        prefixed: Every document begins behind a token that is not of its text.
        digest: Of the ids: two models that share it read the same tokens.
        text_digest: Of the texts: two models that share it read the same documents, in whatever tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, corpus: str) -> None:
        """Tokenise texts.

        Args:
            texts: The documents.
            tokenizer: The model's.
            corpus: Name of the corpus.

        Raises:
            UserError: There is nothing to predict.
        """
        before = prefix_id(tokenizer)
        front = [] if before is None else [before]
        self.corpus, self.prefixed = corpus, before is not None
        self.tokens = [np.array([*front, *ids], dtype=np.int32) for ids in tokenise(texts, tokenizer)]
        self.num_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        if self.num_tokens <= len(self.tokens):
            raise UserError(f"the corpus '{corpus}' has no token to predict: give more text")
        lengths = np.array([len(ids) for ids in self.tokens], dtype=np.int64)
        self.digest = digest_json([digest_array(np.concatenate(self.tokens)), digest_array(lengths)])
        self.text_digest = digest_json(list(texts))

    @property
    def num_tokens(self) -> int:
        """Of all documents, those put in front included."""
        return sum(map(len, self.tokens))

    @property
    def max_id(self) -> int:
        """The largest token id."""
        return max(int(ids.max()) for ids in self.tokens if len(ids))


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
        ids[row, : window.end - window.start] = documents.tokens[window.document][window.start : window.end]
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
    sums = np.zeros(len(documents.tokens))
    counts = np.zeros(len(documents.tokens), dtype=np.int64)
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
    for number, ids in enumerate(documents.tokens):
        yield from windows(number, len(ids), length, stride)
