"""A model as a server runs it: it reads prompts into a key-value cache, then generates token after token."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from slm_ray.evaluate.models import LoadedModel
from slm_ray.runtime.hardware import Effort, seconds_of, time_runs

_SEED = 0


@dataclass(frozen=True)
class Read:
    """Where a batch of texts stands.

    Attributes:
        cache: The model's key-value cache; None where it keeps none.
        tokens: ``[batch, 1]`` the next tokens, not read yet.
    """

    cache: Any
    tokens: torch.Tensor


def cache_bytes(cache: Any) -> int | None:
    """Bytes of the keys and values in a cache; None where there are none to be found."""
    tensors = [
        tensor
        for layer in getattr(cache, "layers", ())
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) or None


class Serving:
    """A model in the type that it is served in, random prompts, and the two kinds of steps."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Take the model as it is, or a copy of it in bf16: autocast would cast every weight anew for every token.

        Args:
            loaded: The model.
        """
        self.device, self.dtype = loaded.device, torch.bfloat16 if loaded.bf16 else torch.float32
        self.model = copy.deepcopy(loaded.model).to(torch.bfloat16) if loaded.bf16 else loaded.model
        takes = inspect.signature(self.model.forward).parameters
        self.last_logits_only = "logits_to_keep" in takes
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # transformers renamed it
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if self.last_logits_only else {}
        self._vocabulary = int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def weight_bytes(self) -> int:
        """Of its parameters, tied ones counted once."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @torch.no_grad()
    def touch_weights(self) -> None:
        """Read every weight once: those of a mapped file are not in memory before."""
        for parameter in self.model.parameters():
            parameter.sum()

    def prompt(self, batch: int, length: int) -> torch.Tensor:
        """``[batch, length]`` random token ids, the same every time."""
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randint(self._vocabulary, (batch, length), generator=generator).to(self.device)

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> Read:
        """Read prompts: all their keys and values, and the next token.

        Args:
            ids: ``[batch, length]``.
        """
        return self._forward(ids, None)

    @torch.no_grad()
    def step(self, at: Read) -> Read:
        """Read the last tokens, and give the next: the likeliest."""
        return self._forward(at.tokens, at.cache)

    def _forward(self, ids: torch.Tensor, cache: Any) -> Read:
        options = self._last_only if cache is None else self._last_only | {self._cache_name: cache}
        output = self.model(ids, use_cache=True, **options)
        return Read(getattr(output, self._cache_name, None), output.logits[:, -1].argmax(-1, keepdim=True))

    def time_reading(self, batch: int, length: int, effort: Effort) -> list[float]:
        """Seconds that reading a batch of prompts takes, run by run."""
        ids = self.prompt(batch, length)
        return time_runs(lambda: self.read(ids), self.device, effort)

    def time_steps(self, batch: int, context: int, most_steps: int, effort: Effort) -> list[float]:
        """Seconds that a step takes (a token for each text of the batch), step by step.

        Args:
            batch: Texts at once.
            context: Tokens of them that are read before the first step.
            most_steps: After that many the texts begin anew, so that the context stays near what it should be.
            effort: How many steps; each reading is followed by those of the warm-up, which are not counted.
        """
        ids = self.prompt(batch, context)
        times: list[float] = []
        while not effort.is_enough(len(times), sum(times)):
            walk = _Walk(self.step, self.read(ids))
            for number in range(most_steps):
                seconds = seconds_of(walk.go, self.device)
                if number >= min(effort.warm_up, most_steps - 1):
                    times.append(seconds)
                if effort.is_enough(len(times), sum(times)):
                    break
        return times


class _Walk:
    """Remembers where a batch stands from step to step."""

    def __init__(self, step: Callable[[Read], Read], at: Read) -> None:
        self._step, self.at = step, at

    def go(self) -> None:
        self.at = self._step(self.at)
