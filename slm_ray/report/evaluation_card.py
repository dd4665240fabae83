"""An evaluation's figures put into the model card of a model that slm_ray exported: a section, and Hub metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.records.evaluation import EvaluationResult, ModelFigures
from slm_ray.records.files import explain_os_error, write_text
from slm_ray.records.lineage import CARD_FILE, Lineage
from slm_ray.records.measurement import Interval
from slm_ray.report.content import Table
from slm_ray.report.evaluation import (
    DIFFERENCE_KINDS,
    EvaluationRun,
    differences_table,
    efficiency_table,
    generation_table,
    names_of,
    speed_table,
    text_table,
)
from slm_ray.report.evaluation_tasks import tasks_table
from slm_ray.report.render import render_markdown
from slm_ray.report.text import MISSING, public_name

BEGIN, END = "<!-- slm_ray:evaluation -->", "<!-- /slm_ray:evaluation -->"
_SECTION = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
_LARGEST = 1e12  # a perplexity beyond says nothing, and readers of metadata stumble over it
_ROLES = {"teacher": "{} (teacher)", "random": "random twin", "first-n": "teacher's first layers",
          "published": "{} (published)"}  # fmt: skip
THIS = "this model"


def add_evaluation(folder: Path, result: EvaluationResult, name: str, date: str | None = None) -> None:
    """Put an evaluation into a model's card, in place of an earlier one.

    The card gets a section between two comments, and ``model-index`` metadata as Hugging Face's hub reads it. The file
    changes whole or not at all, and the same evaluation again changes nothing.

    ``date``: The day, as ``2026-11-21``; today by default.
    """
    if not (folder / Lineage.FILE).is_file():
        raise UserError(f"{folder} was not exported by slm_ray ({Lineage.FILE} is missing): its card is left as it is")
    model = next((one for one in result.models if one.name == name), None)
    if model is None or model.error:
        known = ", ".join(one.name for one in result.models if not one.error)
        raise UserError(f"the evaluation has no figures of {name}: it has those of {known or 'nothing'}")
    text = _read(folder / CARD_FILE)
    day = date or datetime.now(UTC).strftime("%Y-%m-%d")
    short = public_name(names_of(result.models)[name])
    changed = redact(
        _with_section(_with_metadata(text, model, short, folder / CARD_FILE), _section(result, model, day))
    )
    if changed != text:
        write_text(folder / CARD_FILE, changed)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no card ({CARD_FILE} is missing): export the model again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    if not text.startswith("---\n"):
        raise UserError(f"{path} does not begin with metadata between lines of ---: export the model again")
    return text


def _with_section(text: str, section: str) -> str:
    """The card with the section where it was, or at the end."""
    block = f"\n\n{BEGIN}\n{section}\n{END}\n"
    if not _SECTION.search(text):
        return text.rstrip("\n") + block
    before, after = _SECTION.split(text, 1)
    return before + block + (f"\n{after}" if after else "")


def _beside(result: EvaluationResult, model: ModelFigures) -> list[ModelFigures]:
    """The models that one was held against: its peers, and whatever a difference to or from it names."""
    compared = {name for d in result.differences if model.name in (d.model, d.to) for name in (d.model, d.to)}
    return [
        one for one in result.models
        if one is not model and not one.error and (one.of == model.name or one.name in compared)
    ]  # fmt: skip


def _run_of(result: EvaluationResult, model: ModelFigures) -> EvaluationRun:
    """The model and those beside it as an evaluation of their own, called by their roles and never by a path."""
    short, beside = names_of(result.models), _beside(result, model)
    labels = {one.name: _ROLES.get(one.role, "{}").format(public_name(short[one.name])) for one in beside}
    values = list(labels.values())
    labels = {name: f"{label} of {public_name(short[name])}" if values.count(label) > 1 else label
              for name, label in labels.items()}  # fmt: skip
    differences = tuple(d for d in result.differences if model.name in (d.model, d.to))
    mine = result.model_copy(update={"models": (model, *beside), "differences": differences})
    return EvaluationRun(Path(), (), {}, {}, None, mine, labels | {model.name: THIS})


def _section(result: EvaluationResult, model: ModelFigures, day: str) -> str:
    """Tables of this model beside what it was held against."""
    run, names = _run_of(result, model), names_of(result.models)
    tables = [
        replace(text_table(run), title="On held-out text"), tasks_table(run),
        *(replace(differences_table(run, kind), title=f"Differences, {kind}") for kind in DIFFERENCE_KINDS),
        generation_table(run), efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode"),
        _sources(model),
    ]  # fmt: skip
    notes = []
    for note in result.notes:
        for name in sorted(names, key=len, reverse=True):
            note = note.replace(name, public_name(names[name]))
        notes.append(note)
    return render_markdown(
        "evaluated.md", day=day, device=result.device, precision=result.precision,
        tables=[_public(table) for table in tables if table], notes=notes,
        command=result.command or "(it was not recorded)",
    ).rstrip()  # fmt: skip


def _public(table: Table) -> Table:
    """A table without this machine's folders."""
    return replace(table, rows=tuple(tuple(_without_folders(cell) for cell in row) for row in table.rows))


