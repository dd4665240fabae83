"""Running a plan's jobs as Ray Tune trials on actors that stay."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.tune.callback import CallbackList
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import FIFOScheduler

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.search.evaluator import EvaluatorSettings
from slm_ray.search.placing import resources, room
from slm_ray.search.plan import SearchPlan
from slm_ray.search.trial import CandidateTrial, PlanSearcher

_LOOK_SECONDS = 1.0  # between two looks at how many machines there are
_NEEDED = ("_maybe_add_actors", "_schedule_trial_actor", "_actor_failed", "_actor_stopped", "checkpoint", "stop_trial")
_ROOM_FOR_ALL = 1 << 30


class _Controller(TuneController):
    """Tune's controller, whose actors are its scheduler's matter, and which keeps no state for a restoration."""

    def _maybe_add_actors(self) -> None:
        self._scheduler_alg.place()

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Write the state at the end only, when Tune wants to read it; a search is resumed from its own records."""
        if force:
            super().checkpoint(force=force, wait=wait)


class _ActorsToKeep(FIFOScheduler):
    """First in, first out, on actors of our own that outlive trials.

    Tune ties an actor to the trial that it was asked for. A trial that finds an idle actor takes it, and the one that
    was starting for it is killed; only one starts at a time; and of idle ones all but one are stopped. Here actors are
    started side by side for whoever comes, none is stopped before the search ends, and trials take them as they are
    free. Nor does Tune ever let go of a trial: here those that have ended are forgotten, for what they found is on
    record. It has no options for any of that, so its controller is made one of a class of ours.
    """

    def __init__(self, searcher: PlanSearcher, most: Callable[[], int]) -> None:
        """Set up.

        Args:
            searcher: Told of workers that died before they had touched their candidate.
            most: How many actors there may be; asked now and then, for machines come and go.
        """
        super().__init__()
        self._searcher, self._count = searcher, most
        self._controller: Any = None
        self._starting: set[Any] = set()
        self._looked, self._most = float("-inf"), 1
        self._lost_in_a_row = 0
        self._actor_class: Any = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take the controller over with the first trial; give all trials one folder, which stays empty."""
        if self._controller is None:
            controller = self._controller = getattr(tune_controller, "_tune_controller", tune_controller)
            controller.__class__ = _Controller
            controller._callbacks = CallbackList([])  # its own print what we do not want printed, and keep all trials
            controller._actor_cache.increase_max(trial.placement_group_factory, by=_ROOM_FOR_ALL)
        self._look()
        trial.relative_logdir = trial.storage.trial_dir_name = "trial"

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Somebody's work has succeeded."""
        self._lost_in_a_row = 0

    def _look(self) -> None:
        """See how many actors there may be; as many trials are kept waiting, so that no actor waits for a trial."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._most, self._looked = max(1, self._count()), time.monotonic()
            self._controller._max_pending_trials = self._most

    def place(self) -> None:
        """Give idle actors to trials that wait, and start actors for the rest. Tune calls it at every step."""
        controller = self._controller
        self._forget()
        self._look()
        waiting = self._waiting()
        if controller.search_alg.is_finished():
            self._stop_starting()
            for trial in waiting:  # there are some only where the search cannot go on
                controller.stop_trial(trial)
            waiting = []
        while waiting and controller._actor_cache.has_cached_object(waiting[0].placement_group_factory):
            trial = waiting.pop(0)
            self._stage(trial)
            controller._schedule_trial_actor(trial)
        controller._pending_trials_list = waiting
        manager = controller._actor_manager
        there = manager.num_total_actors - len(controller._stopping_actors)
        for trial in waiting[len(self._starting) : len(self._starting) + max(0, self._most - there)]:
            self._start(trial)

    def _waiting(self) -> list[Any]:
        """Trials without an actor, the oldest first."""
        controller = self._controller
        pending, placed = controller._pending_trials, controller._trial_to_actor
        return [trial for trial in controller._pending_trials_list if trial in pending and trial not in placed]

    def _stage(self, trial: Any) -> None:
        """Count a trial as one that will get an actor, which Tune checks."""
        self._controller._staged_trials.add(trial)
        self._controller._actor_cache.increase_max(trial.placement_group_factory)

    def _start(self, trial: Any) -> None:
        """Start an actor like the one that a trial would get; whoever is first takes it."""
        from ray.tune.experiment.trial import _get_trainable_kwargs

        controller = self._controller
        key = trial.placement_group_factory
        actor = controller._actor_manager.add_actor(
            cls=self._class(trial),
            resource_request=key,
            kwargs=_get_trainable_kwargs(trial=trial),
            on_start=lambda started: self._started(started, key),
            on_stop=controller._actor_stopped,
            on_error=self._never_started,
        )
        self._starting.add(actor)

    def _class(self, trial: Any) -> Any:
        """What actors are of. Tune's own has an environment variable, so that no process that Ray has ready will do."""
        if self._actor_class is None:
            self._actor_class = ray.remote(trial.get_trainable_cls())
        return self._actor_class

    def _started(self, actor: Any, key: Any) -> None:
        self._starting.discard(actor)
        actor.set_on_error(self._lost)
        self._controller._started_actors.add(actor)
        self._controller._actor_cache.cache_object(key, actor)

    def _never_started(self, actor: Any, error: Exception) -> None:
        """An actor could not be set up, which counts as a trial's failure; or its process died, which is nobody's."""
        self._starting.discard(actor)
        died = isinstance(error, RayActorError) and not error.actor_init_failed
        waiting = self._waiting()
        if not waiting or (died and self._is_bad_luck()):
            return  # another one is started in its place
        trial, controller = waiting[0], self._controller
        self._stage(trial)
        controller._trial_to_actor[trial], controller._actor_to_trial[actor] = actor, trial
        controller._actor_failed(actor, error)

    def _lost(self, actor: Any, error: Exception) -> None:
        """An actor died. One that was idle is missed when a trial takes it, which is no fault of the trial's."""
        controller = self._controller
        trial = controller._actor_to_trial.get(actor)
        if trial is None:
            return
        if trial in controller._resetting_trials:
            controller._resetting_trials.discard(trial)
            if self._is_bad_luck():
                self._searcher.excuse(trial.trial_id)
        controller._actor_failed(actor, error)

    def _is_bad_luck(self) -> bool:
        """Whether workers may have died of something else than their work: not if they do so again and again."""
        self._lost_in_a_row += 1
        return self._lost_in_a_row <= 4 * self._most + 8

    def _forget(self) -> None:
        """Let go of the trials that have ended."""
        controller = self._controller
        for ended in (controller._stopped_trials, controller._failed_trials):
            for trial in ended:
                controller._trials.remove(trial)
                controller._live_trials.discard(trial)
                controller._trials_to_cache.discard(trial)
                controller._resetting_trials.discard(trial)
                controller._trial_metadata.pop(trial.trial_id, None)
            ended.clear()

    def _stop_starting(self) -> None:
        """Stop what is not needed any more."""
        for actor in self._starting:
            actor.set_on_start(None)
            actor.set_on_stop(None)
            actor.set_on_error(None)
            self._controller._actor_manager.remove_actor(actor, kill=True)
        self._starting.clear()


