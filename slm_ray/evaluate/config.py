"""The options of an evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.options import at_least, option
from slm_ray.data import DEFAULT_CORPUS
from slm_ray.runtime.mirror import STORAGE_HELP

PRECISIONS = ("auto", "fp32", "bf16")
TEACHER, RANDOM, FIRST_N, PUBLISHED = "teacher", "random", "first-n", "published"
PEERS = (TEACHER, RANDOM, FIRST_N, PUBLISHED)
AUTO, NONE = "auto", "none"
PACKED, SLIDING = "packed", "sliding"
HELD_OUT, WHOLE = "held-out", "whole"
PARTS = (HELD_OUT, WHOLE)
SEPARATE = "separate"
# Flags that may be given several times, or once with commas between.
SEVERAL = ("model", "data", "tasks")
# Options that change how an evaluation is run and not what it measures.
MAY_CHANGE = ("batch", "threads", "workers", "device", "address", "storage", "tracker", "cards")


def _share(value: float) -> str | None:
    return None if 0 < value <= 1 else f"must be over 0 and at most 1, got {value:g}"


def several(text: str | None) -> tuple[str, ...]:
    """The values of an option that may be given several times, each once, in the order given."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The options of an evaluation."""

    model: str = option(None, "a model folder, hub id, .gguf file or smollm2-135m; give it once per model", kind=str)
    peers: str = option(AUTO, "also measure: auto (all of a model that slm_ray exported), none, or some of "
                        "teacher,random,first-n,published")  # fmt: skip
    teacher: str = option(None, "teacher of the peers [default: the one that the models' lineage names]", kind=str)
    data: str = option(DEFAULT_CORPUS, "held-out text: python-docs, python-docs-full, a file or folder, or a hub id, "
                       "or NAME=one of these; once per domain; none for no text")  # fmt: skip
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    domain_field: str = option(None, "field whose values are domains of their own", kind=str)
    part: str = option(HELD_OUT, "of each text: a sample of the tenth that training never sees, or the whole of it",
                       choices=PARTS)  # fmt: skip
    eval_tokens: int = option(8192, "held-out tokens of each domain, of the first model's", check=at_least(2))
    sequence_length: int = option(512, "tokens per sequence, or window", check=at_least(2))
    documents: str = option("separate", "attention stays inside a document, or not", choices=(SEPARATE, "joined"))
    window: str = option(PACKED, "documents packed into sequences, or a window sliding over each of them",
                         choices=(PACKED, SLIDING))  # fmt: skip
    stride: int = option(None, "tokens that a sliding window moves by [default: half its length]", check=at_least(1),
                         kind=int)  # fmt: skip
    tasks: str = option(None, "suites (inheritune, pythia, small, swahili) and tasks of lm-eval", kind=str)
    task_data: str = option(None, "folder of local task data: lm-eval without a hub (docs/tasks.md)", kind=str)
    shots: int = option(None, "examples before each question [default: the suite's, or the task's]", check=at_least(0),
                        kind=int)  # fmt: skip
    limit: int = option(None, "first documents of each task only", check=at_least(1), kind=int)
    prompts: str = option(None, "continue prompts: default (bundled), or a .jsonl or .txt file", kind=str)
    references: bool = option(False, "BLEU and chrF: every prompt has a reference")
    max_new_tokens: int = option(64, "tokens generated per prompt", check=at_least(1))
    temperature: float = option(0.0, "of sampling; 0 takes the most likely token", check=at_least(0))
    top_p: float = option(1.0, "share of the probability that is sampled from", check=_share)
    seed: int = option(0, "of sampling")
    efficiency: bool = option(False, "prefill and decode rates, latency, memory")
    precision: str = option("auto", "compute type; auto: bf16 where it is multiplied natively", choices=PRECISIONS)
    batch: int = option(4, "sequences at once", check=at_least(1))
    threads: int = option(None, "CPU threads per model [default: all, shared among the workers]", check=at_least(1),
                          kind=int)  # fmt: skip
    device: str = option("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    workers: int = option(None, "models at once, each loaded once, on Ray [default: one per GPU; without, one]",
                          check=at_least(1), kind=int)  # fmt: skip
    storage: str = option(None, STORAGE_HELP, kind=str)
    address: str = option(None, "a Ray cluster to join", kind=str)
    tracker: str = option("none", "where tables and pictures go beside the records", choices=("none", "jsonl", "wandb"))
    cards: bool = option(False, "put the figures into the model cards of the models that slm_ray exported")
    fresh: bool = option(False, "measure again what the cache holds")
    out: str = option(None, "folder of the results [default: runs/evaluate-TIME]", kind=str)

    def models(self) -> tuple[str, ...]:
        """The models, each once, in the order given.

        Raises:
            UserError: None was given.
        """
        names = several(self.model)
        if not names:
            raise UserError("--model is missing: give a model folder, a hub id, a .gguf file or smollm2-135m")
        return names

    def domains(self) -> tuple[str, ...]:
        """The held-out texts; none where none is measured."""
        return () if self.data == NONE else several(self.data)

    def wanted_peers(self) -> tuple[str, ...]:
        """The peers asked for; what ``auto`` means is up to the models' lineage."""
        return PEERS if self.peers == AUTO else () if self.peers == NONE else several(self.peers)

    def check(self) -> None:
        """Make sure that the options fit together.

        Raises:
            UserError: They do not.
        """
        self.models()
        self.check_measurements()

    def check_measurements(self) -> None:
        """The same without the models, which a pipeline gives later.

        Raises:
            UserError: Two options do not fit together.
        """
        for name in self.wanted_peers():
            if name not in PEERS:
                raise UserError(f"--peers: '{name}' is none of auto, none, {', '.join(PEERS)}: {nearest(name, PEERS)}")
        if not (self.domains() or self.tasks or self.prompts or self.efficiency):
            raise UserError("nothing to measure: give --data, --tasks, --prompts or --efficiency")
        if self.stride is not None and self.window != SLIDING:
            raise UserError(f"--stride {self.stride} is for --window sliding: add that, or leave it out")
        if self.stride is not None and self.stride >= self.sequence_length:
            raise UserError(f"--stride {self.stride} must be less than --sequence-length {self.sequence_length}")
        if self.references and not self.prompts:
            raise UserError("--references needs prompts that have them: give --prompts FILE")
        if (self.limit or self.shots is not None or self.task_data) and not self.tasks:
            flag = "--limit" if self.limit else "--task-data" if self.task_data else "--shots"
            raise UserError(f"{flag} is for tasks: give --tasks small, or the names of tasks")
        if self.task_data and not Path(self.task_data).expanduser().is_dir():
            raise UserError(f"--task-data {self.task_data} is no folder: give the one that holds the tasks' files")

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return dataclasses.asdict(self)
