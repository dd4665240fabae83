"""The options of an evaluation, a component for each thing that is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from slm_ray.config.base import Config, Count, Names, option
from slm_ray.config.errors import UserError, nearest
from slm_ray.data.config import DEFAULT_CORPUS
from slm_ray.records.evaluation import FIRST_N, PUBLISHED, RANDOM, TEACHER
from slm_ray.runtime.storage import STORAGE_HELP

PEERS = (TEACHER, RANDOM, FIRST_N, PUBLISHED)
AUTO, NONE = "auto", "none"
PACKED, SLIDING = "packed", "sliding"
WHOLE = "whole"
SEPARATE = "separate"
MAY_CHANGE = ("batch", "threads", "workers", "device", "address", "storage", "tracker", "cards")
"""Options that change how an evaluation is run and not what it measures."""


class TextConfig(Config):
    """Held-out text."""

    data: Names = option((DEFAULT_CORPUS,), "held-out text: python-docs, python-docs-full, a file or folder, or a hub "
                         "id, or NAME=one of these; once per domain; none for no text")  # fmt: skip
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    domain_field: str | None = option(None, "field whose values are domains of their own")
    part: Literal["held-out", "whole"] = option(
        "held-out", "a sample of the tenth of each text that training never sees, or all of it (with --window sliding)"
    )
    eval_tokens: Count = option(8192, "held-out tokens of each domain, of the first model's", ge=2)
    sequence_length: int = option(512, "tokens per sequence, or window", ge=2)
    documents: Literal["separate", "joined"] = option("separate", "attention stays inside a document, or not")
    window: Literal["packed", "sliding"] = option(
        "packed", "documents packed into sequences, or a window sliding over each of them"
    )
    stride: int | None = option(None, "tokens that a sliding window moves by [default: half its length]", ge=1)

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.part == WHOLE and self.window != SLIDING:
            raise ValueError("--part whole reads whole documents: add --window sliding")
        if self.stride is not None and self.window != SLIDING:
            raise ValueError(f"--stride {self.stride} is for --window sliding: add that, or leave it out")
        if self.stride is not None and self.stride >= self.sequence_length:
            raise ValueError(f"--stride {self.stride} must be less than --sequence-length {self.sequence_length}")
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """The held-out texts; none where none is measured."""
        return () if self.data == (NONE,) else self.data


class TasksConfig(Config):
    """lm-eval's tasks."""

    tasks: Names = option((), "suites (inheritune, pythia, small, swahili) and tasks of lm-eval")
    task_data: str | None = option(
        None, "folder of lm-eval's task files, or of documents as TASK.jsonl: tasks without a hub (docs/tasks.md)"
    )
    shots: int | None = option(None, "examples before each question [default: the suite's, or the task's]", ge=0)
    limit: int | None = option(None, "first documents of each task only", ge=1)

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if (self.limit or self.shots is not None or self.task_data) and not self.tasks:
            flag = "--limit" if self.limit else "--task-data" if self.task_data else "--shots"
            raise ValueError(f"{flag} is for tasks: give --tasks small, or the names of tasks")
        if self.task_data and not Path(self.task_data).expanduser().is_dir():
            raise ValueError(f"--task-data {self.task_data} is not a folder: give the one that holds the tasks' files")
        return self


class GenerationConfig(Config):
    """What models write after prompts."""

    prompts: str | None = option(None, "continue prompts: default (bundled), or a .jsonl or .txt file")
    references: bool = option(False, "BLEU and chrF: every prompt has a reference")
    max_new_tokens: int = option(64, "tokens generated per prompt", ge=1)
    temperature: float = option(0.0, "of sampling; 0 takes the most likely token", ge=0)
    top_p: float = option(1.0, "share of the probability that is sampled from", gt=0, le=1)
    seed: int = option(0, "of sampling, and of a random twin's weights")

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if self.references and not self.prompts:
            raise ValueError("--references needs prompts that have them: give --prompts FILE")
        return self


class ComputeConfig(Config):
    """How it is computed."""

    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "compute type; auto: bf16 where the hardware multiplies it natively"
    )
    batch: int = option(4, "sequences at once", ge=1)
    threads: int | None = option(None, "CPU threads per model [default: all, shared among the workers]", ge=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes a GPU where there is one")
    workers: int | None = option(
        None, "models at once, each loaded once, on Ray [default: one per GPU; without, one]", ge=1
    )
    address: str | None = option(None, "a Ray cluster to join")


class EvaluateConfig(Config):
    """All options of an evaluation."""

    model: Names = option((), "a model folder, hub id, .gguf file or smollm2-135m; give it once per model")
    peers: Names = option((AUTO,), "also measure: auto (all of a model that slm_ray exported), none, or some of "
                          "teacher,random,first-n,published")  # fmt: skip
    teacher: str | None = option(None, "teacher of the peers [default: the one that the models' lineage names]")
    text: TextConfig = TextConfig()
    benchmarks: TasksConfig = TasksConfig()
    generation: GenerationConfig = GenerationConfig()
    efficiency: bool = option(False, "prefill and decode rates, latency, memory")
    compute: ComputeConfig = ComputeConfig()
    storage: str | None = option(None, STORAGE_HELP)
    tracker: Literal["none", "wandb"] = option("none", "where tables and pictures go beside the records")
    cards: bool = option(False, "put the figures into the model cards of the models that slm_ray exported")
    fresh: bool = option(False, "measure again what the cache holds")
    out: str | None = option(None, "folder of the results [default: runs/evaluate-TIME]")

    @model_validator(mode="after")
    def _check_measurements(self) -> Self:
        for name in self.peer_roles:
            if name not in PEERS:
                raise ValueError(f"--peers: '{name}' is none of auto, none, {', '.join(PEERS)}: {nearest(name, PEERS)}")
        if not (self.text.domains or self.benchmarks.tasks or self.generation.prompts or self.efficiency):
            raise ValueError("nothing to measure: give --data, --tasks, --prompts or --efficiency")
        return self

    @property
    def peers_are_auto(self) -> bool:
        """Peers are measured of exported models only, and those that cannot be had are only noted."""
        return self.peers == (AUTO,)

    @property
    def peer_roles(self) -> tuple[str, ...]:
        """The roles of the peers; which of ``auto`` there are is up to the models' lineage."""
        return PEERS if self.peers_are_auto else () if self.peers == (NONE,) else self.peers

    def check_models(self) -> None:
        """Make sure that there is a model; a pipeline adds its own to the config it reads."""
        if not self.model:
            raise UserError("--model is missing: give a model folder, a hub id, a .gguf file or smollm2-135m")
