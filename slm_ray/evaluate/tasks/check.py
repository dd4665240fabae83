"""Whether local documents fit a task, before any model is loaded: some are put through its templates."""

from __future__ import annotations

from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks.build import GENERATE, PlannedTask, build_task, explained
from slm_ray.evaluate.tasks.fields import template_fields
from slm_ray.evaluate.tasks.harness import quiet

_LOOKED_AT = 24  # documents, spread over all of them; lm-eval compiles its templates anew for each
_SHORT = 60


def check_local(planned: PlannedTask) -> None:
    """Make sure that a task can read its local documents.

    Args:
        planned: A task with local data.

    Raises:
        UserError: A field is missing or of the wrong kind, or there are too few examples; says what is expected.
    """
    task = build_task(planned)
    check_fields(planned, task)
    with explained(planned, "could not be read"), quiet():
        documents = task.eval_docs
        number = len(documents) if planned.limit is None else min(planned.limit, len(documents))
        for index in sorted({*range(0, number, max(1, number // _LOOKED_AT)), number - 1}):
            wrong = _wrong(task, documents[index])
            if wrong:
                where = f"document {index + 1} of task '{planned.name}' in {planned.data[0].shown}"
                raise UserError(f"--task-data: {where}: {wrong}")
        _check_examples(planned, task)


def check_fields(planned: PlannedTask, task: Any) -> None:
    """Make sure that every row has the fields which the task's templates name.

    Args:
        planned: The task.
        task: Its Task object.

    Raises:
        UserError: A row lacks one.
    """
    templates = [getattr(task.config, key, None) for key in ("doc_to_text", "doc_to_target", "doc_to_choice")]
    needed = set().union(*(template_fields(template, frozenset(task.features)) for template in templates))
    for one in planned.data:
        rows = one.rows()
        made = set(task.features).difference(*rows)  # the task makes these itself, from others
        for number, row in enumerate(rows, 1):
            for name in sorted(needed - made):
                if name in row and (row[name] is not None or rows[0].get(name) is None):
                    continue
                has = "nothing in it" if name in row else f"no such field, only {', '.join(row)}"
                wants = f"task '{planned.name}' needs the field '{name}'"
                raise UserError(f"--task-data: {wants}, and row {number} of {one.shown} has {has}")


def _wrong(task: Any, document: Any) -> str | None:
    """What of a document is not as its kind of task needs it."""
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    if task.OUTPUT_TYPE == "multiple_choice":
        return _wrong_choice(task, text, target, choices)
    if task.OUTPUT_TYPE == "loglikelihood" and not (isinstance(target, str) and target):
        return f"its answer is {_shown(target)}, and must be text"
    if task.OUTPUT_TYPE == "loglikelihood_rolling" and not isinstance(target, str):
        return f"its text is {_shown(target)}, and must be text"
    if task.OUTPUT_TYPE == GENERATE and not isinstance(text, str):
        return f"its prompt is {_shown(text)}, and must be text"
    return None


def _wrong_choice(task: Any, text: Any, target: Any, choices: Any) -> str | None:
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        return f"its choices are {_shown(choices)}, and must be a list of texts"
    if callable(task.config.process_results):
        return None  # the task judges answers itself, and what its target is is its own affair
    gold = text if isinstance(text, int) else target
    if not isinstance(text, str | int):
        return f"its question is {_shown(text)}, and must be text"
    for answer in gold if isinstance(gold, list) else [gold]:
        inside = (
            answer in choices if isinstance(answer, str) else isinstance(answer, int) and 0 <= answer < len(choices)
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


def _check_examples(planned: PlannedTask, task: Any) -> None:
    if not planned.shots:
        return
    name, shots = planned.name, planned.shots
    examples = list(task.sampler.fewshot_docs()) if hasattr(task, "sampler") else []
    same = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
    if len(examples) < shots + same:
        raise UserError(
            f"--task-data: task '{name}' takes {shots} examples before each question, and {planned.data[-1].shown} has "
            f"{len(examples)} documents: give more of them, or --shots {max(0, len(examples) - same)}"
        )
    for number, example in enumerate(examples[:shots], 1):
        wrong = _wrong(task, example)
        if wrong:
            raise UserError(f"--task-data: example {number} of task '{name}' in {planned.data[-1].shown}: {wrong}")