def _without_folders(cell: str) -> str:
    return re.sub(r"(?<![\w.])[~.]{0,2}/(?:[^\s/]+/)+", "", cell)


def _sources(model: ModelFigures) -> Table:
    """Digests of all that was read, so that the figures can be made again on the same data."""
    rows = [("this model's files", str(model.digest), MISSING)]
    rows += [
        (f"text {public_name(text.domain)}", f"corpus {text.corpus_digest or MISSING}",
         f"tokens {text.tokens_digest}, {text.tokens:,} of them")
        for text in model.text
    ]  # fmt: skip
    rows += [
        (f"task {task.task}", f"version {task.version}", task.source) for task in model.tasks if task.members is None
    ]
    return Table("What was read", ("what", "which", "of it"), tuple(rows))


def _with_metadata(text: str, model: ModelFigures, name: str, path: Path) -> str:
    """The card with ``model-index`` in its front matter, written by huggingface_hub itself."""
    from huggingface_hub import ModelCard

    try:
        card: Any = ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:  # yaml's and huggingface_hub's own
        raise UserError(f"the metadata at the head of {path} is not YAML: restore it, or export the model") from error
    results = _eval_results(model)
    if not results:
        return text
    card.data.eval_results, card.data.model_name = results, name
    return str(card.content)


def _eval_results(model: ModelFigures) -> list[Any]:
    """The text's and the tasks' figures as the hub's metadata."""
    from huggingface_hub import EvalResult

    found = []

    def rounded(value: float) -> float:
        return float(f"{value:.6g}")

    def add(dataset: Mapping[str, Any], kind: str, title: str, value: float | None, ends: Interval | None) -> None:
        if value is None or abs(value) > _LARGEST:
            return
        between = {"interval_95": [rounded(end) for end in ends]} if ends else None
        found.append(EvalResult(
            task_type="text-generation", metric_type=kind, metric_name=title, metric_value=rounded(value),
            metric_args=between, **dataset,
        ))  # fmt: skip

    for text in model.text:
        dataset = {
            "dataset_type": _slug(text.corpus), "dataset_name": public_name(text.corpus),
            "dataset_config": _slug(text.domain),
            "dataset_args": {"tokens": text.tokens, "tokens_digest": text.tokens_digest},
        }  # fmt: skip
        add(dataset, "perplexity", "perplexity", text.perplexity, text.perplexity_interval)
        add(dataset, "bits_per_byte", "bits per byte", text.bits_per_byte, text.bits_per_byte_interval)
    for task in model.tasks:
        dataset = {
            "dataset_type": _slug(task.task), "dataset_name": task.title,
            "dataset_args": {"num_few_shot": task.shots, "documents": task.documents, "version": task.version},
        }  # fmt: skip
        for name, figure in task.metrics.items():
            add(dataset, name, name, figure.value, figure.interval)
    return found


def _slug(value: str) -> str:
    """A name as the hub's metadata takes it: no path of this machine."""
    return re.sub(r"[^\w.-]+", "-", Path(value).name).strip("-").lower() or "text"