def _room(settings: EvaluatorSettings, workers: int) -> int:
    """How many trials the cluster has room for, and one more: a machine that joins is used, or asked for."""
    return min(workers, room(settings.device, settings.threads, ray.cluster_resources()) + 1)


def run_plan(
    plan: SearchPlan, settings: EvaluatorSettings, workers: int, scratch: Path, limit: int | None = None
) -> None:
    """Measure every candidate of a plan.

    Args:
        plan: What to measure; its records are written as candidates finish.
        settings: What to measure with.
        workers: The most trials that may run at once.
        scratch: A folder for Tune's own files, which nothing later reads; removed at the end.
        limit: How many workers the cluster is asked for, whether it has room for them now or not; None: as many of
            ``workers`` as it has room for, machines that join later included.

    Raises:
        UserError: A record could not be written, no candidate could be measured, or Ray's Tune is one unknown here.
    """
    from ray import tune
    from ray.tune import RunConfig, TuneConfig

    missing = [name for name in _NEEDED if not hasattr(TuneController, name)]
    if missing:
        raise UserError(
            f"Ray {ray.__version__}'s Tune has no {', '.join(missing)}, which searches need: "
            "install another with `pip install 'ray[data,tune,train]==2.60.0'`"
        )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that dies is our searcher's matter
    shutil.rmtree(scratch, ignore_errors=True)
    searcher = PlanSearcher(plan)
    trainable = tune.with_resources(
        tune.with_parameters(CandidateTrial, settings=settings, stack=plan.stack),
        resources(settings.device, settings.threads),
    )
    scheduler = _ActorsToKeep(searcher, lambda: limit or _room(settings, workers))
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True),
        run_config=RunConfig(name="trials", storage_path=str(scratch.resolve()), verbose=0),
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
