"""What every test stands on: no network, a cache folder of its own, one thread."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that needs the network must fail at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices run slower on many threads
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests.references and tests.models.tiny, also under plain `pytest`

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))
