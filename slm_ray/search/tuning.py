"""Running a plan's jobs as Ray Tune trials on reused actors."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from slm_ray.core.digest import digest_json
from slm_ray.core.errors import UserError
from slm_ray.proxies.evaluator import EvaluatorSettings
from slm_ray.search.plan import SearchPlan
from slm_ray.search.trial import CandidateTrial, PlanSearcher


class _KeepIdleActors(FIFOScheduler):
    """First in, first out, and idle actors stay.

    Between two generations Tune has no pending trials, keeps one idle actor and stops the others, whose successors then
    take seconds to import torch. It has no option for that, so room for all of them is made in its actor cache.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Make the room once, when the first trial comes."""
        cache = getattr(tune_controller, "_actor_cache", None)
        if self._workers and cache is not None:
            cache.increase_max(trial.placement_group_factory, by=self._workers)
            self._workers = 0


def run_plan(
    plan: SearchPlan, settings: EvaluatorSettings, workers: int, scratch: Path, limit: int | None = None
) -> None:
    """Measure every candidate of a plan.

    Args:
        plan: What to measure; its records are written as candidates finish.
        settings: What to measure with.
        workers: Idle actors that are kept: the most trials that may run at once.
        scratch: A folder for Tune's own files, which nothing later reads; removed at the end.
        limit: Most trials handed to Tune at once; None: as many as the cluster has room for, machines that join later
            included. Tune keeps its workers busier where it has trials waiting.

    Raises:
        UserError: A record could not be written, or no candidate could be measured.
    """
    from ray import tune
    from ray.tune import RunConfig, TuneConfig

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that dies is our searcher's matter
    shutil.rmtree(scratch, ignore_errors=True)
    searcher = PlanSearcher(plan)
    trainable = tune.with_resources(
        tune.with_parameters(CandidateTrial, settings=settings, stack=plan.stack), {"cpu": settings.threads}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher, scheduler=_KeepIdleActors(workers), num_samples=-1, reuse_actors=True,
            max_concurrent_trials=limit,
        ),
        run_config=RunConfig(
            name="trials",
            storage_path=str(scratch.resolve()),
            verbose=0,
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
    # By its whole path: several searches of a sweep have the same name, and run at once.
    return Path(tempfile.gettempdir()) / f"slm_ray-tune-{run.resolve().name}-{digest_json(str(run.resolve()))[:8]}"
