"""Places behind an address (``s3://``, ``gs://``, ``abfs://``, ``hdfs://``, ``file://``), reached through pyarrow.

Logins come from the environment, as the providers' own tools read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact, secret_in

# pyarrow would try to reach Google's storage for 15 minutes.
_GCS_SECONDS = 60


def is_address(location: str) -> bool:
    """Whether a place is named by an address and not by a path."""
    return "://" in location


def check_location(location: str) -> None:
    """Refuse an address that names no place, or that holds a login.

    Raises:
        UserError: What is wrong, and how to say it.
    """
    scheme, separator, place = location.partition("://")
    if secret_in(location):
        raise UserError(
            f"--storage {redact(location)} holds a login, which would end in the run's records: give it by the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if not (place if separator else scheme).strip("/") and location != "/":
        raise UserError(f"--storage {location} names no place: give e.g. s3://bucket/folder")


def below(location: str, name: str) -> str:
    """The place of a name inside of another place; options behind a ``?`` stay behind."""
    place, mark, options = location.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def open_filesystem(address: str) -> tuple[Any, str]:
    """Pyarrow's file system of an address, and the path in it.

    Raises:
        UserError: No file system takes the address, or it cannot be reached.
    """
    from pyarrow import fs

    uri = address
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GCS_SECONDS}"
    with reaching(address):
        filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what pyarrow raises into one sentence."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        reason = redact(str(error)).split("\n")[0].split("; Details")[0].rstrip(".")[:300]
        raise UserError(
            f"the storage {redact(address)} cannot be used ({reason}): check the address, the login and the network"
        ) from error
