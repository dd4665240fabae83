"""A loaded model as lm-eval sees it: its own Hugging Face wrapper, which also reports progress and cut requests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.tasks import quiet
from slm_ray.evaluate.ticker import Ticker

Say = Callable[[str], None]


class _Counter(CacheHook):
    """lm-eval's hook for its cache of responses, which is told of every finished request."""

    def __init__(self, ticker: Ticker, inner: CacheHook) -> None:
        self.dbdict = None
        self.ticker, self.inner = ticker, inner

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one, and pass it on."""
        self.inner.add_partial(attr, req, res)
        self.ticker.advance(1)


class TaskModel(HFLM):
    """One model, loaded once, for one task.

    Attributes:
        cut: Requests that were longer than the model reads; lm-eval cuts their beginning.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Any, task: str, *, batch: int, say: Say) -> None:
        """Wrap a model that is in memory.

        With bf16, matrices are multiplied in it, and likelihoods are added up in fp32: in bf16 a sum over an answer
        would have three digits.

        Args:
            loaded: The model.
            tokenizer: Its tokenizer; lm-eval works on a copy, for it may add a padding token.
            task: The name of the task.
            batch: Sequences at once.
            say: Takes lines of progress.
        """
        bf16 = {"mixed_precision_dtype": "bfloat16", "softmax_dtype": "float32"} if loaded.bf16 else {}
        with quiet():
            super().__init__(
                pretrained=loaded.model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch, **bf16
            )
        self.task, self.say, self.cut = task, say, 0

    def _count(self, total: int) -> None:
        inner = self.cache_hook.inner if isinstance(self.cache_hook, _Counter) else self.cache_hook
        self.set_cache_hook(_Counter(Ticker(self.say, self.task, total, "requests"), inner))

    def _note_cut(self, request: Any, room: int) -> None:
        """Count a request that does not fit; a text of fewer bytes than there is room always fits."""
        text = "".join(part for part in request.args if isinstance(part, str))
        if len(text.encode()) > room:
            self.cut += len(self.tok_encode(text)) > room

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Likelihoods of answers; see lm-eval's ``LM.loglikelihood``."""
        for request in requests:
            self._note_cut(request, self.max_length + 1)
            answer = request.args[1]
            if len(answer.encode()) > self.max_length:
                tokens = len(self.tok_encode(answer, add_special_tokens=False))
                if tokens > self.max_length:
                    raise UserError(
                        f"task '{self.task}' has an answer of {tokens} tokens, and the model reads {self.max_length} "
                        "at once: leave the task out for this model"
                    )
        self._count(len(requests))
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Likelihoods of whole texts; see lm-eval's ``LM.loglikelihood_rolling``."""
        self._count(len(requests))
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Generated answers; see lm-eval's ``LM.generate_until``."""
        for request in requests:
            most = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if most >= self.max_length:
                raise UserError(
                    f"task '{self.task}' generates up to {most} tokens, and the model has {self.max_length} positions "
                    "for them and the prompt: leave the task out for this model"
                )
            self._note_cut(request, self.max_length - most)
        self._count(len(requests))
        return super().generate_until(requests, disable_tqdm=True)
