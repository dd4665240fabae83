"""A limit on file sizes, as a stand-in for a disk that fills up half way through a write."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator

import pytest


@contextlib.contextmanager
def _limited(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """While it holds, the system writes a file up to so many bytes and refuses the rest."""
    return _limited
