"""Work spread over processes: every item is one call of a function that each worker has made ready once.

This is how everything is distributed beside Ray Tune, Train and Data. Workers are Ray actors, on any machine of the
cluster; an item whose worker or machine is lost goes back. Without workers, the same runs in this process, without Ray.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from slm_ray.config.errors import UserError
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.shared import publish

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[..., Result]
"""Takes an item; and, where messages are received, a function that sends one."""

_RETRIES = 2  # of an item whose worker was lost
_WAITING_SECONDS = 10.0  # for the cluster's resources, until that is said
_RESULT, _MESSAGE, _PROBLEM, _DEATH = "result", "message", "problem", "death"
_MEMORY = "is memory short?"


@dataclass(frozen=True)
class Share:
    """What one worker takes of a cluster."""

    cpus: float = 1  # Its CPUs, and threads where they are a whole number
    gpus: float = 0  # Its GPUs; 0.5 where two workers share one

    def needs(self) -> dict[str, float]:
        """By Ray's names, without what is not needed."""
        return {name: float(amount) for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def how_many_fit(self, there: Mapping[str, float]) -> int:
        """How many such workers resources have room for."""
        return min((int(there.get(name, 0.0) / amount) for name, amount in self.needs().items()), default=sys.maxsize)

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {name}" for name, amount in self.needs().items()) or "nothing"


class _Worker:
    """The actor: a function made ready once, then called with one item after the other."""

    def set_up(self, make: Callable[[], Work[Any]], threads: int | None) -> Iterator[tuple[str, Any]]:
        """Make the function ready; what a user can fix is sent, for raised Ray would send it on with its traceback."""
        if threads and (torch := sys.modules.get("torch")):
            torch.set_num_threads(threads)
        try:
            self._work = make()
            yield _RESULT, None
        except UserError as error:
            yield _PROBLEM, error

    def run(self, item: Any, talks: bool) -> Iterator[tuple[str, Any]]:
        """The messages about an item as they come, and in the end its result or a user's mistake."""
        waiting: queue.Queue[tuple[str, Any] | BaseException] = queue.Queue()

        def call() -> None:
            try:
                send = (lambda message: waiting.put((_MESSAGE, message)),) if talks else ()
                waiting.put((_RESULT, self._work(item, *send)))
            except UserError as error:
                waiting.put((_PROBLEM, error))
            except BaseException as error:
                waiting.put(error)

        if talks:
            threading.Thread(target=call, daemon=True).start()
        else:
            call()
        while True:
            if isinstance(said := waiting.get(), BaseException):
                raise said
            yield said
            if said[0] != _MESSAGE:
                return


class FanOut(Generic[Item, Result]):
    """Workers that take items, for as long as the ``with`` block lasts; items may be given in several rounds."""

    def __init__(
        self, make: Callable[[], Work[Result]], workers: int | None, share: Share | None = None, *,
        reads: Sequence[Path] = (), name: str = "worker", say: Callable[[str], None] = lambda _text: None,
    ) -> None:  # fmt: skip
        """Declare the workers; they start with the first round.

        Args:
            make: Makes a worker's function ready, once per worker: loads the model, opens the files. Must pickle.
            workers: How many; those that the cluster has no room for join when it has. None or 0: this process.
            share: What each takes.
            reads: Folders and files of this machine that workers open with :func:`slm_ray.runtime.shared.local_copy`.
            name: What to call a worker in messages.
            say: Told of lost workers, and of a cluster that has no room yet.
        """
        self.workers, self.share, self.name = workers or 0, share or Share(), name
        self._make, self._reads, self._say = make, reads, say
        self._here: Work[Result] | None = None
        # The stream of a worker's answers -> the worker, and the item it works on; no place: it is being set up.
        self._busy: dict[Any, tuple[Any, int | None, Item | None]] = {}
        self._idle: list[Any] = []
        self._shared_make: Any = None

    def __enter__(self) -> FanOut[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and with them what they hold."""
        self._end([*(actor for actor, *_ in self._busy.values()), *self._idle])
        self._busy, self._idle, self._here = {}, [], None

    def map(self, items: Iterable[Item]) -> list[Result]:
        """The results of items, in the order of the items; see :meth:`run`."""
        return [result for _, result in sorted(self.run(items), key=lambda found: found[0])]

    def run(
        self,
        items: Iterable[Item],
        *,
        receive: Callable[[int, Any], None] | None = None,
        remaining: Callable[[int, Item], Item] | None = None,
        on_failure: Callable[[int, UserError], None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Give out items, and yield each one's place and result as soon as it is there.

        ``remaining``: What is left of an item whose worker was lost; by default the whole item.
        """
        if not self.workers:
            yield from self._run_here(items, receive, on_failure)
            return
        import ray

        self._check_room(ray)
        wanted = min(self.workers, len(items)) if isinstance(items, Sized) else self.workers
        source, again, lost = enumerate(items), deque[tuple[int, Item]](), Counter[int | None]()

        def fail(index: int, error: UserError) -> None:
            if on_failure is None:
                raise error
            on_failure(index, error)

        try:
            while wanted:
                while self._idle and (entry := again.popleft() if again else next(source, None)):
                    actor = self._idle.pop()
                    stream = actor.run.options(num_returns="streaming").remote(entry[1], receive is not None)
                    self._busy[stream] = (actor, *entry)
                if self._idle and not self._working():
                    return
                self._start(ray, wanted - len(self._busy) - len(self._idle))
                stream = self._first(ray)
                actor, index, item = self._busy[stream]
                kind, value = self._answer(ray, stream)
                if kind == _DEATH:
                    lost[index] += 1
                    if index is None:
                        if lost[index] > _RETRIES + self.workers:
                            raise UserError(f"a {self.name} dies again and again as it starts: {_MEMORY}")
                    elif lost[index] > _RETRIES:
                        fail(index, UserError(f"the {self.name} of item {index} died {lost[index]} times: {_MEMORY}"))
                    else:
                        self._say(f"a {self.name} died ({value}); its item is given to another one")
                        assert item is not None
                        again.append((index, remaining(index, item) if remaining else item))
                    continue
                if kind == _MESSAGE:
                    assert receive is not None and index is not None
                    receive(index, value)
                    continue
                del self._busy[stream]
                if index is None and kind == _PROBLEM:
                    self._end([actor])
                    raise value
                self._idle.append(actor)
                if index is None:
                    lost[None] = 0
                elif kind == _PROBLEM:
                    fail(index, value)
                else:
                    yield index, value
        finally:
            working = self._working()
            self._end([self._busy.pop(stream)[0] for stream in working])

    def _answer(self, ray: Any, stream: Any) -> tuple[str, Any]:
        """A worker's next answer; the name of the error where it has died."""
        from ray.exceptions import RayError, RayTaskError

        try:
            answer: tuple[str, Any] = ray.get(next(stream))
        except RayTaskError:
            raise  # a fault of ours in the worker, not its death
        except (RayError, StopIteration) as error:
            self._end([self._busy.pop(stream)[0]])
            return _DEATH, type(error).__name__
        return answer

    def _working(self) -> list[Any]:
        """The streams of workers that have an item."""
        return [stream for stream, (_, index, _) in self._busy.items() if index is not None]

    def _run_here(
        self,
        items: Iterable[Item],
        receive: Callable[[int, Any], None] | None,
        on_failure: Callable[[int, UserError], None] | None,
    ) -> Iterator[tuple[int, Result]]:
        self._here = self._here or self._make()
        for index, item in enumerate(items):
            try:
                result = self._here(item, *((partial(receive, index),) if receive else ()))
            except UserError as error:
                if on_failure is None:
                    raise
                on_failure(index, error)
                continue
            yield index, result

    def _check_room(self, ray: Any) -> None:
        """Refuse what the cluster could never hold."""
        if self.share.how_many_fit(there := cluster_room()) < 1:
            has = ", ".join(f"{there.get(name, 0.0):g} {name}" for name in self.share.needs())
            raise UserError(f"a {self.name} needs {self.share}, and the Ray cluster has {has}: give it room")

    def _first(self, ray: Any) -> Any:
        """The first stream with an answer; says so where none comes for long because the cluster has no room."""
        streams = list(self._busy)
        ready, _ = ray.wait(streams, num_returns=1, timeout=_WAITING_SECONDS)
        if not ready:
            if not self._working():
                self._say(f"a {self.name} waits for {self.share} of the Ray cluster to be free")
            ready, _ = ray.wait(streams, num_returns=1)
        return ready[0]

    def _start(self, ray: Any, count: int) -> None:
        if count <= 0:
            return
        if self._shared_make is None:
            for place in self._reads:
                publish(place)
            self._shared_make = ray.put(self._make)
        options = {"num_cpus": self.share.cpus, "num_gpus": self.share.gpus}
        threads = int(self.share.cpus) or None
        for _ in range(count):
            actor = ray.remote(_Worker).options(**options).remote()
            stream = actor.set_up.options(num_returns="streaming").remote(self._shared_make, threads)
            self._busy[stream] = (actor, None, None)

    def _end(self, actors: list[Any]) -> None:
        if actors and (ray := sys.modules.get("ray")) and ray.is_initialized():
            for actor in actors:
                ray.kill(actor)
