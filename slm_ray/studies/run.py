"""A sweep from its points to its table: what is done is skipped, what failed is a row, the rest goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.records.base import RecordFile, read_lines
from slm_ray.records.sweep import Attempt
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.studies.launching import (
    DONE,
    FAILED,
    STOPPED,
    ChildTask,
    Outcome,
    Setting,
    log_file,
    needs_ray,
    num_workers,
    run_here,
    runs_alone,
)
from slm_ray.studies.points import Point, Task, all_tasks, expand, task_folder
from slm_ray.studies.stages import is_done
from slm_ray.studies.sweep_file import SweepFile

_WAIT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sweep is run; nothing of it changes what a point is."""

    launcher: str = "ray"  # ``ray``: tasks are trials of Ray Tune; ``local``: one after the other in this process
    concurrent: int | None = None  # Tasks at once; None: as many as fit
    address: str | None = None  # Ray cluster to join
    tracker: str = "none"  # Where metrics go
    max_runs: int | None = None  # The most points


def read_outcomes(run: Path) -> dict[str, Outcome]:
    """Task name to how its last attempt ended."""
    attempts = read_lines(run / Attempt.FILE, Attempt)
    return {one.task: Outcome(one.status, one.error, one.seconds) for one in attempts}


class SweepRun:
    """One command's worth of work on a sweep."""

    def __init__(self, sweep: SweepFile, folder: RunFolder, options: Options) -> None:
        self.sweep, self.folder, self.options = sweep, folder, options
        self.run = folder.path
        self.console = Console(folder.file(LOG_FILE))
        self.outcomes = read_outcomes(self.run)
        self._attempts: RecordFile[Attempt] = RecordFile(folder.file(Attempt.FILE))
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._count = 0

    def execute(self) -> list[Point]:
        """Run every point; points that fail do not stop the others."""
        try:
            points = expand(self.sweep, self.options.max_runs)
            self.run_points(points)
            return points
        finally:
            self._attempts.close()

    def run_points(self, points: Sequence[Point]) -> None:
        """Run the tasks of points that are not done yet, those of earlier steps first."""
        tasks = all_tasks(points)
        left = [task for task in tasks if not self._is_decided(task)]
        done = len(tasks) - len(left)
        self.console.line(
            f"{len(points)} points, {len(tasks)} runs" + (f", {done} of them done before" if done else "")
        )
        if not left:
            return
        self._progress, self._count = Progress(self.console, "sweep", len(tasks), "runs", already_done=done), done
        with self._ray(left) as is_local:
            for depth in range(max(len(point.tasks) for point in points)):
                wave = {task.name: task for point in points for task in point.tasks[depth : depth + 1]}
                self._run_wave([task for task in wave.values() if self._can_run(task)], is_local)
        self._progress.finish(f"{self._count} runs")

    def _is_decided(self, task: Task) -> bool:
        """Whether there is nothing to do for a task: it is done, or a scheduler has stopped it."""
        outcome = self.outcomes.get(task.name)
        if outcome is not None and outcome.status != DONE:
            return outcome.status == STOPPED
        return is_done(task.stage, task_folder(task, self.run))

    def _can_run(self, task: Task) -> bool:
        """Whether what a task needs is there; without it, it fails for that reason."""
        broken = [need for need in task.needs.values() if not is_done(need.stage, task_folder(need, self.run))]
        if broken and not self._is_decided(task):
            self._report(task, Outcome(FAILED, f"its {broken[0].step} is not done", 0.0))
        return not broken

    @contextlib.contextmanager
    def _ray(self, tasks: Sequence[Task]) -> Iterator[bool]:
        """One Ray for all tasks, where any needs it; gives whether it was started here."""
        if self.options.launcher == "local" and not needs_ray(tasks):
            yield False
            return
        with ray_session(self.options.address, usable_cpus()):
            yield self.options.address is None

    def _setting(self, is_local: bool, concurrent: int) -> Setting:
        address = None
        if self.options.launcher == "ray":
            import ray

            address = ray.get_runtime_context().gcs_address
        threads = max(1, usable_cpus() // concurrent) if concurrent > 1 and is_local else None
        run, folder = str(self.run.resolve()), str(Path.cwd())
        return Setting(run, folder, address, is_local, self.options.tracker, threads, self.sweep.name)

    def _run_wave(self, tasks: list[Task], is_local: bool) -> None:
        left = [task for task in tasks if not self._is_decided(task)]
        if not left:
            return
        if self.options.launcher == "local":
            for task in left:
                self._run_here(task, self._setting(False, 1))
            return
        from slm_ray.studies.tuning import run_on_tune

        concurrent = self.options.concurrent or tasks_at_once(left)
        streams = self.sweep.scheduler if left[0].step == self.sweep.steps[-1].name else {}
        decided = {task.name: self.outcomes.get(task.name) or Outcome(DONE, None, 0.0)
                   for task in tasks if self._is_decided(task)}  # fmt: skip
        wanted = tasks if streams else left
        setting = self._setting(is_local, concurrent)
        run_on_tune(wanted, decided, setting, min(concurrent, len(wanted)), streams, self._report)

    def _run_here(self, task: Task, setting: Setting) -> None:
        if not runs_alone(task):
            self._report(task, run_here(task, setting))
            return
        child = ChildTask(task, setting)
        try:
            while (outcome := child.wait(_WAIT_SECONDS)) is None:
                pass
        finally:
            child.stop()
        self._report(task, outcome)

    def _report(self, task: Task, outcome: Outcome) -> None:
        """Keep how a task ended, before anything else depends on it."""
        with self._lock:
            if outcome.status == STOPPED and is_done(task.stage, task_folder(task, self.run)):
                outcome = Outcome(DONE, None, outcome.seconds)
            self.outcomes[task.name] = outcome
            self._attempts.append(Attempt(task=task.name, stage=task.stage.name, **dataclasses.asdict(outcome)))
            self._count += 1
            said = "" if outcome.status == DONE else f": {outcome.error or 'by its scheduler'}"
            self.console.line(f"{task.name} {outcome.status}{said}")
            if outcome.status == FAILED:
                self.console.line(f"  what it printed is in {log_file(task, self.run)}")
            if self._progress is not None:
                self._progress.update(self._count)


def tasks_at_once(tasks: Sequence[Task]) -> int:
    """Tasks that fit into the cluster at once, by the CPUs or GPUs that the largest of them takes."""
    cluster = cluster_room()
    fits = []
    for task in tasks:
        workers = num_workers(task)
        if cluster.get("GPU", 0) and task.options.get("device", "auto") != "cpu":
            fits.append(int(cluster["GPU"] // workers))
            continue
        threads = task.options.get("threads")
        fits.append(int(cluster.get("CPU", 1) // (workers * int(threads))) if threads else 1)
    return max(1, min(fits, default=1))


def raise_failures(points: Sequence[Point], run: Path, outcomes: dict[str, Outcome]) -> None:
    """End the command in one sentence where points failed."""
    from slm_ray.studies.table import state_of

    states = [(point, *state_of(point, run, outcomes)) for point in points]
    failed = [(point, error or "it did not run") for point, status, error in states if status not in (DONE, STOPPED)]
    if failed:
        point, error = failed[0]
        raise UserError(
            f"{len(failed)} of {len(points)} points failed, the first is {point.title()}: {error}; the others are "
            f"finished and the table has all; try the failed ones again with --resume {run}"
        )
