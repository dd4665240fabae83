"""An evaluation's figures put into the model card of a model that slm_ray exported: a section, and Hub metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.records.files import explain_os_error, write_text
from slm_ray.records.lineage import CARD_FILE, LINEAGE_FILE
from slm_ray.report.evaluation_card_tables import card_tables, rows_beside
from slm_ray.report.evaluation_names import names_of
from slm_ray.report.markdown import code_block, markdown_table, plain
from slm_ray.report.public_name import public_name
from slm_ray.report.records import interval_of, items, mapping, number

BEGIN, END = "<!-- slm_ray:evaluation -->", "<!-- /slm_ray:evaluation -->"
_SECTION = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
_LARGEST = 1e12  # a perplexity beyond says nothing, and readers of metadata stumble over it


def add_evaluation(folder: Path, result: Mapping[str, Any], name: str, date: str | None = None) -> None:
    """Put an evaluation into a model's card, in place of an earlier one.

    The card gets a section between two comments, and ``model-index`` metadata as Hugging Face's hub reads it. The file
    changes whole or not at all, and the same evaluation again changes nothing.

    Args:
        folder: The model's folder, as slm_ray exported it.
        result: What ``evaluate.json`` says.
        name: Which of its models this one is.
        date: The day, as ``2026-11-21``; today by default.

    Raises:
        UserError: The folder is none of ours or has no card, the model was not measured, or the card cannot be written.
    """
    if not (folder / LINEAGE_FILE).is_file():
        raise UserError(f"{folder} was not exported by slm_ray ({LINEAGE_FILE} is missing): its card is left as it is")
    models = items(result.get("models"))
    row = next((model for model in models if model.get("name") == name), None)
    if row is None or row.get("error"):
        known = ", ".join(str(model.get("name")) for model in models if not model.get("error"))
        raise UserError(f"the evaluation has no figures of {name}: it has those of {known or 'nothing'}")
    text = _read(folder / CARD_FILE)
    day = date or datetime.now(UTC).strftime("%Y-%m-%d")
    short = public_name(names_of(models)[name])
    changed = redact(_with_section(_with_metadata(text, row, short, folder / CARD_FILE), _section(result, row, day)))
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
    if text.count(BEGIN) > 1 or text.count(BEGIN) != text.count(END):
        raise UserError(f"{path} has its comments {BEGIN} and {END} not once each: remove that section")
    return text


def _with_section(text: str, section: str) -> str:
    """The card with the section where it was, or at the end."""
    block = f"\n\n{BEGIN}\n{section}\n{END}\n"
    if BEGIN not in text:
        return text.rstrip("\n") + block
    before, after = _SECTION.split(text)
    return before + block + (f"\n{after}" if after else "")


def _section(result: Mapping[str, Any], row: Mapping[str, Any], day: str) -> str:
    """Tables of this model beside what it was held against."""
    beside = rows_beside(result, row)
    notes = [_without_paths(str(note), result) for note in result.get("notes") or []]
    how = f"{plain(str(result.get('device')))}, {plain(str(result.get('precision')))}"
    lead = (
        f"Measured by slm_ray on {day} (UTC), {how}. "
        "Intervals are at 95%; a difference whose interval holds 0 is within the noise."
    )
    parts = ["## Evaluation", lead]
    for table in card_tables(result, row, beside):
        if table.rows:
            parts += [f"### {table.title}", markdown_table(table)]
    parts += [f"- {plain(note)}" for note in notes]
    parts += ["The command:", code_block(str(result.get("command") or "(it was not recorded)"), "sh")]
    return "\n\n".join(parts)


def _without_paths(note: str, result: Mapping[str, Any]) -> str:
    """A note with the short names of the models that it names."""
    for name, short in sorted(names_of(items(result.get("models"))).items(), key=lambda pair: -len(pair[0])):
        note = note.replace(name, public_name(short))
    return note


def _with_metadata(text: str, row: Mapping[str, Any], name: str, path: Path) -> str:
    """The card with ``model-index`` in its front matter, written by huggingface_hub itself."""
    from huggingface_hub import ModelCard

    try:
        card: Any = ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:  # yaml's and huggingface_hub's own
        raise UserError(f"the metadata at the head of {path} is not YAML: restore it, or export the model") from error
    results, data = _eval_results(row), card.data
    if not results:
        return text
    data.eval_results, data.model_name = results, name
    return str(card.content)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _eval_results(row: Mapping[str, Any]) -> list[Any]:
    """The text's and the tasks' figures as the hub's metadata."""
    from huggingface_hub import EvalResult

    found = []

    def add(dataset: Mapping[str, Any], kind: str, title: str, value: Any, bounds: Any) -> None:
        figure, (low, high) = number(value), interval_of(bounds)
        if figure is None or abs(figure) > _LARGEST:
            return
        between = {} if low is None or high is None else {"interval_95": [_rounded(low), _rounded(high)]}
        found.append(EvalResult(
            task_type="text-generation", metric_type=kind, metric_name=title, metric_value=_rounded(figure),
            metric_args=between or None, **dataset,
        ))  # fmt: skip

    for text in items(row.get("text")):
        dataset = {
            "dataset_type": _slug(text.get("corpus")), "dataset_name": public_name(text.get("corpus")),
            "dataset_config": _slug(text.get("domain")),
            "dataset_args": {"tokens": text.get("tokens"), "tokens_digest": text.get("tokens_digest")},
        }  # fmt: skip
        add(dataset, "perplexity", "perplexity", text.get("perplexity"), text.get("perplexity_interval"))
        add(dataset, "bits_per_byte", "bits per byte", text.get("bits_per_byte"), text.get("bits_per_byte_interval"))
    for task in items(row.get("tasks")):
        dataset = {
            "dataset_type": _slug(task.get("task")), "dataset_name": str(task.get("title") or task.get("task")),
            "dataset_args": {"num_few_shot": task.get("shots"), "documents": task.get("documents"),
                             "version": str(task.get("version"))},
        }  # fmt: skip
        for name, metric in mapping(task.get("metrics")).items():
            add(dataset, str(name), str(name), mapping(metric).get("value"), mapping(metric).get("interval"))
    return found


def _slug(value: Any) -> str:
    """A name as the hub's metadata takes it: no path of this machine."""
    return re.sub(r"[^\w.-]+", "-", Path(str(value)).name).strip("-").lower() or "text"
