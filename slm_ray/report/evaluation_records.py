"""The files of an evaluation, read into types. What is missing or damaged is said, and the rest is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.report.evaluation_names import names_of
from slm_ray.report.records import interval_of, items, mapping, number, read_part
from slm_ray.runtime.runfolder import CONFIG_FILE, ENVIRONMENT_FILE

RESULT_FILE, MODELS_FOLDER, FORMAT = "evaluate.json", "models", 2
MODEL, TEACHER, RANDOM, FIRST_N, PUBLISHED = "model", "teacher", "random", "first-n", "published"
ROLES = {TEACHER: "teacher", RANDOM: "random-init twin", FIRST_N: "first-n layers", PUBLISHED: "published peer"}


@dataclass(frozen=True)
class Score:
    """A figure with its noise.

    Attributes:
        value: The figure.
        stderr: Its standard error.
        low: Lower end of its 95% interval.
        high: Upper end.
        better: ``more`` or ``less``.
    """

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    better: str = "more"


@dataclass(frozen=True)
class TextScore:
    """A model on the held-out text of one domain."""

    domain: str
    loss: Score | None
    perplexity: Score | None
    bits_per_byte: Score | None
    tokens: float | None
    tokens_digest: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class TaskScore:
    """A model on one task or group of tasks.

    Attributes:
        name: The task.
        title: What to call it.
        main: The metric that stands for it.
        chance: What guessing gives in that metric.
        members: The tasks of a group; None for a task.
        metrics: Every metric.
        facts: Shots, limit, version, number of documents, source.
    """

    name: str
    title: str
    main: str
    chance: float | None
    members: tuple[str, ...] | None
    metrics: Mapping[str, Score]
    facts: Mapping[str, Any]

    @property
    def score(self) -> Score | None:
        """Its main metric."""
        return self.metrics.get(self.main)


@dataclass(frozen=True)
class EvaluatedModel:
    """One model: who it is, and everything measured of it.

    Attributes:
        name: How the user or the evaluation called it.
        short: The same without what all names share.
        role: ``model``, or what it is to another one: ``teacher``, ``random``, ``first-n``, ``published``.
        of: The short name of the model that it is a peer of.
        generation: As written; None where it was not measured.
        efficiency: As written; None where it was not measured.
    """

    name: str
    short: str
    role: str
    of: str | None
    params: float | None
    error: str | None
    texts: tuple[TextScore, ...]
    tasks: tuple[TaskScore, ...]
    generation: Mapping[str, Any] | None
    efficiency: Mapping[str, Any] | None
    facts: Mapping[str, Any]

    def text(self, domain: str) -> TextScore | None:
        """Its figures on a domain."""
        return next((score for score in self.texts if score.domain == domain), None)

    def task(self, name: str) -> TaskScore | None:
        """Its figures on a task."""
        return next((score for score in self.tasks if score.name == name), None)


@dataclass(frozen=True)
class DifferenceRow:
    """One model against the first in one quantity, as the evaluation found it."""

    model: str
    to: str
    kind: str
    of: str
    quantity: str
    paired: bool
    score: Score
    verdict: str


@dataclass(frozen=True)
class EvaluationRecords:
    """Everything that an evaluation's folder says.

    Attributes:
        folder: Where it lies; None for a result that was never written.
        finished: There is a result, and not only records of its parts.
        notes: What is missing, damaged or could not be had, one sentence each.
        suites: Suite to its tasks and groups.
        models: The first is the one that the others are compared with.
    """

    folder: Path | None
    finished: bool
    notes: tuple[str, ...]
    command: str | None
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    precision: str
    device: str
    spent: Mapping[str, Any]
    suites: Mapping[str, tuple[str, ...]]
    models: tuple[EvaluatedModel, ...]
    differences: tuple[DifferenceRow, ...]

    @property
    def measured(self) -> tuple[EvaluatedModel, ...]:
        """The models of which anything is known."""
        return tuple(m for m in self.models if m.texts or m.tasks or m.generation or m.efficiency)

    @property
    def main_differences(self) -> tuple[DifferenceRow, ...]:
        """Those of text, of generation, and of the metric that stands for a task."""
        main = {score.name: score.main for model in self.models for score in model.tasks}
        return tuple(d for d in self.differences if d.kind != "task" or d.quantity == main.get(d.of, d.quantity))

    def difference(self, model: EvaluatedModel, kind: str, of: str) -> DifferenceRow | None:
        """The model against the first one, where that was compared."""
        wanted = (model.name, self.models[0].name, kind, of)
        return next((d for d in self.main_differences if (d.model, d.to, d.kind, d.of) == wanted), None)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation, finished or not."""
    if (folder / RESULT_FILE).is_file():
        return True
    config = read_part(folder / CONFIG_FILE, []) or {}
    config = mapping(config.get("options")) or config
    return "model" in config and "eval_tokens" in config and "peers" in config


