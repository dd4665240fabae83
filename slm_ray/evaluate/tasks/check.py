"""Whether local documents fit a task, before any model is loaded: some are put through its templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks.catalogue import quiet
from slm_ray.evaluate.tasks.local_rows import LocalSplit
from slm_ray.evaluate.tasks.planned import PlannedTask, unfit

_LOOKED_AT = 24  # documents, spread over all of them; lm-eval compiles its templates anew for each
_SHORT = 60


def template_fields(template: Any, fields: frozenset[str]) -> set[str]:
    """The fields that a jinja template uses; a template that is the name of a field stands for that field.

    Args:
        template: Anything; only text is looked into.
        fields: The fields that there are.
    """
    from jinja2 import meta
    from lm_eval.utils import env

    if not isinstance(template, str):
        return set()
    return {template} if template in fields else meta.find_undeclared_variables(env.parse(template))


def check_rows(
    config: Mapping[str, Any], name: str, splits: Sequence[LocalSplit], features: Iterable[str] = ()
) -> None:  # fmt: skip
    """Make sure that every row has the fields which the task's templates name.

    Args:
        config: The task's config.
        name: Its name.
        splits: Its local documents.
        features: The fields of its documents once it has processed them; none where it takes them as they are.

    Raises:
        UserError: A row lacks one.
    """
    for split in splits:
        rows = split.rows()
        given = frozenset(field for row in rows for field in row)
        made = frozenset(features) - given  # the task makes these itself, from others
        templates = [config.get(key) for key in ("doc_to_text", "doc_to_target", "doc_to_choice")]
        needed = set().union(*(template_fields(template, given | made) for template in templates))
        for number, row in enumerate(rows, 1):
            for field in sorted(needed - made):
                if field in row and (row[field] is not None or rows[0].get(field) is None):
                    continue
                has = "nothing in it" if field in row else f"no such field, only {', '.join(row)}"
                wants = f"task '{name}' needs the field '{field}'"
                raise UserError(f"--task-data: {wants}, and row {number} of {split.shown} has {has}")


def check_local(task: Any, planned: PlannedTask, name: str, splits: Sequence[LocalSplit]) -> None:
    """Put documents and examples through a task.

    Args:
        task: lm-eval's task.
        planned: What it is part of.
        name: Its name.
        splits: Its local documents, those evaluated on first.

    Raises:
        UserError: Something in a document is of the wrong kind, or there are too few examples.
    """
    try:
        with quiet():
            documents = task.eval_docs
            number = len(documents) if planned.limit is None else min(planned.limit, len(documents))
            for index in sorted({*range(0, number, max(1, number // _LOOKED_AT)), number - 1}):
                if wrong := _wrong(task, documents[index]):
                    where = f"document {index + 1} of task '{name}' in {splits[0].shown}"
                    raise UserError(f"--task-data: {where}: {wrong}")
            _check_examples(task, name, splits[-1])
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever the task's own templates and functions raise
        raise UserError(unfit(planned, name, error)) from error


def _wrong(task: Any, document: Any) -> str | None:
    """What of a document is not as its kind of task needs it."""
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    kind = task.OUTPUT_TYPE
    if kind == "multiple_choice":
        choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
        return _wrong_choice(task, text, target, choices)
    if kind == "loglikelihood" and not (isinstance(target, str) and target):
        return f"its answer is {_shown(target)}, and must be text"
    if kind == "loglikelihood_rolling" and not isinstance(target, str):
        return f"its text is {_shown(target)}, and must be text"
    if kind == "generate_until" and not isinstance(text, str):
        return f"its prompt is {_shown(text)}, and must be text"
    return None


def _wrong_choice(task: Any, text: Any, target: Any, choices: Any) -> str | None:
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        return f"its choices are {_shown(choices)}, and must be a list of texts"
    if callable(task.get_config("process_results")):
        return None  # the task judges answers itself, and what its target is is its own affair
    gold = text if isinstance(text, int) else target
    if not isinstance(text, str | int):
        return f"its question is {_shown(text)}, and must be text"
    for answer in gold if isinstance(gold, list) else [gold]:
        inside = (
            answer in choices if isinstance(answer, str) else isinstance(answer, int) and answer in range(len(choices))
        )
        if not inside:
            offered = ", ".join(repr(choice[:_SHORT]) for choice in choices[:6])
            return (
                f"its answer is {_shown(answer)}, and must be a whole number from 0 to {len(choices) - 1} or one "
                f"of the choices {offered}"
            )
    return None


def _shown(value: Any) -> str:
    kind = {str: "the text ", int: "the number ", float: "the number "}.get(type(value), "")
    return f"{kind}{value!r}"[:_SHORT]


def _check_examples(task: Any, name: str, split: LocalSplit) -> None:
    shots = task.get_config("num_fewshot") or 0
    if not shots:
        return
    examples = list(task.sampler.fewshot_docs()) if hasattr(task, "sampler") else []
    same = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.get_config("test_split")
    if len(examples) < shots + same:
        raise UserError(
            f"--task-data: task '{name}' takes {shots} examples before each question, and {split.shown} has "
            f"{len(examples)} documents: give more of them, or --shots {max(0, len(examples) - same)}"
        )
    for number, example in enumerate(examples[:shots], 1):
        if wrong := _wrong(task, example):
            raise UserError(f"--task-data: example {number} of task '{name}' in {split.shown}: {wrong}")
