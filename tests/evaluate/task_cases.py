"""Tiny models and tiny data of real tasks, and lm-eval's own way to the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from slm_ray.config.base import build_config
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.models import LoadedModel, ModelFolder
from slm_ray.evaluate.task_plan import PlannedTask, plan_tasks
from slm_ray.models.extraction import extract, save_student
from tests.models.tiny import axis_specs, tiny_family, tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

_WORDS = [line.split() for line in sentences(40).splitlines() if line]


def _text(number: int, words: int = 6) -> str:
    return " ".join(_WORDS[number % len(_WORDS)][:words])


def arc(number: int) -> dict[str, Any]:
    """Some rows have three choices, as the original has."""
    choices = [_text(number + one, 2 + one) for one in range(3 + number % 2)]
    labels = list("ABCD"[: len(choices)])
    return {"question": _text(number), "choices": {"text": choices, "label": labels}, "answerKey": labels[number % 3]}


def lambada(number: int) -> dict[str, Any]:
    return {"text": _text(number, 9)}


def winogrande(number: int) -> dict[str, Any]:
    return {"sentence": f"The {_text(number, 2)} _ {_text(number + 1)}", "option1": "one", "option2": "the other",
            "answer": "12"[number % 2]}  # fmt: skip


def gsm8k(number: int) -> dict[str, Any]:
    return {"question": _text(number), "answer": f"It is so. #### {number}"}


def global_mmlu(number: int) -> dict[str, Any]:
    options = {f"option_{letter}": _text(number + ord(letter), 3) for letter in "abcd"}
    category = ("Business", "Humanities", "Medical", "Other", "STEM", "Social Sciences")[(number // 2) % 6]
    return {"question": _text(number), **options, "answer": "ABCD"[number % 4], "subject_category": category}


PAIRS = ("N_of_Poss_D_AP_V_ni_AN", "N_of_Poss_D_AP_ni_AN", "N_of_Poss_D_A_V", "N_of_Poss_D_A_V1_V2", "N_of_Poss_D_V",
         "N_of_Poss_D_ni_A", "N_of_Poss_V", "N_of_Poss_ni_A")  # fmt: skip


def bhs(number: int) -> dict[str, Any]:
    """Minimal pairs; the tasks are of different sizes."""
    name = PAIRS[min(number // 3, 7)]
    return {"context": _text(number, 4), "ending_good": _text(number + 1, 2), "ending_bad": _text(number + 3, 2),
            "pattern": f"swahili-{name}"}  # fmt: skip


def rows(make: Any, count: int) -> list[dict[str, Any]]:
    return [make(number) for number in range(count)]


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


MMLU_PARTS = ("business", "humanities", "medical", "other", "stem", "social_sciences")


def write_data(folder: Path) -> Path:
    """Local data of four tasks and two groups, in the layout of docs/tasks.md."""
    write_lines(folder / "arc_easy.jsonl", rows(arc, 7))
    write_lines(folder / "arc_easy.train.jsonl", rows(arc, 4))
    write_lines(folder / "lambada_openai.jsonl", rows(lambada, 6))
    write_lines(folder / "winogrande.jsonl", rows(winogrande, 5))
    write_lines(folder / "gsm8k.jsonl", rows(gsm8k, 3))
    for part in MMLU_PARTS:  # the tasks choose their rows themselves
        write_lines(folder / f"global_mmlu_sw_{part}.jsonl", rows(global_mmlu, 21))
    for name in PAIRS:
        mine = [row for row in rows(bhs, 27) if row["pattern"] == f"swahili-{name}"]
        write_lines(folder / f"bhs__swahili__{name}.jsonl", mine)
    return folder


def plan_of(
    *names: str, data: Path | None = None, shots: int | None = None, limit: int | None = None
) -> tuple[PlannedTask, ...]:  # fmt: skip
    """The plan of some names."""
    config = build_config(
        TasksConfig, {"tasks": list(names), "task_data": str(data) if data else None, "shots": shots, "limit": limit}
    )
    return plan_tasks(config)[0]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(sentences(200))


def save_tiny(folder: Path, *, axis: str | None = None, positions: int = 320) -> ModelFolder:
    """A random Llama, or a student of it that drops units along an axis."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=positions, eos_token_id=0)
    if axis is None:
        model.save_pretrained(folder)
    else:
        family = tiny_family("llama")
        spec = axis_specs(family.architecture(model.config))[axis]
        save_student(extract(model.state_dict(), model.config, family, spec), folder)
    tokenizer.save_pretrained(folder)
    return ModelFolder(folder.name, folder, "0" * 16)


def load(model: ModelFolder, precision: str = "fp32") -> LoadedModel:
    return LoadedModel(model, precision, torch.device("cpu"))


# lm-eval's files, and the splits that the tests have no data for.
_NO_TRAINING = {"training_split": None}
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "arc_easy": ("arc/arc_easy.yaml", {"validation_split": None}),
    "lambada_openai": ("lambada/lambada_openai.yaml", {}),
    "winogrande": ("winogrande/default.yaml", _NO_TRAINING),
    "gsm8k": ("gsm8k/gsm8k.yaml", {**_NO_TRAINING, "fewshot_split": None}),
    "global_mmlu_sw": ("global_mmlu/default/sw/_global_mmlu_sw.yaml", {}),
    "bhs_swahili": ("bhs/bhs_swahili.yaml", {}),
    **{f"bhs__swahili__{name}": (f"bhs/swahili-{name}.yaml", {}) for name in PAIRS},
    **{
        f"global_mmlu_sw_{name}": (f"global_mmlu/default/sw/global_mmlu_sw_{name}.yaml", {"fewshot_split": None})
        for name in MMLU_PARTS
    },
}  # fmt: skip


def lm_eval_numbers(
    model: ModelFolder, name: str, data: Mapping[str, Mapping[str, Path]], scratch: Path, **options: Any
) -> dict[str, Any]:
    """What lm-eval itself says, on its task files, each included by one that reads JSON files in place of the hub.

    Args:
        model: The model's folder, which is loaded anew.
        name: The task or group.
        data: Task to split to file.
        scratch: Where the task files go.
        options: Of ``simple_evaluate``.
    """
    scratch.mkdir(parents=True)
    for task in {name, *data}:
        file, unread = _FILES[task]
        config: dict[str, Any] = {"include": str(Path(lm_eval.evaluator.__file__).parent / "tasks" / file), **unread}
        if task in data:
            config |= {
                "task": task, "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": {split: str(path) for split, path in data[task].items()}},
            }  # fmt: skip
        (scratch / f"{task}.yaml").write_text(yaml.safe_dump(config))
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model.folder)
    found = lm_eval.evaluator.simple_evaluate(
        model=HFLM(pretrained=network, tokenizer=tokenizer, batch_size=4), tasks=[name], log_samples=False,
        task_manager=TaskManager(include_defaults=False, include_path=str(scratch)), **options,
    )  # fmt: skip
    return dict(found["results"])
