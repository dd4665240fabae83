"""One planned task measured on one model by lm-eval's own evaluator and Hugging Face wrapper."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from lm_eval import evaluate
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import set_torch_seed

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.task_figures import group_figures, task_figures
from slm_ray.evaluate.task_plan import PlannedTask, allows_unsafe_code, explained
from slm_ray.evaluate.tasks import quiet
from slm_ray.evaluate.ticker import Ticker
from slm_ray.records.files import cache_folder
from slm_ray.records.measurement import TaskRecord

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
    """One model for one task; ``cut`` counts requests that were longer than it reads, whose beginning lm-eval cuts."""

    def __init__(self, loaded: LoadedModel, tokenizer: Any, task: str, *, batch: int, say: Say) -> None:
        # In bf16 a sum over an answer would have three digits: likelihoods are added up in fp32.
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
        """See lm-eval's ``LM.loglikelihood``."""
        for request in requests:
            self._note_cut(request, self.max_length + 1)
        self._count(len(requests))
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """See lm-eval's ``LM.loglikelihood_rolling``."""
        self._count(len(requests))
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """See lm-eval's ``LM.generate_until``."""
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


def run_task(
    loaded: LoadedModel, tokenizer: Any, planned: PlannedTask, header: Mapping[str, Any], *, batch: int, say: Say
) -> TaskRecord:
    """Measure a model on a task, or on all tasks of a group; the numbers are those of lm-eval's command line.

    It is lm-eval's ``evaluate`` with what ``simple_evaluate`` does around it, but for calling pip and git to describe
    the machine, which takes seconds each time. Responses are kept in lm-eval's own cache until all are there, so that
    an interrupted measurement goes on where it was.
    """
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)
    tasks = planned.load()
    model = TaskModel(loaded, tokenizer, planned.name, batch=batch, say=_aloud(say))
    responses = cache_folder() / "responses" / f"{header['key']}.db"
    with explained(planned, "could not be measured", documents_only=True), quiet():
        caching = CachingLM(model, str(responses))
        try:
            results = evaluate(
                lm=caching, task_dict=tasks, limit=planned.limit, log_samples=True,
                confirm_run_unsafe_code=allows_unsafe_code(),
            )  # fmt: skip
        finally:
            caching.dbdict.close()
    if model.cut:
        reads = f"the model's {model.max_length} tokens"
        say(f"{planned.name}: {model.cut} requests are longer than {reads}, and lm-eval cut their beginning")
    figures, values = {}, {}
    for name, task in tasks["tasks"].items():
        figures[name], values[name] = task_figures(planned, name, task, results)
    groups = [group_figures(group, results, figures) for group in tasks.get("groups", {}).values()]
    rows = (*figures.values(), *(group for group in groups if group is not None))
    for file in responses.parent.glob(f"{responses.name}*"):  # SQLite puts files beside it
        file.unlink(missing_ok=True)
    return TaskRecord(**header, tasks=rows, values=values, cut_requests=model.cut)


def _aloud(say: Say) -> Say:
    """``say`` with the streams that are there now, for lm-eval's own output is kept away while it runs."""
    out, err = sys.stdout, sys.stderr

    def speak(text: str) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            say(text)

    return speak
