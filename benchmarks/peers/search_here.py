"""The search's command in one process on one thread, without Ray: same candidates, same records, same winner.

python -m benchmarks.peers.search_here --params 0.5 --out FOLDER     # any options of slm_ray.search

Ray's processes need memory and time of their own, which a comparison on one core should not charge to the search, and
they are lost where a machine is busy with other things. What is computed is what one worker would compute.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from benchmarks.algorithms import GatesHere
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main as search
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.plan import SearchPlan
from slm_ray.search.tasks import Idle


def _run_plan(plan: SearchPlan, settings: EvaluatorSettings, *_: Any, **__: Any) -> None:
    """Measure what a plan asks for, one candidate after the other."""
    evaluator = Evaluator(settings)
    while not isinstance(task := plan.next(), Idle):
        spec = plan.stack.decode(plan.stack.from_text(task.genes))
        plan.finish(task.index, evaluator.evaluate(spec, task.rival).rounded())


def _measure_in_full(settings: EvaluatorSettings, specs: Mapping[int, SubnetSpec], _: int | None, on_done: Any) -> None:
    evaluator = Evaluator(settings)
    for trial, spec in specs.items():
        on_done(trial, evaluator.evaluate(spec).measurements)


# What of the search's phases starts other processes, below ``slm_ray.search``, and what computes the same here.
REPLACED: dict[str, Any] = {
    "run.ray_session": lambda *_: contextlib.nullcontext(),
    "run.run_plan": _run_plan,
    "held_out.measure_in_full": _measure_in_full,
    "audit.measure_in_full": _measure_in_full,
    "rank.GatePool": GatesHere,
}


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Inside the block, a search in this process starts no other."""
    with contextlib.ExitStack() as stack:
        for name, value in REPLACED.items():
            stack.enter_context(mock.patch(f"slm_ray.search.{name}", value))
        yield


def main(argv: Sequence[str]) -> int:
    """Run the search.

    Args:
        argv: Its arguments.

    Returns:
        Its exit status.
    """
    with without_ray():
        return run_command(search, [*argv])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
