"""Running jobs: on Ray Train, many at once, or one after the other in this process (or torchrun's)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slm_ray.config.errors import UserError
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.engine import Place
from slm_ray.pretrain.job import Event, Recorder, Recorders, TrainJob, Watch
from slm_ray.pretrain.process_group import local_group, ray_group
from slm_ray.pretrain.trainer import train
from slm_ray.records.training import TrainFailure, TrainStatus, TrainStep
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.room import cluster_room

_POLL_SECONDS = 0.5
_RESTARTS = 3  # of a model whose workers died
# How long a model waits for machines that are rented when they are needed: seconds. Ray Train would give up after twice
# 60.
_MACHINES_TAKE_SECONDS = 7200
_PREPARING_TAKES = timedelta(days=7)
RunHere = Callable[[Sequence[TrainJob], Sequence[Path], Watch], dict[str, TrainStatus]]


def prepare_process(job: TrainJob, device: str, threads: int) -> None:
    """Make a process ready to train: its threads, and DeepSpeed where that is the engine."""
    torch.set_num_threads(threads)
    if job.config.engine.engine == "deepspeed":
        from slm_ray.pretrain.zero import prepare_deepspeed

        prepare_deepspeed(device)


@dataclass(frozen=True)
class Resources:
    """What one model's training takes."""

    workers: int  # Processes
    threads: int  # CPU threads of each
    use_gpu: bool  # A GPU each

    def need(self) -> dict[str, int]:
        """Ray's resources for one model."""
        return {"CPU": self.workers * self.threads, **({"GPU": self.workers} if self.use_gpu else {})}

    def waiting_for(self, free: dict[str, float]) -> str | None:
        """What a model that has not started lacks, in words; None where all it needs is free."""
        lacking = [name for name, count in self.need().items() if free.get(name, 0) < count]
        if not lacking:
            return None
        needed = _in_words(self.need())
        return f"waits for {needed}; free are {_in_words({name: free.get(name, 0) for name in self.need()})}"

    def how_many_fit(self, cluster: dict[str, float]) -> int:
        """How many models fit into a cluster at once."""
        need = self.need()
        fits = min(int(cluster.get(name, 0) // count) for name, count in need.items())
        if fits < 1:
            flags = [*(["--workers"] if self.workers > 1 else []), *(["--threads"] if self.threads > 1 else [])]
            fix = f"give fewer {' or '.join(flags)}, or add nodes" if flags else "add nodes"
            has = _in_words({name: cluster.get(name, 0) for name in need})
            what = "worker needs" if self.workers == 1 else "workers need"
            raise UserError(
                f"a model's {self.workers} {what} {_in_words(need)}, and the cluster has {has}: {fix}"
            )
        return fits


def _in_words(resources: dict[str, int] | dict[str, float]) -> str:
    return " and ".join(f"{count:g} {name}{'' if count == 1 else 's'}" for name, count in resources.items())


def resources_of(config: PretrainConfig, num_jobs: int) -> Resources:
    """What each of several models takes of the cluster that Ray is connected to."""
    run = config.run
    use_gpu = run.device != "cpu" and cluster_room().get("GPU", 0) > 0
    if run.device == "cuda" and not use_gpu:
        raise UserError("--device cuda is given, but the cluster has no GPU: give --device cpu, or add a GPU node")
    at_once = min(num_jobs, run.concurrent or num_jobs)
    threads = run.threads or max(1, _node_cpus(use_gpu) // (run.workers * at_once))
    return Resources(run.workers, threads, use_gpu)


def _node_cpus(use_gpu: bool) -> int:
    """CPUs of the smallest machine that may train: as many as this one's may not be free on any of the cluster's."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(has["CPU"]) for has in resources if has.get("CPU") and (has.get("GPU") or not use_gpu)]
    return min([usable_cpus(), *cpus])


def run_local(
    jobs: Sequence[TrainJob], folders: Sequence[Path], place: Place, threads: int, watch: Watch
) -> dict[str, TrainStatus]:
    """Train jobs one after the other in this process; every rank of torchrun calls this."""
    statuses = {}
    for job, folder in zip(jobs, folders, strict=True):
        recorder = Recorder(str(folder))

        def say(event: Event, recorder: Recorder = recorder, job: TrainJob = job) -> None:
            recorder.say(event)
            watch(job.name, *recorder.news())

        prepare_process(job, place.device.type, threads)
        if failure := train(job, place, say):
            recorder.say(failure)
        statuses[job.name] = recorder.status
    return statuses


@contextlib.contextmanager
def local_workers(config: PretrainConfig) -> Iterator[RunHere]:
    """Have this process, and torchrun's others if it is one of several, ready to train; rank 0 enters the block.

    There is one process group for the whole block, because DeepSpeed takes no second one.
    """
    with local_group(config.run.device) as place:

        orders = _orders()

        def run_here(jobs: Sequence[TrainJob], folders: Sequence[Path], watch: Watch) -> dict[str, TrainStatus]:
            dist.broadcast_object_list([list(jobs)], src=0, group=orders)
            return run_local(jobs, folders, place, config.run.threads or usable_cpus(), watch)

        try:
            yield run_here
        finally:
            with contextlib.suppress(RuntimeError):  # the others are gone
                dist.broadcast_object_list([None], src=0, group=orders)


def _orders() -> Any:
    """A group on which other ranks wait for rank 0's jobs: NCCL would give up while text is prepared or captured."""
    return dist.new_group(backend="gloo", timeout=_PREPARING_TAKES)


def follow(config: PretrainConfig) -> None:
    """Do the work of torchrun's other ranks: train the jobs that rank 0 sends, until it sends no more."""
    with local_group(config.run.device) as place, tempfile.TemporaryDirectory() as nowhere:
        orders = _orders()
        while True:
            told: list[list[TrainJob] | None] = [None]
            dist.broadcast_object_list(told, src=0, group=orders)
            if told[0] is None:
                return
            threads = config.run.threads or usable_cpus()
            run_local(told[0], [Path(nowhere)] * len(told[0]), place, threads, lambda *_: None)


def _no_group() -> Any:
    """Ray Train's configuration of torch, without a process group: the workers form one at an address of their own."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class NoGroup(Backend):
        share_cuda_visible_devices = True

    class NoGroupConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return NoGroup

    return NoGroupConfig()


def ray_worker(config: dict[str, Any]) -> None:
    """Train a job as one of Ray Train's workers."""
    import ray

    job, recorders = config["job"], config["recorders"]
    if ray.get(recorders.status.remote(job.name)).failure:
        return  # a restart after a mistake that a restart cannot mend

    def say(event: Event) -> None:
        told = recorders.say.remote(job.name, event)
        if not isinstance(event, TrainStep):
            ray.get(told)  # and with it everything said before: a checkpoint comes after its records

    with ray_group() as place:
        try:
            prepare_process(job, place.device.type, config["threads"])
        except UserError as error:
            failure: TrainFailure | None = TrainFailure(message=str(error))
        else:
            failure = train(job, place, say)
        if failure:
            say(failure)
            if place.world > 1:
                raise UserError(failure.message)


def _fit(job: TrainJob, recorders: Any, resources: Resources, scratch: str) -> None:
    """Train one model on Ray Train; returns when it is done or has failed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        ray_worker,
        train_loop_config={"job": job, "recorders": recorders, "threads": resources.threads},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.use_gpu, resources_per_worker={"CPU": resources.threads}
            | ({"GPU": 1} if resources.use_gpu else {}),
        ),
        # A name of its own each time: Ray Train resumes a run whose name it finds, and we resume from our checkpoints.
        run_config=RunConfig(
            name=f"{job.name}-{time.time_ns()}", storage_path=scratch,
            failure_config=FailureConfig(max_failures=_RESTARTS, controller_failure_limit=1),
        ),
        torch_config=_no_group(),
    )  # fmt: skip
    trainer.fit()


def _make_recorders(jobs: Sequence[TrainJob], folders: Sequence[Path]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    # The actor's process has a working folder of its own: the one that Ray was started in.
    places = {job.name: str(folder.absolute()) for job, folder in zip(jobs, folders, strict=True)}
    return ray.remote(Recorders).options(num_cpus=0, scheduling_strategy=here).remote(places)


def run_on_ray(
    jobs: Sequence[TrainJob], folders: Sequence[Path], resources: Resources, concurrent: int | None, watch: Watch
) -> dict[str, TrainStatus]:
    """Train jobs on Ray Train, as many at once as the cluster's resources allow.

    ``concurrent``: The most at once; None: as many as fit.
    """
    fits = resources.how_many_fit(cluster_room())
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_MACHINES_TAKE_SECONDS))
    scratch = tempfile.mkdtemp(prefix="slm_ray-train-")
    recorders = _make_recorders(jobs, folders)
    try:
        pool = ThreadPoolExecutor(min(fits, concurrent or fits, len(jobs)))
        try:
            running = {pool.submit(_fit, job, recorders, resources, scratch): job.name for job in jobs}
            errors = _watch_all(running, recorders, resources, watch)
        finally:
            # Not waited for: after Ctrl-C they go on until Ray itself is shut down, which ends them.
            pool.shutdown(wait=False, cancel_futures=True)
        return {job.name: _final_status(job.name, recorders, errors.get(job.name)) for job in jobs}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _watch_all(
    running: dict[Future[None], str], recorders: Any, resources: Resources, watch: Watch
) -> dict[str, BaseException]:
    """Report on every model until all are done; returns what those that broke down raised."""
    import ray

    errors, waiting = {}, set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            if error := future.exception():
                errors[running[future]] = error
        for future, name in running.items():
            if future.running() or future in done:
                status, news = ray.get(recorders.news.remote(name))
                is_waiting = status.begin is None and future not in done and _somebody_waits()
                note = resources.waiting_for(ray.available_resources()) if is_waiting else None
                watch(name, status.model_copy(update={"note": note}), news)
    return errors


def _somebody_waits() -> bool:
    """Whether Ray has workers that it could not place yet (those of a model that starts are not free either)."""
    from ray.util import placement_group_table

    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def _final_status(name: str, recorders: Any, error: BaseException | None) -> TrainStatus:
    import ray

    status: TrainStatus = ray.get(recorders.status.remote(name))
    message = None
    if error is not None and not status.failure:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        message = f"its workers broke down: {lines[-1][:300]}"
    elif status.end is None and not status.failure:
        message = "it ended before its last step"
    return status if message is None else status.model_copy(
        update={"failure": TrainFailure(message=message, resumable=True)}
    )
