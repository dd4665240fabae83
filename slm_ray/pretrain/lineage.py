"""Where a trained model comes from, kept with it: the student's own lineage, its teacher, its text and its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.redact import redact_value
from slm_ray.config.version import VERSION
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.inputs import PretrainInputs, Student
from slm_ray.pretrain.recorder import EVALS_FILE
from slm_ray.records.files import read_json
from slm_ray.records.jsonl import read_records
from slm_ray.records.lineage import CARD_FILE, LINEAGE_FILE, read_lineage
from slm_ray.report.records import mapping
from slm_ray.report.training_card import training_card
from slm_ray.runtime.runfolder import CONFIG_FILE

MODEL_FILE, STATUS_FILE, ORIGIN = "model.json", "status.json", "origin"
_DISTILLATION = ("distill", "loss", "temperature", "kd_weight", "kd_schedule")
_OPTIMISATION = (
    "optimizer", "learning_rate", "schedule", "warmup", "floor", "weight_decay", "beta1", "beta2", "clip", "batch_size",
    "sequence_length", "documents", "precision", "seed",
)  # fmt: skip
_EVALUATION = ("step", "tokens", "loss", "stderr", "bits_per_byte", "eval_tokens")


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """A teacher as lineages name it."""
    family = teacher.architecture().structure.family
    return {"name": teacher.name, "family": family, "digest": teacher.digest, "licence": teacher.licence}


def origin_of(student: Student, start: str, inputs: PretrainInputs, distill: str) -> dict[str, Any]:
    """What is known of a model before its first step, kept in ``model.json`` until it is exported.

    Args:
        student: What was given.
        start: Whose weights it begins with.
        inputs: What the run reads.
        distill: Whether, and how, the teacher helps.

    Returns:
        ``lineage`` (the student's where its weights are taken, else only whom its sizes were cut from), ``student``,
        ``distilled_from`` and ``data``.
    """
    found = {} if student.scratch else read_lineage(student.source)
    known = describe_teacher(inputs.teacher) if inputs.teacher else None
    teacher = mapping(found.get("teacher")) or known or {}
    if known and teacher.get("digest") == known["digest"]:
        teacher = {**known, **teacher}
    kept = found if start == "student" else {}
    return {
        "lineage": {**kept, **({"teacher": dict(teacher)} if teacher else {})},
        "student": None if student.scratch else _public(student),
        "distilled_from": known if distill != "none" else None,
        "data": describe_data(inputs),
    }


def describe_data(inputs: PretrainInputs) -> dict[str, Any]:
    """What a training reads and is measured on, by its digests."""
    shards, held_out = inputs.shards, inputs.held_out
    return {
        "corpus": shards.corpus, "corpus_digest": shards.corpus_digest, "training_tokens": shards.digest,
        "different_tokens": shards.num_tokens, "held_out_tokens": held_out.digest,
        "tokenizer": shards.tokenizer_digest, "logit_store": inputs.store,
    }  # fmt: skip


def _public(student: Student) -> str:
    """A student's name without this machine's folders."""
    return student.label if Path(student.source).expanduser().exists() else student.source


def trained_lineage(folder: Path, step: int, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The lineage of a model at a step, from the records of its run.

    Args:
        folder: The model's folder within the run.
        step: The checkpoint that is exported.
        config: The options it was trained with; the run's by default.
    """
    run, model = folder.parent, mapping(read_json(folder / MODEL_FILE))
    config = mapping(read_json(run / CONFIG_FILE)) if config is None else config
    status = mapping(read_json(folder / STATUS_FILE)) if (folder / STATUS_FILE).is_file() else {}
    scratch = mapping(model.get("scratch"))
    config = {**config, **scratch}  # a model from nothing has its own batch and rate
    origin, evaluations = mapping(model.get(ORIGIN)), read_records(folder / EVALS_FILE)
    reached = [record for record in evaluations if record["step"] <= step]
    last: Mapping[str, Any] = reached[-1] if reached else {}
    first = reached[0] if reached and reached[0]["step"] == 0 and len(reached) > 1 else None
    training = {
        "name": folder.name, "start": "scratch" if scratch else model.get("start"), "student": origin.get("student"),
        "grown_from": model.get("grown_from"), "command": config.get("command"), "slm_ray": VERSION,
        "params": model.get("params"), "step": step, "tokens": last.get("tokens"), "flops": last.get("flops"),
        "seconds": last.get("seconds"), "search_flops": model.get("search_flops"),
        "distilled_from": origin.get("distilled_from"), "data": origin.get("data"),
        "distillation": {name: config.get(name) for name in _DISTILLATION},
        "optimisation": {name: config.get(name) for name in _OPTIMISATION} | _as_it_ran(status),
        "joules": mapping(mapping(status.get("end")).get("energy")).get("joules"),
        "earlier": _earlier(model, origin, run),
        "before": first and {name: first.get(name) for name in _EVALUATION},
        "after": {name: last.get(name) for name in _EVALUATION} if last else None,
    }  # fmt: skip
    spent = {"search_flops": model["search_flops"]} if model.get("search_flops") is not None else {}
    found: dict[str, Any] = redact_value({**mapping(origin.get("lineage")), **spent, "training": training})
    return found


def _as_it_ran(status: Mapping[str, Any]) -> dict[str, Any]:
    """What options like ``auto`` came to."""
    runs = mapping(mapping(status.get("begin")).get("runs"))
    return {name: runs[name] for name in ("precision", "engine", "zero") if runs.get(name) is not None}


def _whole(training: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens and FLOPs of a training and of all before it."""
    flops, earlier = mapping(training.get("flops")), mapping(training.get("earlier"))
    own = sum(value for value in flops.values() if value is not None)
    return {
        "names": [*(earlier.get("names") or ()), training.get("name")],
        "tokens": (training.get("tokens") or 0) + (earlier.get("tokens") or 0),
        "flops": own + (earlier.get("flops") or 0.0),
    }  # fmt: skip


def _earlier(model: Mapping[str, Any], origin: Mapping[str, Any], run: Path) -> dict[str, Any] | None:
    """What was spent on the weights before this training: on the stages before it, or on the student that was given."""
    before = mapping(mapping(origin.get("lineage")).get("training"))
    if stage := model.get("grown_from"):
        evaluations = read_records(run / stage / EVALS_FILE)
        last: Mapping[str, Any] = evaluations[-1] if evaluations else {}
        stage_model = mapping(read_json(run / stage / MODEL_FILE))
        earlier = _earlier(stage_model, mapping(stage_model.get(ORIGIN)), run)
        before = {"name": stage, "tokens": last.get("tokens"), "flops": last.get("flops"), "earlier": earlier}
    steps = mapping(origin.get("lineage")).get("steps") or ()
    if not before and steps:  # larger cuts that were trained between a search's steps, whose FLOPs are that search's
        tokens = sum(mapping(step).get("tokens") or 0 for step in steps)
        return {"names": [f"step {mapping(step).get('step')} of its search" for step in steps], "tokens": tokens,
                "flops": 0.0}  # fmt: skip
    return _whole(before) if before else None


def description_files(model: Path, folder: Path, step: int, config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Name to text of the files that an exported model gets: its lineage and its card.

    Args:
        model: The exported model's files, wherever they lie now.
        folder: The model's folder within the run.
        step: The checkpoint that is exported.
        config: The options it was trained with; the run's by default.
    """
    found = trained_lineage(folder, step, config)
    remote_code = "auto_map" in mapping(read_json(model / "config.json"))
    card = training_card(found, remote_code=remote_code)
    return {LINEAGE_FILE: json.dumps(found, indent=2, ensure_ascii=False) + "\n", CARD_FILE: card}
