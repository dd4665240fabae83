"""Inputs of a tiny search, made once, and one finished run of it that others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from slm_ray.core.commands import run_command
from tests.search.tiny_run import Tiny, make_tiny
from tests.search.without_ray import run_without_ray

Command = Callable[[list[str]], int]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def search(tiny: Tiny) -> Command:
    """The real command, in this process, with the cache of the tiny inputs; gives the exit status."""

    def run(arguments: list[str]) -> int:
        from slm_ray.search.command import main

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
            return run_command(main, arguments)

    return run


@pytest.fixture
def command(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[Any]], int]:
    """The same without Ray: candidates are measured in this process, one after the other."""
    from slm_ray.search.command import main

    run_without_ray(monkeypatch)
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    return lambda arguments: run_command(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def finished(tiny: Tiny, search: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted search with two workers."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert search(tiny.arguments(out)) == 0
    return out
