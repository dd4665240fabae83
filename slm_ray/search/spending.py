"""What a search has cost: ``spent`` of a result, over all processes that worked on the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.records.cost import flops_per_token
from slm_ray.search.config import SearchConfig
from slm_ray.search.finalists import training_spent
from slm_ray.search.finish import Chosen
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.phases import TEACHER_TEXT, UNIT_SCORES, PhaseRecord
from slm_ray.search.plan import SearchPlan
from slm_ray.search.trained import Trained


def teacher_flops(config: SearchConfig, inputs: SearchInputs) -> float:
    """FLOPs of one token through the teacher."""
    return float(flops_per_token(inputs.architecture, config.sequence_length))


def pay_teacher_text(phases: PhaseRecord, config: SearchConfig, inputs: SearchInputs) -> None:
    """Note what the teacher wrote: each token went through it once, what it had read kept in its cache."""
    phases.pay(TEACHER_TEXT, inputs.written_tokens, inputs.written_tokens * teacher_flops(config, inputs))


def pay_unit_scores(phases: PhaseRecord, config: SearchConfig, inputs: SearchInputs, tokens: int) -> None:
    """Note what gate gradients cost: a forward pass, and a backward pass for activations only, which costs as much.

    Args:
        phases: Where it is noted.
        config: The options.
        inputs: What the search started from.
        tokens: Tokens that gradients were taken on.
    """
    phases.pay(UNIT_SCORES, tokens, 2 * tokens * teacher_flops(config, inputs))


def pay_held_out(phases: PhaseRecord, name: str, tokens: int, measured: Sequence[Chosen]) -> None:
    """Note what measuring models on a text that decides nothing cost.

    Args:
        phases: Where it is noted.
        name: What it is noted as.
        tokens: Tokens of the text.
        measured: The models.
    """
    phases.pay(name, tokens * len(measured), float(tokens) * sum(one.entry["cost"]["flops"] for one in measured))


def spent(phases: PhaseRecord, plan: SearchPlan, trained: Mapping[int, Trained], workers: int) -> dict[str, Any]:
    """Everything that was computed, in tokens, FLOPs and seconds.

    Args:
        phases: Time and once-paid costs.
        plan: The finished search, with the records of all candidates.
        trained: What the finalists' training gave.
        workers: Trials at once.
    """
    records = plan.journal
    tokens, flops = 0, 0.0
    for record in records:
        tokens += record.tokens
        flops += record.tokens * record.cost.flops
    training, paid = training_spent(trained), phases.paid()
    return {
        "seconds": phases.seconds(),
        "processes": phases.processes,
        "forward_tokens": tokens + training["tokens"] + sum(cost["tokens"] for cost in paid.values()),
        "flops": flops + training["flops"] + sum(cost["flops"] for cost in paid.values()),
        "paid": paid,
        "candidates": len(records),
        "failed": sum(record.status == "failed" for record in records),
        "cache_hits": plan.repeats,
        "resumed": plan.journal.resumed,
        "busy_seconds": round(sum(record.seconds for record in records), 2),
        "workers": workers,
    } | ({"finalists": training} if trained else {})
