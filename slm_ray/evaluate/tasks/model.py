"""A loaded model as lm-eval sees it: its own Hugging Face wrapper, which also says how far it is and what it cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.tasks.harness import quiet
from slm_ray.runtime.progress import Console, Progress

Say = Callable[[str], None]


class _Said(Console):
    """A console whose lines go to a function."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.is_terminal, self.say = False, say

    def line(self, text: str) -> None:
        """Say one line."""
        self.say(text)


class _Counter:
    """lm-eval's hook for caches, which is told of every finished request."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one."""
        self.progress.update(self.progress.done + 1)


class TaskModel(HFLM):
    """One model, loaded once, for task after task."""

    def __init__(self, loaded: LoadedModel, tokenizer: Any) -> None:
        """Wrap a model that is in memory.

        With bf16, matrices are multiplied in it, and likelihoods are added up in fp32: in bf16 a sum over an answer
        would have three digits.

        Args:
            loaded: The model.
            tokenizer: Its tokenizer; lm-eval works on a copy, for it may add a padding token.
        """
        bf16 = {"mixed_precision_dtype": "bfloat16", "softmax_dtype": "float32"} if loaded.bf16 else {}
        with quiet():
            super().__init__(pretrained=loaded.model, tokenizer=copy.deepcopy(tokenizer), backend="causal", **bf16)
        self._say: Say = lambda text: None
        self._task = ""
        self._windows = Progress(_Said(self._say), "", 0)
        self.cut = 0

    def prepare(self, task: str, *, batch: int, say: Say) -> None:
        """Begin a task.

        Args:
            task: What to call it.
            batch: Sequences at once.
            say: Takes lines of progress, at least every ten seconds.
        """
        self._task, self._say, self.cut = task, say, 0
        self.batch_size_per_gpu = batch

    def _count(self, total: int, unit: str) -> Progress:
        progress = Progress(_Said(self._say), self._task, total, unit)
        self.set_cache_hook(_Counter(progress))
        return progress

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Likelihoods of answers; see lm-eval's ``LM.loglikelihood``."""
        self._count(len(requests), "requests")
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Likelihoods of whole texts; see lm-eval's ``LM.loglikelihood_rolling``."""
        windows = sum(-(-len(self.tok_encode(request.args[0])) // self.max_length) for request in requests)
        self._windows = self._count(windows, "windows")
        self.set_cache_hook(CacheHook(None))  # windows are counted, not whole texts
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for _, context, answer in requests:
            if len(answer) > self.max_length:
                raise UserError(
                    f"task '{self._task}' has an answer of {len(answer)} tokens, and the model reads {self.max_length} "
                    "at once: leave the task out for this model"
                )
            self.cut += len(context) + len(answer) > self.max_length + 1
        found = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        if override_bs is not None:  # only whole texts are measured window by window
            self._windows.update(self._windows.done + len(requests))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Generated answers; see lm-eval's ``LM.generate_until``."""
        for request in requests:
            most = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if most >= self.max_length:
                raise UserError(
                    f"task '{self._task}' generates up to {most} tokens, and the model has {self.max_length} positions "
                    "for them and the prompt: leave the task out for this model"
                )
            self.cut += len(self.tok_encode(request.args[0])) > self.max_length - most
        self._count(len(requests), "requests")
        return super().generate_until(requests, disable_tqdm=True)


_WRAPPED: WeakKeyDictionary[LoadedModel, TaskModel] = WeakKeyDictionary()


def task_model(loaded: LoadedModel, tokenizer: Any) -> TaskModel:
    """The wrapper of a loaded model: one for as long as the model is in memory.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer.
    """
    if loaded not in _WRAPPED:
        _WRAPPED[loaded] = TaskModel(loaded, tokenizer)
    return _WRAPPED[loaded]