def _score(entry: Mapping[str, Any], name: str = "value", better: str = "more") -> Score | None:
    value, prefix = number(entry.get(name)), "" if name == "value" else f"{name}_"
    if value is None:
        return None
    low, high = interval_of(entry.get(f"{prefix}interval"))
    return Score(value, number(entry.get(f"{prefix}stderr")), low, high, str(entry.get("better") or better))


def _text(entry: Mapping[str, Any]) -> TextScore:
    digest = entry.get("tokens_digest")
    loss, perplexity, bits = (_score(entry, name, "less") for name in ("loss", "perplexity", "bits_per_byte"))
    tokens, domain = number(entry.get("tokens")), str(entry.get("domain"))
    return TextScore(domain, loss, perplexity, bits, tokens, str(digest) if digest else None, entry)


def _task(entry: Mapping[str, Any]) -> TaskScore:
    metrics = {name: _score(mapping(value)) for name, value in mapping(entry.get("metrics")).items()}
    members, name = entry.get("members"), str(entry.get("task"))
    return TaskScore(
        name, str(entry.get("title") or name), str(entry.get("main")), number(entry.get("chance")),
        tuple(map(str, members)) if isinstance(members, Sequence) and not isinstance(members, str) else None,
        {key: score for key, score in metrics.items() if score}, entry,
    )  # fmt: skip


def _model(entry: Mapping[str, Any], short: Mapping[str, str]) -> EvaluatedModel:
    name, of = str(entry.get("name")), entry.get("of")
    return EvaluatedModel(
        name=name, short=short[name], role=str(entry.get("role") or MODEL),
        of=short.get(str(of), str(of)) if of else None, params=number(entry.get("params")),
        error=str(entry["error"]) if entry.get("error") else None,
        texts=tuple(map(_text, items(entry.get("text")))), tasks=tuple(map(_task, items(entry.get("tasks")))),
        generation=mapping(entry.get("generation")) or None, efficiency=mapping(entry.get("efficiency")) or None,
        facts=entry,
    )  # fmt: skip


def _difference(entry: Mapping[str, Any]) -> DifferenceRow | None:
    value = number(entry.get("difference"))
    if value is None:
        return None
    low, high = number(entry.get("low")), number(entry.get("high"))
    score = Score(value, number(entry.get("stderr")), low, high, str(entry.get("better") or "more"))
    model, to, kind, of, quantity = (str(entry.get(name)) for name in ("model", "to", "kind", "of", "quantity"))
    return DifferenceRow(model, to, kind, of, quantity, bool(entry.get("paired")), score, str(entry.get("verdict")))


