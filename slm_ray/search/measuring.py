"""Measuring a plan's candidates one after the other, in a worker or in this process; nothing here imports Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.plan import SearchPlan
from slm_ray.search.stack import GenomeStack
from slm_ray.search.tasks import Idle, Outcome, Task

_MOST_ERROR_CHARACTERS = 300
_REST_SECONDS = 1.0


@dataclass(frozen=True)
class Report:
    """What a worker says."""

    index: int | None  # The task it is about; None where the worker could not be set up
    outcome: Outcome | None = None  # What measuring gave, rounded as records are
    error: str | None = None  # Why there is no outcome
    may_pass: bool = False  # The system refused a file or the like, which it may not do a minute later


def measure(evaluator: Evaluator, stack: GenomeStack, task: Task) -> Report:
    """Measure one candidate. What goes wrong inside is a failed candidate; with its files, a failed worker."""
    try:
        spec = stack.decode(stack.from_text(task.genes))
        return Report(task.index, evaluator.evaluate(spec, task.rival).rounded())
    except Exception as error:
        may_pass = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
        return Report(task.index, error=text_of(error), may_pass=may_pass)


def text_of(error: Exception) -> str:
    """An error in a few words, for a record."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return redact(said)[:_MOST_ERROR_CHARACTERS]


def take_in(plan: SearchPlan, report: Report) -> None:
    """Give a worker's report to the plan."""
    if report.index is None:
        raise UserError(f"a worker could not prepare to measure candidates: {report.error}")
    if report.may_pass:
        plan.give_back(report.index, report.error or "")
    else:
        plan.finish(report.index, report.outcome, report.error)


def run_plan_here(plan: SearchPlan, settings: EvaluatorSettings) -> None:
    """Measure every candidate of a plan in this process, without Ray; nothing is loaded where all are on record."""
    evaluator: Evaluator | None = None
    while (task := plan.next()) is not Idle.DONE:
        if isinstance(task, Task):
            evaluator = evaluator or Evaluator(settings)
            take_in(plan, measure(evaluator, plan.stack, task))
        else:
            time.sleep(_REST_SECONDS)  # for a task that rests
