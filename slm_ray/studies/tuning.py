"""Tasks through Ray Tune: each trial drives one task, whose training runs on Ray Train in the same cluster."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from ray import tune
from ray.tune import Callback

from slm_ray.config.base import Config, Count, build_section, option
from slm_ray.config.errors import UserError, nearest
from slm_ray.records.base import read_lines
from slm_ray.records.training import TrainEvaluation
from slm_ray.studies.launching import FAILED, STOPPED, ChildTask, Outcome, Setting
from slm_ray.studies.points import Task, task_folder
from slm_ray.studies.sweep_file import Step

# Name to class in ray.tune.schedulers and the settings we pass on.
SCHEDULERS = {
    "asha": ("ASHAScheduler", ("max_t", "grace_period", "reduction_factor", "brackets")),
    "median": ("MedianStoppingRule", ("grace_period", "min_samples_required")),
}
TIME, METRIC = "tokens", "loss"  # of evals.jsonl


class SchedulerSection(Config):
    """What a sweep file says of its scheduler; Tune's own defaults where nothing is said."""

    name: Literal["asha", "median"] = option(..., "which")
    max_t: Count | None = option(None, "tokens at most")
    grace_period: Count | None = option(None, "tokens before anything is stopped")
    reduction_factor: float | None = option(None, "of a rung, one in so many goes on")
    brackets: int | None = option(None, "brackets")
    min_samples_required: int | None = option(None, "trainings that a median needs")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in sorted(self.model_fields_set - {"name", *SCHEDULERS[self.name][1]}):
            raise ValueError(f"{key}: no such setting of {self.name}; {nearest(key, SCHEDULERS[self.name][1])}")
        return self


def check_scheduler(given: Any, steps: Sequence[Step], problems: list[str]) -> Mapping[str, Any]:
    """Read the section ``scheduler``; what is wrong goes to ``problems``."""
    if given is None:
        return {}
    if steps and steps[-1].stage.name != "pretrain":
        problems.append("scheduler: it stops trainings, so the last step must be of stage pretrain")
    section = {"name": given} if isinstance(given, str) else given
    found = build_section(SchedulerSection, section, "scheduler", problems)
    return found.model_dump(exclude_none=True) if found else {}


def make_scheduler(settings: Mapping[str, Any]) -> Any:
    """Tune's scheduler, on the held-out loss against tokens; None without settings."""
    if not settings:
        return None
    from ray.tune import schedulers

    class_name, given = SCHEDULERS[settings["name"]][0], {**settings}
    del given["name"]
    try:
        return getattr(schedulers, class_name)(time_attr=TIME, metric=METRIC, mode="min", **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"scheduler: Tune's {class_name} refuses its settings: {error}") from error


_LOOK_SECONDS = 0.5
_HEARTBEAT_LOOKS = 10
_BAD_LOSS = 1e9  # of a training whose loss is no number: a scheduler can compare it
Report = Callable[[Task, Outcome], None]


def evaluations(task: Task, run: Path) -> list[tuple[int, float]]:
    """(tokens, loss) of every evaluation of a pretraining's first model so far."""
    places = sorted(task_folder(task, run).glob(f"*/{TrainEvaluation.FILE}"))
    records = read_lines(places[0], TrainEvaluation) if places else []
    return [(one.tokens, _BAD_LOSS if one.loss is None else one.loss) for one in records]


class TaskTrial(tune.Trainable):
    """A trial that starts a task, passes its evaluations on to Tune's scheduler, and ends it where that says so.

    A task that was decided before is only read, so that a scheduler of a resumed sweep knows of it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Start the task."""
        config = config["trial"]
        self._task: Task = config["task"]
        self._setting: Setting = config["setting"]
        self._decided: Outcome | None = config["decided"]
        self._streams: bool = config["streams"]
        self._sent = 0
        self._last: dict[str, float] = {TIME: 0, METRIC: _BAD_LOSS}
        self._child = None if self._decided else ChildTask(self._task, self._setting)

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end, or a sign of life."""
        for _ in range(_HEARTBEAT_LOOKS):
            outcome = self._decided if self._child is None else self._child.wait(_LOOK_SECONDS)
            found = evaluations(self._task, Path(self._setting.run)) if self._streams else []
            if len(found) > self._sent:
                self._last = dict(zip((TIME, METRIC), found[self._sent], strict=True))
                self._sent += 1
                return dict(self._last)
            if outcome is not None:
                ended = [outcome.status, outcome.error, outcome.seconds]
                return self._last | {"outcome": json.dumps(ended), tune.result.DONE: True}
        return dict(self._last)

    def cleanup(self) -> None:
        """End the task's process."""
        if self._child is not None:
            self._child.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a task keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class _Told(Callback):
    """Tells of every task's end at once."""

    def __init__(self, tasks: Mapping[str, Task], report: Report) -> None:
        self._tasks, self._report = tasks, report

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its settings; it is never read, because a sweep resumes from its own records

    def _task(self, trial: Any) -> Task:
        return self._tasks[trial.config["trial"]["task"].name]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A task ended, or its scheduler ended it; one that was decided before is no news."""
        if trial.config["trial"]["decided"] is not None:
            return
        ended = trial.last_result.get("outcome")
        outcome = Outcome(*json.loads(ended)) if ended else Outcome(STOPPED, None, trial.last_result["time_total_s"])
        self._report(self._task(trial), outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial itself broke down."""
        self._report(self._task(trial), Outcome(FAILED, "its trial's process died", 0.0))


def run_on_tune(
    tasks: Sequence[Task], decided: Mapping[str, Outcome], setting: Setting, concurrent: int,
    scheduler: Mapping[str, Any], report: Report,
) -> None:  # fmt: skip
    """Run tasks as trials; Ray must run."""
    import ray

    # The trials are on this machine, where the sweep's folder is, and take no CPU: what they would take, their tasks'
    # workers might wait for.
    here = tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    trials = [{"task": task, "setting": setting, "decided": decided.get(task.name), "streams": bool(scheduler)}
              for task in tasks]  # fmt: skip
    scratch = tempfile.mkdtemp(prefix="slm_ray-sweep-")
    try:
        tuner = tune.Tuner(
            tune.with_resources(TaskTrial, here),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, scheduler=make_scheduler(scheduler)),
            run_config=tune.RunConfig(
                name="sweep", storage_path=scratch, verbose=0,
                callbacks=[_Told({task.name: task for task in tasks}, report)],
            ),
        )  # fmt: skip
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
