"""Workers that measure a plan's candidates: one long-lived Ray Tune trial each, which takes tasks until there are none.

The plan stays in the driver, which writes every trial before the algorithm learns of it. Tasks go to the workers and
outcomes come back through one small actor, the board. Tune starts as many workers as the cluster has room for, new ones
on machines that join, and another one for one that dies, whose task goes back to the plan.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import RunConfig, Stopper, TuneConfig
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.runtime.shared import publish
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.measuring import Report, measure, take_in, text_of
from slm_ray.search.plan import SearchPlan
from slm_ray.search.stack import GenomeStack
from slm_ray.search.tasks import Idle, Task

_LOOK_SECONDS = 1.0
"""Between two looks at how many machines there are, and at tasks that rest."""
_END_SECONDS = 10.0
"""For workers to end after the last task; they have nothing left to do."""


class Board:
    """Between the driver and its workers: tasks one way, reports the other; an asyncio actor."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._held: dict[str, int] = {}  # by worker
        self._reports: list[Report] = []
        self._lost: list[int] = []
        self._gone: set[str] = set()
        self._closed = False
        self._for_workers, self._for_driver = asyncio.Condition(), asyncio.Event()

    async def take(self, worker: str, report: Report | None) -> Task | None:
        """Take in a worker's report and give it its next task; None when there will be no more."""
        if report is not None:
            self._held.pop(worker, None)
            self._reports.append(report)
            self._for_driver.set()
            if report.index is None:
                self._gone.add(worker)
        async with self._for_workers:
            await self._for_workers.wait_for(lambda: self._tasks or self._closed or worker in self._gone)
            if self._closed or worker in self._gone:
                return None
            task = self._tasks.popleft()
        self._held[worker] = task.index
        return task

    async def exchange(self, tasks: list[Task], seconds: float) -> tuple[list[Report], list[int]]:
        """Hand out tasks, and wait for reports for a while."""
        if tasks:
            self._tasks.extend(tasks)
            async with self._for_workers:
                self._for_workers.notify_all()
        try:
            await asyncio.wait_for(self._for_driver.wait(), seconds)
        except TimeoutError:
            pass
        self._for_driver.clear()
        found = self._reports, self._lost
        self._reports, self._lost = [], []
        return found

    async def forget(self, worker: str) -> None:
        """A worker is dead: its task is lost, if it had one."""
        self._gone.add(worker)
        if (index := self._held.pop(worker, None)) is not None:
            self._lost.append(index)
            self._for_driver.set()
        async with self._for_workers:
            self._for_workers.notify_all()

    async def close(self) -> None:
        """There will be no more tasks."""
        self._closed = True
        async with self._for_workers:
            self._for_workers.notify_all()


