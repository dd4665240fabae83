"""What every test stands on: no network, a cache folder of its own, one thread."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that needs the network must fail at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices run slower on many threads
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests.references and tests.models.tiny, also under plain `pytest`

import pytest

# What DeepSpeed compiles, in the better part of a minute, is kept for all tests, and for the next time they are run.
_EXTENSIONS = Path(tempfile.gettempdir()) / f"slm_ray-test-extensions-{os.getuid()}"
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_EXTENSIONS))
for left in _EXTENSIONS.glob("*/lock"):  # of tests that were killed while they compiled: torch would wait for ever
    if time.time() - left.stat().st_mtime > 300:
        left.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))
