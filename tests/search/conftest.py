"""Inputs of a tiny search, and one finished run of it that others are compared with: made once for all processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_ray.runtime.commands import run_command
from slm_ray.runtime.locks import held
from tests.search.tiny_run import Tiny, make_tiny, tiny_in
from tests.search.without_ray import run_without_ray

Command = Callable[[Iterable[Any]], int]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made by the first of pytest's processes that wants it; nobody may change what is in it."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    with held(place.with_suffix(".lock")):
        if not (place / "made").exists():
            place.mkdir(exist_ok=True)
            make(place / "it")
            (place / "made").touch()
    return place / "it"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    inputs = tiny_in(made_once(tmp_path_factory, "inputs", make_tiny))
    return replace(inputs, cache=tmp_path_factory.mktemp("tiny") / "cache")


@pytest.fixture
def command(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The real command in this process, without Ray: one candidate after the other; gives the exit status."""
    return command_without_ray(tiny, monkeypatch)


def command_without_ray(tiny: Tiny, patch: pytest.MonkeyPatch) -> Command:
    """The same, for as long as ``patch`` holds."""
    from slm_ray.search.command import main

    run_without_ray(patch)
    patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    return lambda arguments: run_command(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted search."""

    def run(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            assert command_without_ray(tiny, patch)(tiny.arguments(out)) == 0

    return made_once(tmp_path_factory, "finished", run)
