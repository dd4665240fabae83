"""What a model makes of held-out text: losses by sequence or document, and the figures of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.data.shards import TokenShards, digest_array
from slm_ray.evaluate.held_out import held_out_sums, summarise
from slm_ray.evaluate.intervals import Values, ratio_interval, ratio_stderr
from slm_ray.evaluate.models import LoadedModel, check_ids, embedding_rows
from slm_ray.evaluate.text import tokenise
from slm_ray.evaluate.ticker import Ticker
from slm_ray.records.measurement import TextFigures, TextRecord

Say = Callable[[str], None]


class Window(NamedTuple):
    """Tokens ``start`` to ``end`` of a document, read at once; losses count from token ``counted`` on."""

    document: int
    start: int
    end: int
    counted: int


def windows(document: int, num_tokens: int, length: int, stride: int) -> Iterator[Window]:
    """The windows of one document, which together count every token but the first exactly once."""
    start, counted = 0, 1
    while counted < num_tokens:
        end = min(start + length, num_tokens)
        yield Window(document, start, end, counted)
        start, counted = start + stride, end


def measure_packed(
    loaded: LoadedModel, shards: TokenShards, header: Mapping[str, Any], *, separate: bool, batch: int, say: Say
) -> TextRecord:  # fmt: skip
    """Measure a model on packed sequences; ``header`` has the fields that every record begins with."""
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
    loaded: LoadedModel, texts: Sequence[str], tokenizer: Any, header: Mapping[str, Any], *, length: int, stride: int,
    batch: int, corpus: str, corpus_digest: str | None, say: Say,
) -> TextRecord:  # fmt: skip
    """Measure a model on whole documents, with a window of ``length`` tokens that slides over each by ``stride``.

    A document begins behind the tokenizer's BOS or EOS, if it has one, so that its first token counts too.
    """
    loaded.check_fits(length, separate=False)
    before = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    front = [] if before is None else [before]
    documents = [np.array([*front, *ids], dtype=np.int64) for ids in tokenise(texts, tokenizer)]
    lengths = np.array(list(map(len, documents)), dtype=np.int64)
    if lengths.sum() <= len(documents):
        raise UserError(f"the corpus '{corpus}' has no token to predict: give more text")
    tokens = np.concatenate(documents)
    check_ids(loaded.name, loaded.model, int(tokens.max()))
    # Like lengths together, so that little is padded; long ones first, so that memory is short at once.
    todo = [window for number, size in enumerate(lengths) for window in windows(number, size, length, stride)]
    todo.sort(key=lambda window: (window.start - window.end, window.document, window.start))
    ticker = Ticker(say, corpus, len(todo), "windows")
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents), dtype=np.int64)
    for first in range(0, len(todo), batch):
        group = todo[first : first + batch]
        ids = np.zeros((len(group), group[0].end - group[0].start), dtype=np.int64)  # filled up behind the end
        for row, window in zip(ids, group, strict=True):
            row[: window.end - window.start] = documents[window.document][window.start : window.end]
        values = loaded.losses(torch.from_numpy(ids).to(loaded.device), None).double().cpu().numpy()
        for row, window in zip(values.reshape(len(group), -1), group, strict=True):
            counted = row[window.counted - 1 - window.start : window.end - 1 - window.start]
            sums[window.document] += counted.sum()
            counts[window.document] += len(counted)
        ticker.advance(len(group))
    _check_finite(loaded, float(sums.sum() / counts.sum()))
    sizes = [len(text.encode()) for text in texts]
    # Without a token in front, a document's first token is not predicted; it is taken to cost what the others do.
    predicted = 1.0 if front else len(tokens) / int(counts.sum())
    bits = float(sums.sum()) * predicted / (sum(sizes) * math.log(2))
    digest = digest_json([digest_array(tokens.astype(np.int32)), digest_array(lengths)])
    return text_record(
        header, sums, counts.astype(float), bits, num_bytes=sum(sizes), corpus=corpus, corpus_digest=corpus_digest,
        tokens_digest=digest, sequence_length=length, stride=stride, unit_bytes=sizes,
        text_digest=digest_json(list(texts)),
    )  # fmt: skip


def _check_finite(loaded: LoadedModel, loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss of {loaded.name} is {loss}: its weights are damaged, or need --precision fp32")


def text_record(
    header: Mapping[str, Any], losses: Values, counts: Values, bits: float, *, num_bytes: int,
    unit_bytes: Sequence[int] | None = None, text_digest: str | None = None, stride: int | None = None, **about: Any,
) -> TextRecord:  # fmt: skip
    """The record of one text: figures with their standard errors and intervals, and the losses they are made of.

    ``losses`` and ``counts`` are ``[units]`` nats and predicted tokens of each sequence or document; ``bits`` per byte
    are over the whole text; ``unit_bytes``, ``text_digest`` and ``stride`` are of documents read with a sliding window;
    ``about`` has more fields of :class:`TextFigures`.
    """
    loss = float(losses.sum() / counts.sum())
    stderr, interval = ratio_stderr(losses, counts), ratio_interval(losses, counts)
    perplexity, scale = perplexity_of_loss(loss), bits / loss if loss else 0.0
    bits_stderr = None if stderr is None else stderr * scale
    bits_interval = None if interval is None else (interval[0] * scale, interval[1] * scale)
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
