"""Running a plan's jobs as Ray Tune trials on reused actors."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from slm_ray.core.errors import UserError
from slm_ray.proxies.evaluator import EvaluatorSettings
from slm_ray.search.plan import SearchPlan
from slm_ray.search.trial import CandidateTrial, PlanSearcher

_MOST_WORKER_DEATHS = 3


def run_plan(plan: SearchPlan, settings: EvaluatorSettings, workers: int, scratch: Path) -> None:
    """Measure every candidate of a plan.

    Args:
        plan: What to measure; its records are written as candidates finish.
        settings: What to measure with.
        workers: Trials at once.
        scratch: A folder for Tune's own files, which nothing later reads; removed at the end.

    Raises:
        UserError: A record could not be written, or no candidate could be measured.
    """
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    shutil.rmtree(scratch, ignore_errors=True)
    searcher = PlanSearcher(plan)
    trainable = tune.with_resources(
        tune.with_parameters(CandidateTrial, settings=settings, stack=plan.stack), {"cpu": settings.threads}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=workers, reuse_actors=True),
        run_config=RunConfig(
            name="trials",
            storage_path=str(scratch.resolve()),
            verbose=0,
            failure_config=FailureConfig(max_failures=_MOST_WORKER_DEATHS),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.fatal is not None:
        raise searcher.fatal
    if not plan.is_finished:
        raise UserError("the search ended before its plan did: Ray lost its workers; continue with --resume")


def scratch_folder(run: Path) -> Path:
    """Where Tune keeps its files while a run goes on: on local disk, out of the run folder."""
    return Path(tempfile.gettempdir()) / f"slm_ray-tune-{run.resolve().name}"
