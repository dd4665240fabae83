"""Capturing a store: attention inside documents, workers, resuming, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.distill.capture import capture
from slm_ray.distill.capture_reader import SignalReader, draw_points
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.distill.store import LogitStore
from slm_ray.models.teachers import Teacher
from slm_ray.records.cost import flops_per_token
from slm_ray.runtime.progress import Console
from tests.distill.store_cases import make_shards, make_teacher
from tests.models.tiny import NAMES

LENGTH, SEQUENCES = 64, 600  # three parts
SAMPLED = CaptureSettings(kind="sampled", draws=20, seed=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def shards(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", teacher, SEQUENCES, LENGTH)


@pytest.fixture(scope="module")
def store(one_ray: None, teacher: Teacher, shards: TokenShards, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """An uninterrupted capture by two workers."""
    out = tmp_path_factory.mktemp("stores") / "store"
    return capture(teacher, shards, SAMPLED, out, console=Console(stream=io.StringIO()), workers=2, threads=1)


def again(
    teacher: Teacher, shards: TokenShards, out: Path, settings: CaptureSettings = SAMPLED
) -> tuple[LogitStore, str]:
    """A capture by one worker, and what it said."""
    said = io.StringIO()
    return capture(teacher, shards, settings, out, console=Console(stream=said), workers=1, threads=1), said.getvalue()


def unfinished(store: LogitStore, out: Path, finished: int) -> Path:
    """The work folder that a capture of this store leaves when it is killed after some parts."""
    work = out.with_name(f"{out.name}.partial")
    work.mkdir()
    (work / "request.json").write_text(json.dumps(store.manifest["request"]))
    for part in store.manifest["parts"][:finished]:
        shutil.copy(store.folder / part["name"], work)
        (work / part["name"]).with_suffix(".json").write_text(json.dumps(part))
    return work


@pytest.mark.parametrize("name", NAMES)
def test_separate_documents_are_seen_alone(name: str, tmp_path: Path) -> None:
    """What is stored of a document is what the teacher says of it when it runs over that document only."""
    teacher = make_teacher(tmp_path, name)
    shards = make_shards(tmp_path / "shards", teacher, 3, LENGTH)
    found = SignalReader(teacher, shards, CaptureSettings(kind="top-k", k=320)).read(0, 3)
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
    joined = SignalReader(teacher, shards, CaptureSettings(kind="top-k", k=320, documents="joined")).read(0, 3)
    assert not np.allclose(joined["log_probs"], found["log_probs"], atol=0.05)


def test_the_manifest_says_what_the_store_is_made_of(store: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    manifest = store.manifest
    assert manifest["request"]["teacher_digest"] == teacher.digest
    assert manifest["request"]["tokens_digest"] == shards.digest
    assert [part["num_sequences"] for part in manifest["parts"]] == [256, 256, 88]
    assert manifest["flops"] == flops_per_token(teacher.architecture(), LENGTH) * shards.num_tokens
    assert manifest["seconds"] > 0
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "capture.log", "manifest.json", *(f"part-0000{number}.safetensors" for number in range(3))
    ]  # fmt: skip
    assert "capturing" in (store.folder / "capture.log").read_text()
    store.verify()


def test_one_worker_writes_what_two_write(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    other, _ = again(teacher, shards, tmp_path / "other")
    assert other.digest == store.digest


def test_finished_parts_are_not_captured_again(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    work = unfinished(store, tmp_path / "store", 2)
    kept = (work / "part-00001.safetensors").stat().st_mtime_ns
    (work / "part-00002.safetensors").write_bytes(b"half of a part that has no record")
    resumed, said = again(teacher, shards, tmp_path / "store")
    assert resumed.digest == store.digest
    assert (tmp_path / "store" / "part-00001.safetensors").stat().st_mtime_ns == kept
    assert "2 of 3 parts are there already" in said
    assert not work.exists()
    assert [part["seconds"] for part in resumed.manifest["parts"]][:2] == [
        part["seconds"] for part in store.manifest["parts"]
    ][:2]


def test_a_finished_store_is_given_back_untouched(store: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    before = (store.folder / "manifest.json").stat().st_mtime_ns
    found, said = again(teacher, shards, store.folder)
    assert "holds this store already" in said
    assert found.digest == store.digest and (store.folder / "manifest.json").stat().st_mtime_ns == before
    assert not store.folder.with_name("store.partial").exists()


def test_a_store_killed_before_it_took_its_name_takes_it(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path / "store.partial")
    found, _ = again(teacher, shards, tmp_path / "store")
    assert found.digest == store.digest and not (tmp_path / "store.partial").exists()


def test_another_request_is_refused_naming_the_difference(
    store: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    other = CaptureSettings(kind="sampled", draws=21, seed=3)
    with pytest.raises(UserError, match=r"holds a store of another request \(its draws is 20, not 21\)"):
        again(teacher, shards, store.folder, other)
    unfinished(store, tmp_path / "store", 1)
    with pytest.raises(UserError, match=r"an unfinished store of another request \(its draws is 20, not 21\)"):
        again(teacher, shards, tmp_path / "store", other)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no logit store"):
        again(teacher, shards, tmp_path / "notes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "top-p"}, "unknown kind of logit store 'top-p'"),
        ({"kind": "top-k", "k": 321}, "--k must be from 1 to the teacher's 320 words, got 321"),
        ({"draws": 0}, "--draws must be from 1 to 65,535, got 0"),
        ({"temperature": 0.0}, "--temperature must be above 0 and finite, got 0"),
        ({"documents": "mixed"}, "unknown way with documents 'mixed'"),
    ],
)
def test_bad_settings_are_one_sentence(
    teacher: Teacher, shards: TokenShards, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    settings = CaptureSettings(**{"kind": "sampled", **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        again(teacher, shards, tmp_path / "store", settings)
    assert not any(tmp_path.glob("store*"))


def test_tokens_of_another_tokenizer_and_long_sequences_are_refused(
    teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    write_shards(tmp_path / "other", shards.ids, shards.document_starts, vocab_size=320, tokenizer_digest="f" * 64)
    other = TokenShards.open(tmp_path / "other")
    with pytest.raises(UserError, match="were made with tokenizer ffffffffffffffff"):
        again(teacher, other, tmp_path / "store")
    write_shards(
        tmp_path / "long", np.zeros((2, 65), dtype=np.int32), np.array([0]), vocab_size=320,
        tokenizer_digest=shards.tokenizer_digest,
    )  # fmt: skip
    long = TokenShards.open(tmp_path / "long")
    with pytest.raises(UserError, match="--sequence-length 65 is over the teacher's 64 positions"):
        again(teacher, long, tmp_path / "store")


def test_more_threads_than_the_cluster_has_are_said_at_once(
    one_ray: None, teacher: Teacher, shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_ray.distill.capture_workers._PATIENCE_SECONDS", 0.0)
    console = Console(stream=io.StringIO())
    with pytest.raises(UserError, match="a capture worker needs 64 CPU, and 2 CPU of the Ray cluster are free"):
        capture(teacher, shards, SAMPLED, tmp_path / "store", console=console, workers=1, threads=64)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    one_ray: None, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    """What goes wrong in a worker reaches the user as it was said there."""
    work = tmp_path / "store.partial"
    (work / "part-00001.safetensors").mkdir(parents=True)  # a folder where a part has to go
    with pytest.raises(UserError, match=r"writing .*part-00001.safetensors: "):
        again(teacher, shards, tmp_path / "store")


def test_other_seeds_give_other_draws(teacher: Teacher, shards: TokenShards) -> None:
    settings = (CaptureSettings(kind="sampled", draws=20, seed=seed) for seed in (3, 4))
    first, second = (SignalReader(teacher, shards, one).read(0, 1)["ids"] for one in settings)
    assert first.tolist() != second.tolist()


def test_draws_depend_on_the_seed_and_the_sequence_alone() -> None:
    assert np.array_equal(draw_points(1, 2, 5, 7), draw_points(1, 2, 5, 7))
    different = [draw_points(1, 2, 5, 7), draw_points(1, 3, 5, 7), draw_points(2, 2, 5, 7)]
    assert len({points.tobytes() for points in different}) == 3
    assert all((points >= 0).all() and (points < 1).all() for points in different)