def parse_evaluation(
    result: Mapping[str, Any], *, folder: Path | None = None, notes: Sequence[str] = (), finished: bool = True
) -> EvaluationRecords:
    """Put what ``evaluate.json`` says into types; what is of an unexpected form is left out.

    Args:
        result: Its content.
        folder: Where it lies.
        notes: What is missing or damaged.
        finished: It is the whole result.
    """
    entries = items(result.get("models"))
    short = names_of(entries)
    suites = {
        str(name): tuple(map(str, tasks))
        for name, tasks in mapping(result.get("suites")).items()
        if isinstance(tasks, Sequence) and not isinstance(tasks, str)
    }
    said = result.get("notes")
    given = [str(note) for note in said] if isinstance(said, Sequence) and not isinstance(said, str) else []
    failed = [f"{short[str(e.get('name'))]} was not measured whole: {e['error']}" for e in entries if e.get("error")]
    return EvaluationRecords(
        folder=folder, finished=finished, notes=(*notes, *given, *failed),
        command=str(result["command"]) if result.get("command") else None, config=mapping(result.get("config")),
        environment=mapping(result.get("environment")), precision=str(result.get("precision") or ""),
        device=str(result.get("device") or ""), spent=mapping(result.get("spent")), suites=suites,
        models=tuple(_model(entry, short) for entry in entries),
        differences=tuple(found for entry in items(result.get("differences")) if (found := _difference(entry))),
    )  # fmt: skip


def load_evaluation(folder: Path) -> EvaluationRecords:
    """Read an evaluation's folder as far as it goes.

    Args:
        folder: What an evaluation was given as ``--out``.

    Raises:
        UserError: The folder holds no evaluation.
    """
    if not is_evaluation(folder):
        raise UserError(f"{folder} holds no evaluation ({RESULT_FILE} is missing): give the folder that one wrote")
    notes: list[str] = []
    result = read_part(folder / RESULT_FILE, notes)
    stated = None if result is None else result.get("version") or result.get("format") or 1
    if result is not None and stated != FORMAT:
        notes.append(
            f"{folder / RESULT_FILE} is of format {stated}, and this version reads format {FORMAT}: "
            f"evaluate again"
        )
        return parse_evaluation({}, folder=folder, notes=notes, finished=False)
    if result is not None:
        return parse_evaluation(result, folder=folder, notes=notes)
    found = _from_parts(folder, notes)
    parts = sum(len(items(m["text"])) + len(items(m["tasks"])) + bool(m["generation"]) + bool(m["efficiency"])
                for m in found["models"])  # fmt: skip
    notes.append(
        f"This evaluation has not finished ({RESULT_FILE} is missing or damaged): its {parts} parts on record are "
        "shown, without comparisons; the same command again goes on"
    )
    return parse_evaluation(found, folder=folder, notes=notes, finished=False)


def _from_parts(folder: Path, notes: list[str]) -> dict[str, Any]:
    """A result as far as the records of single parts give one."""
    config = read_part(folder / CONFIG_FILE, notes) or {}
    config = mapping(config.get("options")) or config
    models: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / MODELS_FOLDER).glob("*/*.json")):
        record = read_part(path, notes)
        if record is None:
            continue
        name = str(record.get("model") or path.parent.name)
        model = models.setdefault(
            name, {"name": name, "text": [], "tasks": [], "generation": None, "efficiency": None}
        )  # fmt: skip
        model["params"] = model.get("params") or record.get("params")
        kind = path.name.removesuffix(".json").partition("-")[0]
        if kind in ("generation", "efficiency"):
            model[kind] = mapping(record.get("figures")) or record
        elif kind == "text":
            figures = mapping(record.get("figures")) or _sums(record)
            model["text"].append({**figures, "domain": figures.get("domain") or _domain(path)})
        elif kind == "task":
            model["tasks"] += items(record.get("tasks")) or [record]
    return {
        "config": config, "environment": read_part(folder / ENVIRONMENT_FILE, notes) or {},
        "models": list(models.values()),
    }  # fmt: skip


def _domain(path: Path) -> str:
    """The domain that is in the name of a record's file, ``text-DOMAIN-DIGEST.json``."""
    return path.stem.partition("-")[2].rpartition("-")[0]


def _sums(record: Mapping[str, Any]) -> dict[str, Any]:
    """A text's record with its mean loss, which a result would hold."""
    losses, counts = record.get("losses"), record.get("counts")
    if not isinstance(losses, list) or not isinstance(counts, list):
        return dict(record)
    sums, tokens = [number(v) for v in losses], sum(number(v) or 0.0 for v in counts)
    if not tokens or None in sums:
        return dict(record)
    loss = sum(value or 0.0 for value in sums) / tokens
    return {**record, "loss": loss, "perplexity": perplexity_of_loss(loss), "tokens": tokens}
