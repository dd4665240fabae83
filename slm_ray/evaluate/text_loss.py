"""What a model makes of held-out text: losses by sequence or document, and the figures of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.data import TokenShards
from slm_ray.evaluate.held_out import held_out_sums, summarise
from slm_ray.evaluate.intervals import Interval, Values, ratio_interval, ratio_stderr
from slm_ray.evaluate.models import LoadedModel, check_ids, embedding_rows
from slm_ray.evaluate.sliding import DocumentTokens, all_windows, sliding_sums
from slm_ray.evaluate.ticker import Ticker
from slm_ray.records.evaluation import TextFigures, TextRecord

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TextLosses:
    """Sums of losses over one text.

    Attributes:
        losses: ``[units]`` nats.
        counts: ``[units]`` predicted tokens.
        unit: ``sequence`` or ``document``.
        unit_bytes: ``[documents]`` UTF-8 bytes; None for sequences.
        bits_per_byte: Over the whole text.
        bytes: Of the whole text.
        tokens_digest: Of the tokens that were read.
        text_digest: Of the documents; None for sequences.
        sequence_length: Of the sequences, or of the window.
    """

    losses: Values
    counts: Values
    unit: Literal["sequence", "document"]
    unit_bytes: Sequence[int] | None
    bits_per_byte: float
    bytes: int
    tokens_digest: str
    text_digest: str | None
    corpus: str
    corpus_digest: str | None
    sequence_length: int


def measure_packed(loaded: LoadedModel, shards: TokenShards, *, separate: bool, batch: int, say: Say) -> TextLosses:
    """Sums of losses over packed sequences.

    Args:
        loaded: The model.
        shards: The sequences.
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
    return TextLosses(
        losses=sums[0].numpy(), counts=sums[1].numpy(), unit="sequence", unit_bytes=None,
        bits_per_byte=found.bits_per_byte, bytes=shards.num_bytes, tokens_digest=shards.digest, text_digest=None,
        corpus=shards.corpus, corpus_digest=shards.corpus_digest, sequence_length=shards.sequence_length,
    )  # fmt: skip


def measure_sliding(
    loaded: LoadedModel, documents: DocumentTokens, *, length: int, stride: int, batch: int,
    corpus_digest: str | None, say: Say,
) -> TextLosses:  # fmt: skip
    """Sums of losses over documents, with a window that slides over each.

    Args:
        loaded: The model.
        documents: The documents.
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
    return TextLosses(
        losses=sums, counts=counts.astype(float), unit="document", unit_bytes=documents.num_bytes.tolist(),
        bits_per_byte=float(sums.sum()) * predicted / (total * math.log(2)), bytes=total,
        tokens_digest=documents.digest, text_digest=documents.text_digest, corpus=documents.corpus,
        corpus_digest=corpus_digest, sequence_length=length,
    )  # fmt: skip


def _check_finite(loaded: LoadedModel, loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss of {loaded.name} is {loss}: its weights are damaged, or need --precision fp32")


def text_figures(
    found: TextLosses, domain: str, *, stride: int | None = None, documents: Literal["separate", "joined"] | None = None
) -> TextFigures:
    """The figures of one domain with their standard errors and intervals.

    Args:
        found: The losses.
        domain: What to call the text.
        stride: Of a sliding window; None for packed sequences.
        documents: ``separate`` or ``joined`` attention of packed sequences.
    """
    losses, counts = found.losses, found.counts
    loss = float(losses.sum() / counts.sum())
    stderr, interval = ratio_stderr(losses, counts), ratio_interval(losses, counts)
    perplexity, bits = perplexity_of_loss(loss), found.bits_per_byte
    scale = bits / loss if loss else 0.0
    bits_stderr, bits_interval = (None if stderr is None else stderr * scale), _scaled(interval, scale)
    if found.unit_bytes is not None:  # whole documents: a long one with few bytes per token counts as it is
        sizes = np.array(found.unit_bytes, float)
        spent = losses * (bits * found.bytes / losses.sum())
        bits_stderr, bits_interval = ratio_stderr(spent, sizes), ratio_interval(spent, sizes)
    low, high = (None, None) if interval is None else map(perplexity_of_loss, interval)
    return TextFigures(
        domain=domain, corpus=found.corpus, corpus_digest=found.corpus_digest,
        loss=loss, loss_stderr=stderr, loss_interval=interval, perplexity=perplexity,
        perplexity_stderr=None if perplexity is None or stderr is None else perplexity * stderr,
        perplexity_interval=None if low is None or high is None else (low, high),
        bits_per_byte=bits, bits_per_byte_stderr=bits_stderr, bits_per_byte_interval=bits_interval,
        tokens=int(counts.sum()), bytes=found.bytes, units=len(counts), unit=found.unit,
        tokens_digest=found.tokens_digest, window="packed" if stride is None else "sliding", stride=stride,
        sequence_length=found.sequence_length, documents=documents,
    )  # fmt: skip


def text_record(header: Mapping[str, Any], found: TextLosses, figures: TextFigures) -> TextRecord:
    """The record of one text.

    Args:
        header: The fields that every record begins with.
        found: The losses.
        figures: The figures of them.
    """
    return TextRecord(
        **header, figures=figures, losses=tuple(found.losses.tolist()), counts=tuple(found.counts.astype(int).tolist()),
        unit_bytes=None if found.unit_bytes is None else tuple(found.unit_bytes), text_digest=found.text_digest,
    )  # fmt: skip


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)
