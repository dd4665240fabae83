"""Capturing a store: attention inside documents, workers, resuming, and what is refused."""

from __future__ import annotations

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.distill.capture import SignalReader, capture
from slm_ray.distill.store import LogitStore
from slm_ray.models.teachers import Teacher
from slm_ray.records.base import write_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import write_json
from slm_ray.records.logits import CaptureProgress
from slm_ray.runtime.progress import Console
from tests.distill.store_cases import make_shards, make_teacher, request_of
from tests.models.tiny import NAMES

LENGTH, SEQUENCES = 64, 600  # three parts
SAMPLED = {"kind": "sampled", "draws": 20, "seed": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def shards(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", teacher, SEQUENCES, LENGTH)


@pytest.fixture(scope="module")
def store(teacher: Teacher, shards: TokenShards, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """An uninterrupted capture."""
    return again(teacher, shards, tmp_path_factory.mktemp("stores") / "store")[0]


def again(
    teacher: Teacher, shards: TokenShards, out: Path, workers: int = 0, threads: int = 1, **options: object
) -> tuple[LogitStore, str]:
    """A capture, and what it printed."""
    said, request = io.StringIO(), request_of(teacher, shards, **(options or SAMPLED))  # type: ignore[arg-type]
    console = Console(stream=said)
    store = capture(teacher, shards, request, out, console=console, workers=workers, threads=threads)
    return store, said.getvalue()


def unfinished(store: LogitStore, out: Path, finished: int) -> Path:
    """The work folder that a capture of this store leaves when it is killed after some parts."""
    work = out.with_name(f"{out.name}.partial")
    work.mkdir()
    write_record(work, CaptureProgress(request=store.request))
    for part in store.manifest.parts[:finished]:
        shutil.copy(store.folder / part.name, work)
        write_json((work / part.name).with_suffix(".json"), part.to_json())
    return work


@pytest.mark.parametrize("name", NAMES)
def test_separate_documents_are_seen_alone(name: str, tmp_path: Path) -> None:
    """What is stored of a document is what the teacher says of it when it runs over that document only."""
    teacher = make_teacher(tmp_path, name)
    shards = make_shards(tmp_path / "shards", teacher, 3, LENGTH)
    found = SignalReader(teacher, shards, request_of(teacher, shards, k=320)).read(0, 3)
    model = AutoModelForCausalLM.from_pretrained(teacher.folder, dtype=torch.float32).eval()
    rows, positions = shards.rows(np.arange(3)), shards.positions(np.arange(3))
    crossed = 0
    for row in range(3):
        starts = np.append(np.flatnonzero(positions[row] == 0), LENGTH)
        for start, end in itertools.pairwise(starts):
            with torch.no_grad():
                logits = model(torch.from_numpy(rows[row, start:end][None]).long()).logits[0].double()
            wanted = torch.log_softmax(logits, -1)[: LENGTH - 1 - start]
            ids = torch.from_numpy(found["ids"][row, start : min(end, LENGTH - 1)].astype(np.int64))
            stored = torch.from_numpy(found["log_probs"][row, start : min(end, LENGTH - 1)]).double()
            torch.testing.assert_close(stored, wanted.gather(1, ids), rtol=2e-3, atol=2e-3)
            crossed += start > 0
    assert crossed > 3
    joined = SignalReader(teacher, shards, request_of(teacher, shards, k=320, documents="joined")).read(0, 3)
    assert not np.allclose(joined["log_probs"], found["log_probs"], atol=0.05)


def test_the_manifest_says_what_the_store_is_made_of(store: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    manifest = store.manifest
    assert manifest.request.teacher_digest == teacher.digest
    assert manifest.request.tokens_digest == shards.digest
    assert [part.num_sequences for part in manifest.parts] == [256, 256, 88]
    assert manifest.flops == flops_per_token(teacher.architecture(), LENGTH) * shards.num_tokens
    assert manifest.seconds > 0
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "capture.log", "manifest.json", *(f"part-0000{number}.safetensors" for number in range(3))
    ]  # fmt: skip
    assert "capturing" in (store.folder / "capture.log").read_text()
    store.verify()


def test_two_workers_write_what_one_process_writes(
    one_ray: None, store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a capture worker needs 64 CPU, and the Ray cluster has 2 CPU"):
        again(teacher, shards, tmp_path / "other", 1, 64, **SAMPLED)
    other, said = again(teacher, shards, tmp_path / "other", 2, **SAMPLED)
    assert other.manifest.digest == store.manifest.digest and "capturing" in said


def test_finished_parts_are_not_captured_again(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    work = unfinished(store, tmp_path / "store", 2)
    kept = (work / "part-00001.safetensors").stat().st_mtime_ns
    (work / "part-00002.safetensors").write_bytes(b"half of a part that has no record")
    resumed, said = again(teacher, shards, tmp_path / "store")
    assert resumed.manifest.digest == store.manifest.digest
    assert (tmp_path / "store" / "part-00001.safetensors").stat().st_mtime_ns == kept
    assert "2 of 3 parts are there already" in said
    assert not work.exists()
    assert resumed.manifest.parts[:2] == store.manifest.parts[:2]


def test_a_finished_store_is_given_back_untouched(store: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    before = (store.folder / "manifest.json").stat().st_mtime_ns
    found, said = again(teacher, shards, store.folder)
    assert "holds this store already" in said
    assert found.manifest == store.manifest
    assert (store.folder / "manifest.json").stat().st_mtime_ns == before
    assert not store.folder.with_name("store.partial").exists()


def test_a_store_killed_before_it_took_its_name_takes_it(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path / "store.partial")
    found, _ = again(teacher, shards, tmp_path / "store")
    assert found.manifest.digest == store.manifest.digest and not (tmp_path / "store.partial").exists()


def test_another_request_is_refused_naming_the_difference(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    other = SAMPLED | {"draws": 21}
    with pytest.raises(UserError, match=r"holds a store of another request \(its draws is 20, not 21\)"):
        again(teacher, shards, store.folder, **other)
    unfinished(store, tmp_path / "store", 1)
    with pytest.raises(UserError, match=r"an unfinished store of another request \(its draws is 20, not 21\)"):
        again(teacher, shards, tmp_path / "store", **other)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no logit store"):
        again(teacher, shards, tmp_path / "notes")


def test_options_that_do_not_go_with_teacher_and_tokens_are_refused(
    teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    write_shards(tmp_path / "other", shards.ids, shards.document_starts, vocab_size=320, tokenizer_digest="f" * 64)
    with pytest.raises(UserError, match="were made with tokenizer ffffffffffffffff"):
        again(teacher, TokenShards.open(tmp_path / "other"), tmp_path / "store")
    assert not any(tmp_path.glob("store*"))