class Worker(tune.Trainable):
    """Measures candidates from its start to the end of the search, in one step."""

    def setup(
        self, config: dict[str, Any], settings: EvaluatorSettings | None = None, stack: GenomeStack | None = None,
        board: Any = None,
    ) -> None:  # fmt: skip
        """Keep what it is given."""
        assert settings is not None and stack is not None
        self._name, self._settings, self._stack, self._board = config["worker"], settings, stack, board

    def step(self) -> dict[str, Any]:
        """Measure task after task."""
        report: Report | None = None
        try:
            measure_task = self.measurer(self._settings, self._stack)
        except Exception as error:  # said through the board: Tune would print its traceback
            report = Report(None, error=text_of(error))
        while (task := ray.get(self._board.take.remote(self._name, report))) is not None:
            report = measure_task(task)
        return {"done": True}

    @staticmethod
    def measurer(settings: EvaluatorSettings, stack: GenomeStack) -> Callable[[Task], Report]:
        """Map the teacher; gives what measures a candidate."""
        return partial(measure, Evaluator(settings), stack)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: what is finished is in the run's records."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class _Supply(Searcher):
    """Tells Tune how many workers there are to be, and learns from it of dead ones."""

    def __init__(self, board: Any, most: Callable[[], int]) -> None:
        super().__init__()
        self._board, self._count = board, most
        self._most, self._looked = 1, float("-inf")
        self._live: set[str] = set()
        self.losses_in_a_row = 0
        self.is_over = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it was given, to restore it some day; a search is resumed from its own records."""
        return {}

    @property
    def most(self) -> int:
        """How many workers there may be now."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._most, self._looked = max(1, self._count()), time.monotonic()
        return self._most

    def suggest(self, trial_id: str) -> Any:
        """Another worker, where there is to be one."""
        if self.is_over:
            return Searcher.FINISHED
        if len(self._live) >= self.most:
            return None
        self._live.add(trial_id)
        return {"worker": trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note a worker that has ended; one that died is replaced."""
        self._live.discard(trial_id)
        if error and not self.is_over:
            self.losses_in_a_row += 1
            self._board.forget.remote(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _WhenOver(Stopper):
    """Ends workers that wait for room when the search is over."""

    def __init__(self, supply: _Supply) -> None:
        self._supply = supply

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never one worker alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is over."""
        return self._supply.is_over


def run_plan(plan: SearchPlan, settings: EvaluatorSettings, workers: int, scratch: Path, *, grows: bool) -> None:
    """Measure every candidate of a plan on Ray."""
    publish(settings.teacher.folder)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000).remote()

    def most() -> int:
        room = settings.share.how_many_fit(ray.cluster_resources())
        return min(workers, room + 1 if grows else max(1, room))

    supply = _Supply(board, most)
    thread, failed = _start_tune(supply, settings, plan.stack, board, workers, scratch)
    try:
        while True:
            tasks = []
            while isinstance(task := plan.next(), Task):
                tasks.append(task)
            if task is Idle.DONE and not tasks:
                break
            reports, lost = ray.get(board.exchange.remote(tasks, _LOOK_SECONDS))
            for report in reports:
                take_in(plan, report)
                supply.losses_in_a_row = 0
            for index in lost:
                plan.give_back(index, "the worker died again and again while measuring this candidate")
            if failed or supply.losses_in_a_row > 4 * supply.most + 8:
                reason = failed[0] if failed else "they die again and again: is memory short?"
                raise UserError(f"Ray lost the search's workers ({reason}): give them room", is_resumable=True)
        ray.get(board.close.remote())
        supply.is_over = True
        thread.join(_END_SECONDS)
    finally:
        supply.is_over = True
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)


def _start_tune(
    supply: _Supply, settings: EvaluatorSettings, stack: GenomeStack, board: Any, workers: int, scratch: Path
) -> tuple[threading.Thread, list[str]]:
    """Have Tune run the workers in a thread; gives it, and the list that says why it ended too early."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that dies is our own matter
    os.environ["TUNE_DISABLE_AUTO_INIT"] = "1"  # a Ray that has ended is not to be started anew
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(workers + 1))  # all start side by side
    shutil.rmtree(scratch, ignore_errors=True)
    share = settings.share
    trainable = tune.with_resources(
        tune.with_parameters(Worker, settings=settings, stack=stack, board=board),
        {name.lower(): amount for name, amount in share.needs().items()},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(search_alg=supply, num_samples=-1),
        run_config=RunConfig(
            name="workers", storage_path=str(scratch.resolve()), verbose=0, stop=_WhenOver(supply)
        ),
    )
    failed: list[str] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            failed.append(text_of(error) if isinstance(error, Exception) else type(error).__name__)
        else:
            if not supply.is_over:
                failed.append("Tune ended before the search did")

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    return thread, failed


def scratch_folder(run: Path) -> Path:
    """Where Tune keeps its files while a run goes on: on local disk, out of the run folder."""
    # By its whole path: several searches of a sweep have the same name, and run at once.
    return Path(tempfile.gettempdir()) / f"slm_ray-tune-{run.resolve().name}-{digest_json(str(run.resolve()))[:8]}"
