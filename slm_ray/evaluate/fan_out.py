"""Models measured one after another in this process, or several at once on Ray; either way each is loaded once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm_ray.evaluate.measure import FAILED, SAY, Message, ModelJob, measure_model
from slm_ray.runtime.session import ray_session

_RESTARTS = 2  # of a model whose worker died
Receive = Callable[[ModelJob, Message], None]
Left = Callable[[ModelJob], ModelJob]


def measure_here(jobs: Sequence[ModelJob], receive: Receive) -> None:
    """Measure models one after another.

    Args:
        jobs: What to measure.
        receive: Takes every message.
    """
    for job in jobs:
        measure_model(job, lambda message, job=job: receive(job, message))  # type: ignore[misc]


def _messages(job: ModelJob) -> Iterator[Message]:
    """A model's messages as they come: the work is in a thread of its own, so that its lines of progress arrive too."""
    waiting: queue.Queue[Message | None] = queue.Queue()
    broken: list[BaseException] = []

    def work() -> None:
        try:
            measure_model(job, waiting.put)
        except BaseException as error:
            broken.append(error)
        finally:
            waiting.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (message := waiting.get()) is not None:
        yield message
    if broken:
        raise broken[0]


def measure_on_ray(
    jobs: Sequence[ModelJob], receive: Receive, left: Left, *, workers: int, address: str | None
) -> None:
    """Measure models at once, each by one worker process that loads it once.

    Args:
        jobs: What to measure.
        receive: Takes every message, in this process.
        left: What of a job is still to be measured; asked after its worker died.
        workers: How many at once.
        address: A cluster to join; None starts Ray on this machine.

    Raises:
        UserError: A model's worker died again and again, or Ray cannot start.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    with ray_session(address, workers * jobs[0].threads):
        gpus = 1 if jobs[0].device == "cuda" else 0
        task = ray.remote(num_cpus=jobs[0].threads, num_gpus=gpus, max_retries=0)(_messages)
        tries = dict.fromkeys((job.label for job in jobs), 0)
        waiting, running = list(jobs), dict[Any, ModelJob]()
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[task.remote(job)] = job
            [ready], _ = ray.wait(list(running), num_returns=1)
            job = running[ready]
            try:
                receive(job, ray.get(next(ready)))
            except StopIteration:
                del running[ready]
            except RayTaskError:
                raise  # a mistake of ours in the worker, not its death
            except RayError as error:
                del running[ready]
                tries[job.label] += 1
                if tries[job.label] > _RESTARTS:
                    sentence = f"the worker of {job.label} died {tries[job.label]} times: is memory short?"
                    receive(job, (FAILED, (sentence, "")))
                    continue
                receive(job, (SAY, f"its worker died ({type(error).__name__}); what was measured is kept, going on"))
                waiting.insert(0, left(job))
