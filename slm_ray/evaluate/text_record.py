"""What a model makes of held-out text, as a record: sums per sequence or per document."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from slm_ray.config.errors import UserError
from slm_ray.data import TokenShards
from slm_ray.evaluate.documents import DocumentTokens
from slm_ray.evaluate.held_out import held_out_sums, summarise
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.sliding import all_windows, sliding_sums
from slm_ray.evaluate.ticker import Ticker

Say = Callable[[str], None]


def measure_packed(loaded: LoadedModel, shards: TokenShards, *, separate: bool, batch: int, say: Say) -> dict[str, Any]:
    """Sums of losses over packed sequences.

    Args:
        loaded: The model.
        shards: What it reads.
        separate: Attention stays inside documents.
        batch: Sequences at once.
        say: Takes lines of progress.

    Returns:
        The record: ``losses`` and ``counts`` per sequence, and what they are of.

    Raises:
        UserError: The model cannot read these tokens, or its loss is no number.
    """
    loaded.check_fits(shards.sequence_length, largest_id(shards), separate=separate)
    ticker = Ticker(say, shards.corpus, shards.num_sequences, "sequences")

    def losses(ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        values = loaded.losses(ids, positions)
        ticker.advance(len(ids))
        return values

    sums = held_out_sums(losses, shards, separate=separate, batch=batch, device=loaded.device)
    found = summarise(sums, shards)
    _check_finite(loaded, found.loss)
    return {
        "losses": sums[0].tolist(), "counts": sums[1].tolist(), "unit": "sequence",
        "bits_per_byte": found.bits_per_byte, "bytes": shards.num_bytes, "unit_bytes": None,
        "tokens_digest": shards.digest, "text_digest": None, "sequence_length": shards.sequence_length,
    } | _origin(shards)  # fmt: skip


def measure_sliding(
    loaded: LoadedModel, documents: DocumentTokens, *, length: int, stride: int, batch: int, say: Say
) -> dict[str, Any]:
    """Sums of losses over documents, with a window that slides over each.

    Args:
        loaded: The model.
        documents: What it reads.
        length: Tokens of the window.
        stride: Tokens it moves by.
        batch: Windows at once.
        say: Takes lines of progress.

    Returns:
        The record: ``losses``, ``counts`` and ``unit_bytes`` per document, and what they are of.

    Raises:
        UserError: The model cannot read these tokens, or its loss is no number.
    """
    loaded.check_fits(length, documents.largest_id, separate=False)
    number = sum(1 for _ in all_windows(documents, length, stride))
    sums, counts = sliding_sums(
        loaded.losses, documents, length=length, stride=stride, batch=batch, device=loaded.device,
        ticker=Ticker(say, documents.corpus, number, "windows"),
    )  # fmt: skip
    loss = float(sums.sum() / counts.sum())
    _check_finite(loaded, loss)
    total = int(documents.num_bytes.sum())
    # Without a token in front, a document's first token is not predicted; it is taken to cost what the others do.
    predicted = 1.0 if documents.prefixed else documents.num_tokens / int(counts.sum())
    return {
        "losses": sums.tolist(), "counts": counts.tolist(), "unit": "document",
        "unit_bytes": documents.num_bytes.tolist(),
        "bits_per_byte": float(sums.sum()) * predicted / (total * math.log(2)), "bytes": total,
        "tokens_digest": documents.digest, "text_digest": documents.text_digest,
    } | _origin(documents)  # fmt: skip


def _origin(tokens: TokenShards | DocumentTokens) -> dict[str, Any]:
    return {
        "corpus": tokens.corpus, "corpus_digest": tokens.corpus_digest, "tokenizer": tokens.tokenizer_digest,
    }  # fmt: skip


def _check_finite(loaded: LoadedModel, loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss of {loaded.name} is {loss}: its weights are damaged, or need --precision fp32")


def largest_id(shards: TokenShards) -> int:
    """The largest token id in some shards."""
    return max(int(shards.rows(np.arange(i, i + 1)).max()) for i in range(shards.num_sequences))
