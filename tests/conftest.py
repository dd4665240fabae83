"""What every test stands on: no network, a cache folder of its own, one thread."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that needs the network must fail at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices run slower on many threads
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a test that calls Ray without a session would leave one to all others
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests.references and tests.models.tiny, also under plain `pytest`

import pytest

# Files that take longest, which are begun first: one that is begun last leaves all processes but its own idle.
_LONG = (
    "pretrain/test_training_resume", "search/test_resume", "pretrain/test_engines", "test_pipeline",
    "pretrain/test_command", "pretrain/test_growth", "test_logits_command",
    "pretrain/test_torchrun", "sweep/test_on_tune", "search/test_baselines", "pretrain/test_scratch_command",
    "test_pinned",
)  # fmt: skip


def pytest_configure() -> None:
    """Have Ctrl-C end what tests start: shells let what they run in the background (&) ignore it, for good."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    here = Path(__file__).parent
    place = {here / f"{name}.py": number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all commands of a file: a command that finds Ray running in its process starts none."""
    from slm_ray.runtime.session import ray_session

    with pytest.MonkeyPatch.context() as patch:  # what Ray's processes are started with
        patch.setenv("SLM_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        with ray_session(None, 2):
            yield


@contextlib.contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """While it holds, the system writes a file up to so many bytes and refuses the rest."""
    return limited
