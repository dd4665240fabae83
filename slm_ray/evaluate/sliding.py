"""Loss with a window that slides over each document, so that few tokens are predicted from little context.

The window moves by a stride; each token is counted once, in the first window that predicts it. It is what transformers'
documentation calls the strided perplexity of fixed-length models. Every document begins behind the tokenizer's BOS (or
EOS) where it has one, as lm-eval's rolling log-likelihoods do, so that its first token is predicted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.evaluate.documents import DocumentTokens
from slm_ray.evaluate.ticker import Ticker

Losses = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


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
