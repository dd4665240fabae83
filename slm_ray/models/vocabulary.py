"""Embedding and output-head rows for new tokens; nothing else of the model changes."""

from __future__ import annotations

from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.models.scratch import pad_vocabulary


def extended_rows(old_rows: int, num_tokens: int) -> int:
    """Rows for a vocabulary of ``num_tokens``: a multiple of 64, and never fewer than there were."""
    return max(old_rows, pad_vocabulary(num_tokens))


@torch.no_grad()
def extend_vocabulary(model: Any, first_new: int, parts: list[list[int]]) -> Any:
    """Give a model rows for new tokens, each the mean of the rows of the old tokens that its text had been split into.

    That is Fast Vocabulary Transfer (Gee et al., arXiv 2402.09977); for tokens merged from old ones it needs no second
    language and no auxiliary embeddings, as WECHSEL (arXiv 2112.06598) and FOCUS (arXiv 2305.14481) do. An output head
    of its own gets its rows in the same way; a tied one stays tied. Rows behind the last token, up to a multiple of 64,
    are the mean of all old rows, if they are new.
    """
    tables = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings())
    old = [table.weight.detach().clone() for table in tables]
    if len(old[0]) < first_new:
        raise UserError(
            f"the model has {len(old[0]):,} rows for its tokenizer's {first_new:,} tokens: they are not of one model"
        )
    rows = extended_rows(len(old[0]), first_new + len(parts))
    model.resize_token_embeddings(rows, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()][: len(tables)]
    for table, before in zip(tables, old, strict=True):
        weight = table.weight
        weight[: len(before)] = before
        weight[len(before) :] = before[:first_new].float().mean(0).to(weight.dtype)
        for number, ids in enumerate(parts):
            weight[first_new + number] = before[ids].float().mean(0).to(weight.dtype)
        bias = getattr(table, "bias", None)
        if bias is not None and len(bias) == rows:
            bias[first_new:] = bias[:first_new].float().mean().to(bias.dtype)
    model.tie_weights()
    return model
