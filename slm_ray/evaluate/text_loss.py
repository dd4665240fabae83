"""What a model makes of held-out text: losses by sequence or document, and the figures of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.data.shards import TokenShards, digest_array
from slm_ray.evaluate.held_out import held_out_sums, summarise
from slm_ray.evaluate.intervals import Interval, Values, ratio_interval, ratio_stderr
from slm_ray.evaluate.models import LoadedModel, check_ids, embedding_rows
from slm_ray.evaluate.ticker import Ticker
from slm_ray.records.measurement import TextFigures, TextRecord

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



Say = Callable[[str], None]


def measure_packed(
    loaded: LoadedModel, shards: TokenShards, header: Mapping[str, Any], *, separate: bool, batch: int, say: Say
) -> TextRecord:  # fmt: skip
    """Measure a model on packed sequences.

    Args:
        loaded: The model.
        shards: The sequences.
        header: The fields that every record begins with; its name is the domain's.
        separate: Attention stays inside documents.
        batch: Sequences at once.
        say: Takes lines of progress.

    Raises:
        UserError: The model cannot read these tokens, or its loss is not finite.
    """
    loaded.check_fits(shards.sequence_length, separate=separate)
    shards.check_ids(embedding_rows(loaded.model), loaded.name)
    ticker = Ticker(say, shards.corpus, shards.num_sequences, "sequences")

    def losses(ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        values = loaded.losses(ids, positions)
        ticker.advance(len(ids))
        return values

    sums = held_out_sums(losses, shards, separate=separate, batch=batch, device=loaded.device)
    found = summarise(sums, shards)
    _check_finite(loaded, found.loss)
    return text_record(
        header, sums[0].numpy(), sums[1].numpy(), found.bits_per_byte, num_bytes=shards.num_bytes, corpus=shards.corpus,
        corpus_digest=shards.corpus_digest, tokens_digest=shards.digest, sequence_length=shards.sequence_length,
        documents="separate" if separate else "joined",
    )  # fmt: skip


def measure_sliding(
    loaded: LoadedModel, documents: DocumentTokens, header: Mapping[str, Any], *, length: int, stride: int, batch: int,
    corpus_digest: str | None, say: Say,
) -> TextRecord:  # fmt: skip
    """Measure a model on documents, with a window that slides over each.

    Args:
        loaded: The model.
        documents: The documents.
        header: The fields that every record begins with; its name is the domain's.
        length: Tokens of the window.
        stride: Tokens it moves by.
        batch: Windows at once.
        corpus_digest: Of the corpus, for the record.
        say: Takes lines of progress.

    Raises:
        UserError: The model cannot read these tokens, or its loss is not finite.
    """
    loaded.check_fits(length, separate=False)
    check_ids(loaded.name, loaded.model, documents.max_id)
    number = sum(1 for _ in all_windows(documents, length, stride))
    sums, counts = sliding_sums(
        loaded.losses, documents, length=length, stride=stride, batch=batch, device=loaded.device,
        ticker=Ticker(say, documents.corpus, number, "windows"),
    )  # fmt: skip
    _check_finite(loaded, float(sums.sum() / counts.sum()))
    total = int(documents.num_bytes.sum())
    # Without a token in front, a document's first token is not predicted; it is taken to cost what the others do.
    predicted = 1.0 if documents.prefixed else documents.num_tokens / int(counts.sum())
    bits = float(sums.sum()) * predicted / (total * math.log(2))
    return text_record(
        header, sums, counts.astype(float), bits, num_bytes=total, corpus=documents.corpus, corpus_digest=corpus_digest,
        tokens_digest=documents.digest, sequence_length=length, stride=stride, unit_bytes=documents.num_bytes.tolist(),
        text_digest=documents.text_digest,
    )  # fmt: skip


def _check_finite(loaded: LoadedModel, loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss of {loaded.name} is {loss}: its weights are damaged, or need --precision fp32")


def text_record(
    header: Mapping[str, Any], losses: Values, counts: Values, bits: float, *, num_bytes: int,
    unit_bytes: Sequence[int] | None = None, text_digest: str | None = None, stride: int | None = None, **about: Any,
) -> TextRecord:  # fmt: skip
    """The record of one text: figures with their standard errors and intervals, and the losses they are made of.

    Args:
        header: The fields that every record begins with.
        losses: ``[units]`` nats of each sequence or document.
        counts: ``[units]`` predicted tokens of each.
        bits: Bits per byte over the whole text.
        num_bytes: Of the whole text.
        unit_bytes: ``[documents]`` bytes; None for sequences.
        text_digest: Of the documents; None for sequences.
        stride: Of a sliding window; None for packed sequences.
        about: More fields of :class:`TextFigures`: corpus, digests, sequence length, documents.
    """
    loss = float(losses.sum() / counts.sum())
    stderr, interval = ratio_stderr(losses, counts), ratio_interval(losses, counts)
    perplexity, scale = perplexity_of_loss(loss), bits / loss if loss else 0.0
    bits_stderr, bits_interval = (None if stderr is None else stderr * scale), _scaled(interval, scale)
    if unit_bytes is not None:  # whole documents: a long one with few bytes per token counts as it is
        sizes, spent = np.array(unit_bytes, float), losses * (bits * num_bytes / losses.sum())
        bits_stderr, bits_interval = ratio_stderr(spent, sizes), ratio_interval(spent, sizes)
    low, high = (None, None) if interval is None else map(perplexity_of_loss, interval)
    figures = TextFigures(
        domain=header["name"], loss=loss, loss_stderr=stderr, loss_interval=interval, perplexity=perplexity,
        perplexity_stderr=None if perplexity is None or stderr is None else perplexity * stderr,
        perplexity_interval=None if low is None or high is None else (low, high),
        bits_per_byte=bits, bits_per_byte_stderr=bits_stderr, bits_per_byte_interval=bits_interval,
        tokens=int(counts.sum()), bytes=num_bytes, units=len(counts),
        unit="sequence" if unit_bytes is None else "document", window="packed" if stride is None else "sliding",
        stride=stride, **{"documents": None, **about},
    )  # fmt: skip
    return TextRecord(
        **header, figures=figures, losses=tuple(losses.tolist()), counts=tuple(counts.astype(int).tolist()),
        unit_bytes=None if unit_bytes is None else tuple(unit_bytes), text_digest=text_digest,
    )  # fmt: skip


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)
