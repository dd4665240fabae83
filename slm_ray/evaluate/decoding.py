"""Continuations of prompts by transformers' own ``generate``, the same in any batch (up to rounding)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from slm_ray.evaluate.models import LoadedModel
from slm_ray.models.loading import quiet_transformers

_LEAST_DRAW = 2.0**-24  # below it the type has nothing but 0, which would be drawn whatever its logit


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the most likely token."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class GumbelNoise(LogitsProcessor):
    """Makes the largest logit a draw from their softmax (the Gumbel-max trick; Maddison et al. 2014, arXiv 1411.0030).

    Every row has a generator of its own, seeded by its name, so that what is drawn does not depend on the other rows.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
        seeds = [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]
        self._generators = [np.random.Generator(np.random.PCG64(number)) for number in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to scores ``[rows, vocabulary]``, drawn on the processor whatever the device."""
        draws = np.empty(scores.shape, dtype=np.float32)  # numpy draws them in a quarter of torch's time
        for generator, row in zip(self._generators, draws, strict=True):
            generator.standard_exponential(out=row, dtype=np.float32)
        return scores - torch.from_numpy(draws).clamp_(min=_LEAST_DRAW).log_().to(scores)


class _Watch(LogitsProcessor):
    """Leaves logits as they are, and tells how far a batch is."""

    def __init__(self, prompt_tokens: int, on_token: Callable[[int], None]) -> None:
        self._prompt_tokens, self._on_token = prompt_tokens, on_token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._on_token(input_ids.shape[1] - self._prompt_tokens)
        return scores


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's own, with the model's others where it lists that one too.

    A config's number alone is not trusted: models that were made from scratch keep their family's default.
    """
    listed = getattr(model.generation_config, "eos_token_id", None)
    found = [listed] if isinstance(listed, int) else list(listed or ())
    own = getattr(tokenizer, "eos_token_id", None)
    return found if own is None or own in found else [own]


@contextlib.contextmanager
def _as_given(model: Any, *, bf16: bool) -> Iterator[None]:
    """Put a model's own sampling settings (penalties, top-k) aside, and let autocast keep its copies of the weights.

    Autocast keeps them for the whole block only of weights that want gradients.
    """
    kept, model.generation_config = model.generation_config, GenerationConfig()
    frozen = [parameter for parameter in model.parameters() if bf16 and not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with quiet_transformers():
            yield
    finally:
        model.generation_config = kept
        for parameter in frozen:
            parameter.requires_grad_(False)


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left: ids and mask, each ``[rows, longest]``."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@torch.no_grad()
def continue_rows(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], names: Sequence[str], ends: Sequence[int], sampling: Sampling,
    on_token: Callable[[int], None] | None = None,
) -> list[tuple[list[int], bool]]:  # fmt: skip
    """Continue a batch of prompts, given as tokens with names that decide what is drawn for each.

    ``on_token`` is told how many new tokens every prompt has.
    """
    pad = ends[0] if ends else 0
    ids, mask = _padded(rows, pad, loaded.device)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=list(ends) or None,
        use_cache=True,
    )  # fmt: skip
    chosen = LogitsProcessorList()
    if sampling.temperature > 0:
        chosen.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            chosen.append(TopPLogitsWarper(sampling.top_p))
        chosen.append(GumbelNoise(names, sampling.seed))
    if on_token is not None:
        chosen.append(_Watch(ids.shape[1], on_token))
    autocast = torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.bf16)
    with _as_given(loaded.model, bf16=loaded.bf16), autocast:
        output = loaded.model.generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=chosen or None
        )
    return [_until(row, ends) for row in output[:, ids.shape[1] :].tolist()]


def _until(tokens: list[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    at = next((place for place, token in enumerate(tokens) if token in ends), None)
    return (tokens, False) if at is None else (tokens[:at], True)
