"""Ray's client: a command on the head of a cluster that this machine is not part of."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError, first_line
from slm_ray.runtime.addresses import knock, split_address
from slm_ray.runtime.head_command import HeadCommand
from slm_ray.runtime.transfers import Head

_CLIENT = "ray://"
_ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
_ANSWER_SECONDS = 120.0
_DIED_IN_ITS_FORK = "Starting Ray client server failed"
_TRIES, _BETWEEN_SECONDS = 5, 1.0


def client_address(words: Sequence[str]) -> str | None:
    """What a command's words give as the address of Ray's client; None where they give none or another kind."""
    for index, word in enumerate(words):
        value = word.partition("=")[2] if word.startswith("--address=") else ""
        if word == "--address" and index + 1 < len(words):
            value = words[index + 1]
        if value.startswith(_CLIENT):
            return value
    return None


class ActorHead:
    """A :class:`HeadCommand` as an actor on the head."""

    def __init__(self, ray: Any, actor: Any, address: str) -> None:
        self._ray, self._actor, self._address = ray, actor, address

    def call(self, method: str, *args: Any) -> Any:
        """See :class:`Head`."""
        try:
            return self._ray.get(getattr(self._actor, method).remote(*args), timeout=_ANSWER_SECONDS)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise UserError(
                f"the connection to {self._address} was lost ({first_line(error, 120)}): what was finished is kept on "
                "the head; continue with --resume RUN and the same --address"
            ) from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[tuple[Head, str]]:
    """Have a command on the head inside the block, which ends with it.

    Args:
        address: ``ray://HEAD:10001``.

    Yields:
        The head, and the address by which it joins its own cluster.

    Raises:
        UserError: It is no address, or cannot be reached.
    """
    import ray

    place = split_address(address.removeprefix(_CLIENT))
    if place is None:
        raise UserError(f"--address {address} has no port: give it as {_CLIENT}HEAD:10001")
    try:
        knock(*place, seconds=10)
        _join(ray, address)
    except Exception as error:
        # A refused connection, no answer (a token that is missing on one side), or a Ray or Python of another version.
        raise UserError(
            f"--address {address} could not be joined ({_reason(error)}): check the address, that Ray and "
            "Python have the head's versions, and that RAY_AUTH_MODE and the token are the head's"
        ) from error
    try:
        actor = ray.remote(**_ON_HEAD)(HeadCommand).remote(_name_of_here())
        try:
            cluster = ray.get(actor.cluster.remote(), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the head at {address} cannot run commands ({first_line(error, 160)}): see that slm_ray is installed "
                "there, in the Python that Ray runs in"
            ) from error
        yield ActorHead(ray, actor, address), cluster
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Connect to a head, which starts a process for it.

    One in some ten of these dies in its fork, of a race in gRPC; the next one is as good as any. See
    https://github.com/ray-project/ray/issues/63202.
    """
    for left in reversed(range(_TRIES)):
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionAbortedError as error:
            if not left or _DIED_IN_ITS_FORK not in str(error):
                raise
            time.sleep(_BETWEEN_SECONDS)


def _reason(error: Exception) -> str:
    """What went wrong, in a line: the last one where it happened on the head, whose answer is a traceback."""
    last = str(error).strip().rpartition("\n")[2] if isinstance(error, ConnectionAbortedError) else ""
    return last[:160] or first_line(error, 160)


def _name_of_here() -> str:
    """A name for this folder of this machine, and of nobody else's."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user, as in some containers
        user = str(os.getuid())
    return f"{Path.cwd().name or 'root'}-{digest_json([platform.node(), user, str(Path.cwd())])[:16]}"
