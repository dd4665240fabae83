"""The files of a run folder, read into types. What is missing or damaged is said, and the rest is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json
from slm_ray.records.jsonl import read_records
from slm_ray.report.model import Model, RunRecords, Shape
from slm_ray.runtime.runfolder import CONFIG_FILE, ENVIRONMENT_FILE, TRIALS_FILE

RESULT_FILE, FIDELITY_FILE = "result.json", "fidelity.json"
_BASELINE_ORIGIN = "baseline:"
_OTHER = ("other_perplexity", "other_stderr")  # on text of another kind


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; anything else is an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; anything else is left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []


def number(value: Any) -> float | None:
    """A finite number as it is; anything else is None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def interval_of(value: Any) -> tuple[float | None, float | None]:
    """The two ends of an interval, or None twice."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return number(value[0]), number(value[1])
    return None, None


def _perplexity(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def _shape(value: Any) -> Shape | None:
    value = mapping(value)
    try:
        heads, kv_heads, neurons = (
            tuple(int(size) for size in value[key])
            for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        )
        sources = tuple(int(layer) for layer in value.get("source_layers") or range(len(heads)))
        hidden_size = int(value["hidden_size"])
    except (KeyError, TypeError, ValueError):
        return None
    same_length = len({len(heads), len(kv_heads), len(neurons), len(sources)}) == 1
    return Shape(hidden_size, sources, heads, kv_heads, neurons) if same_length else None


def _cost(value: Any) -> dict[str, float]:
    numbers = {str(key): number(cost) for key, cost in mapping(value).items()}
    return {key: cost for key, cost in numbers.items() if cost is not None}


def _model(value: Mapping[str, Any], name: str, **more: Any) -> Model:
    return Model(
        name=name,
        shape=_shape(value.get("architecture")),
        cost=_cost(value.get("cost")),
        calibration_perplexity=_perplexity(value.get("calibration_perplexity")),
        calibration_stderr=number(value.get("calibration_stderr")),
        held_out_perplexity=_perplexity(value.get("held_out_perplexity")),
        held_out_stderr=number(value.get("held_out_stderr")),
        **more,
    )


def _candidate(record: Mapping[str, Any]) -> Model:
    measured = mapping(mapping(record.get("measurements")).get("perplexity"))
    details = {key: record.get(key) for key in ("origin", "decided", "digest", "finished_at", "seconds")}
    return Model(
        name=f"trial {record.get('trial')}",
        shape=_shape(record.get("architecture")),
        cost=_cost(record.get("cost")),
        calibration_perplexity=_perplexity(measured.get("value")),
        calibration_stderr=number(measured.get("stderr")),
        trial=record.get("trial"),
        details={**details, "tokens": number(measured.get("tokens")), "measurements": record.get("measurements")},
    )


def _front_member(entry: Mapping[str, Any]) -> Model:
    details = {key: entry.get(key) for key in ("digest", "short_training", "reconstruction", *_OTHER)}
    trial, winner = entry.get("trial"), entry.get("winner")
    return _model(
        entry, f"trial {trial}", trial=trial, winner=winner if number(winner) is not None else None, details=details
    )


def _provisional_front(candidates: Sequence[Model], quantity: str) -> list[Model]:
    """The candidates that no other beats in both size and perplexity, those given up early left out."""
    sized = [
        (size, perplexity, index)
        for index, model in enumerate(candidates)
        if (size := model.cost_of(quantity)) is not None
        and (perplexity := model.perplexity) is not None
        and model.detail("decided") != "dominated"
    ]
    front: list[Model] = []
    best = math.inf
    for _, perplexity, index in sorted(sized):
        if perplexity < best:
            best = perplexity
            front.append(candidates[index])
    return front


def parse_run(
    folder: Path,
    *,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    notes: Sequence[str] = (),
    fidelity: Mapping[str, Any] | None = None,
) -> RunRecords:
    """Put the parts of a run into types; :func:`load_run` does it from the files.

    Args:
        folder: The run folder.
        config: The resolved options.
        environment: What it ran on.
        trials: The trial records.
        result: The result, or None for a run that has not finished.
        notes: What is missing or damaged.
        fidelity: The audit with its single points; None: what the result has of it.
    """
    given = result or {}
    objectives = tuple(str(name) for name in given.get("objectives") or config.get("objectives") or ())
    searched = [t for t in trials if not str(t.get("origin") or "").startswith(_BASELINE_ORIGIN)]
    candidates = tuple(_candidate(trial) for trial in searched if trial.get("status") != "failed")
    quantity = next((name for name in objectives if name in ("params", "flops", "kv_bytes")), "params")
    front = [_front_member(entry) for entry in items(given.get("front"))]
    if result is None:
        front = _provisional_front(candidates, quantity)
    teacher, budget = mapping(given.get("teacher")), mapping(given.get("budget"))
    low, high = number(budget.get("low")), number(budget.get("high"))
    kept = {key: teacher.get(key) for key in ("family", "digest", "licence", *_OTHER)}
    points = [
        [number(p.get(key)) for key in ("evaluations", "seconds", "value")] for p in items(given.get("hypervolume"))
    ]
    winner_of = {member.trial: member.winner for member in front}
    numbered = [(winner_of.get(entry.get("trial")), entry) for entry in items(given.get("winners"))]
    return RunRecords(
        folder=folder,
        finished=result is not None,
        notes=tuple(notes),
        config=config,
        environment=environment,
        command=given.get("command"),
        objectives=objectives or ("perplexity", "params"),
        teacher=_model(teacher, str(teacher.get("name") or "teacher"), details=kept) if teacher else None,
        corpus=mapping(given.get("corpus")),
        budget=(str(budget.get("quantity")), low, high) if low is not None and high is not None else None,
        candidates=candidates,
        num_failed=sum(trial.get("status") == "failed" for trial in searched),
        front=tuple(sorted(front, key=lambda model: model.cost_of(quantity) or 0)),
        baselines=tuple(_model(entry, str(entry.get("name"))) for entry in items(given.get("baselines"))),
        winners={winner: str(entry.get("folder")) for winner, entry in numbered if winner is not None},
        hypervolume=tuple((p[0] or 0.0, p[1] or 0.0, p[2]) for p in points if p[2] is not None),
        spent=mapping(given.get("spent")),
        fidelity=mapping(given.get("fidelity")) if fidelity is None else fidelity,
        steps=tuple(items(given.get("steps"))),
    )


def read_lines(path: Path, notes: list[str]) -> list[Mapping[str, Any]]:
    """The records of a JSON-lines file that can be read; damage goes into the notes."""
    try:
        records: list[Any] = list(read_records(path))
    except UserError as error:
        notes.append(f"{error}; the lines that can be read are shown")
        records = []
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return [record for record in records if isinstance(record, Mapping)]


def read_part(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    """A JSON file's mapping, or None where it is missing or damaged; damage goes into the notes."""
    if not path.exists():
        return None
    try:
        value = read_json(path)
    except UserError as error:
        notes.append(str(error))
        return None
    if not isinstance(value, Mapping):
        notes.append(f"{path} holds no mapping: restore it")
        return None
    if path.name == CONFIG_FILE and "stage" in value and isinstance(value.get("options"), Mapping):  # a RunRecord
        return {**value["options"], "command": value.get("command"), "stage": value["stage"]}
    return value


def load_run(folder: Path) -> RunRecords:
    """Read a run folder as far as it goes.

    Args:
        folder: What a search was given as ``--out``.

    Raises:
        UserError: The folder holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is {'a file' if folder.exists() else 'missing'}: give the folder of a run")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no run ({CONFIG_FILE} is missing): give the folder that a search wrote")
    notes: list[str] = []
    config = read_part(folder / CONFIG_FILE, notes)
    environment = read_part(folder / ENVIRONMENT_FILE, notes)
    trials = read_lines(folder / TRIALS_FILE, notes)
    result = read_part(folder / RESULT_FILE, notes)
    fidelity = read_part(folder / FIDELITY_FILE, notes)
    if result is None:
        notes.append(
            f"This run has not finished ({RESULT_FILE} is missing or damaged): its {len(trials)} trials are shown, "
            f"with a provisional front on the calibration text; continue it with --resume"
        )
    return parse_run(
        folder, config=config or {}, environment=environment or {}, trials=trials, result=result, notes=notes,
        fidelity=fidelity,
    )  # fmt: skip
