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
    "pretrain/test_training_resume", "search/test_resume", "pretrain/test_engines", "studies/test_on_tune",
)  # fmt: skip
_FILES_ON_RAY = pytest.StashKey[set[Path]]()


def pytest_configure() -> None:
    """Have Ctrl-C end what tests start: shells let what they run in the background (&) ignore it, for good."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs Ray as slow; put the longest files first, and then those that share one Ray."""
    here = Path(__file__).parent
    place = {here / f"{name}.py": number for number, name in enumerate(_LONG)}
    on_ray = [item for item in items if "one_ray" in getattr(item, "fixturenames", ())]
    for item in on_ray:
        item.add_marker("slow")
    files = config.stash[_FILES_ON_RAY] = {item.path for item in on_ray}
    items.sort(key=lambda item: place.get(item.path, len(place) + (item.path not in files)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def _ray() -> Iterator[contextlib.ExitStack]:
    """What ends the process's Ray, if it has one."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", autouse=True)
def _ray_only_where_wanted(request: pytest.FixtureRequest, _ray: contextlib.ExitStack) -> None:
    if request.path not in request.config.stash[_FILES_ON_RAY]:
        _ray.close()


@pytest.fixture(scope="module")
def one_ray(_ray: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One Ray for all files that want it: a command that finds Ray running in its process starts none."""
    import ray

    from slm_ray.runtime.session import ray_session

    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:  # what Ray's processes are started with
        patch.setenv("SLM_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        _ray.enter_context(ray_session(None, 2))


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
