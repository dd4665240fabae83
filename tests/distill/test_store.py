"""What a logit store gives back, and what it says when it is damaged or of another run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.config.errors import UserError
from slm_ray.data.order import drawn_sequences
from slm_ray.data.shards import TokenShards
from slm_ray.distill.command import main
from slm_ray.distill.store import LogitStore
from slm_ray.models.teachers import Teacher
from slm_ray.runtime.commands import run_command
from tests.distill.store_cases import VOCABULARY, make_shards, make_store, make_teacher

LENGTH, SEQUENCES = 40, 10
ORDER = np.array([7, 0, 9, 3, 3])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def shards(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", teacher, SEQUENCES, LENGTH)


@pytest.fixture(scope="module")
def top(teacher: Teacher, shards: TokenShards, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    place = tmp_path_factory.mktemp("top") / "store"
    return make_store(place, teacher, shards, kind="top-k", k=8, documents="joined", temperature=1.5)


@pytest.fixture(scope="module")
def sampled(teacher: Teacher, shards: TokenShards, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    place = tmp_path_factory.mktemp("sampled") / "store"
    return make_store(place, teacher, shards, kind="sampled", draws=300, documents="joined", seed=5)


def log_probs_of(teacher: Teacher, shards: TokenShards, indices: np.ndarray, temperature: float) -> torch.Tensor:
    """``[tokens, vocabulary]`` by transformers' own loading and forward pass."""
    model = AutoModelForCausalLM.from_pretrained(teacher.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(shards.rows(indices)).long()).logits[:, :-1]
    return torch.log_softmax(logits.double() / temperature, -1).flatten(0, 1)


def test_top_k_and_tail_are_the_teachers(top: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    wanted = log_probs_of(teacher, shards, ORDER, 1.5)
    found = top.signal(ORDER)
    assert (found.kind, found.temperature) == ("top-k-tail", 1.5)
    assert found.ids.shape == (len(ORDER) * (LENGTH - 1), 8)
    values, _ = wanted.topk(8)
    torch.testing.assert_close(found.log_probs.double(), values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(wanted.gather(1, found.ids), values, rtol=1e-3, atol=1e-3)
    tail = torch.log1p(-values.exp().sum(1))
    torch.testing.assert_close(found.tail_log_mass.double(), tail, rtol=2e-3, atol=1e-3)
    head = top.signal(ORDER, "top-k")
    assert head.kind == "top-k" and head.tail_log_mass is None and torch.equal(head.ids, found.ids)


def test_draws_are_the_teachers_and_add_up(sampled: LogitStore, teacher: Teacher, shards: TokenShards) -> None:
    found = sampled.signal(ORDER)
    shares = found.log_probs.exp().double()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares), dtype=torch.float64))
    used = found.log_probs > -math.inf
    assert used.any(0).all()  # no wider than the longest token needs
    for ids, row in zip(found.ids.tolist(), used, strict=True):
        kept = [id for id, is_used in zip(ids, row.tolist(), strict=True) if is_used]
        assert len(set(kept)) == len(kept)
    drawn = torch.zeros(len(shares), VOCABULARY, dtype=torch.float64).scatter_add_(1, found.ids, shares)
    wanted = log_probs_of(teacher, shards, ORDER, 1.0).exp()
    # Multinomial: the squared distance has expectation (1 - sum p^2) / draws.
    distance = (drawn - wanted).square().sum(1).mean().item()
    expected = ((1 - wanted.square().sum(1)) / 300).mean().item()
    assert 0.8 * expected < distance < 1.2 * expected


def test_a_store_gives_only_what_it_has(top: LogitStore, sampled: LogitStore) -> None:
    with pytest.raises(UserError, match="is top-k and gives top-k-tail or top-k, not sampled"):
        top.signal(ORDER, "sampled")
    with pytest.raises(UserError, match="is sampled and gives sampled, not top-k-tail"):
        sampled.signal(ORDER, "top-k-tail")
    with pytest.raises(IndexError):
        top.signal(np.array([SEQUENCES]))


def test_a_store_of_another_run_is_refused_naming_both_sides(
    top: LogitStore, teacher: Teacher, shards: TokenShards
) -> None:
    own = {
        "teacher_digest": teacher.digest, "tokenizer_digest": shards.tokenizer_digest, "tokens_digest": shards.digest,
        "vocab_size": VOCABULARY, "temperature": 1.5, "documents": "joined",
    }  # fmt: skip
    top.check_matches(**own)
    for name, other in (
        ("teacher_digest", "0" * 16), ("tokenizer_digest", "1" * 64), ("tokens_digest", "2" * 64), ("vocab_size", 319),
        ("temperature", 1.0), ("documents", "separate"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="does not match this run") as error:
            top.check_matches(**{**own, name: other})
        assert str(own[name]) in str(error.value) and str(other) in str(error.value)


@pytest.fixture()
def copy(sampled: LogitStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sampled.folder, tmp_path / "copy"))


def test_a_store_cut_short_is_refused_with_both_sizes(copy: Path) -> None:
    path = copy / "part-00001.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(UserError, match=rf"part-00001.safetensors .*has {size - 100:,} bytes instead of {size:,}"):
        LogitStore.open(copy)
    path.unlink()
    with pytest.raises(UserError, match=rf"part-00001.safetensors .*missing; it had {size:,} bytes"):
        LogitStore.open(copy)


def test_every_flipped_byte_is_found_by_reading_or_verifying(copy: Path) -> None:
    path = copy / "part-00001.safetensors"
    data = path.read_bytes()
    for place in range(0, len(data), 211):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"part-00001.safetensors is not what was written"):
            LogitStore.open(copy).verify()
        header = 8 + int.from_bytes(data[:8], "little")
        if place >= header:  # in the header, names and padding can change without harm
            with pytest.raises(UserError, match=r"part-00001.safetensors is not what was written"):
                LogitStore.open(copy).signal(np.arange(SEQUENCES))
    path.write_bytes(data)
    LogitStore.open(copy).verify()


def test_an_edited_manifest_and_a_folder_without_one_are_refused(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["request"]["draws"] = 7
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json is not what was written"):
        LogitStore.open(copy)
    with pytest.raises(UserError, match="holds no logit store"):
        LogitStore.open(tmp_path)
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(UserError, match="is not finished: run the same"):
        LogitStore.open(tmp_path / "new")


def test_part_of_the_shards_is_drawn_and_read_by_their_own_numbers(
    top: LogitStore, sampled: LogitStore, teacher: Teacher, shards: TokenShards, tmp_path: Path
) -> None:
    drawn = drawn_sequences(SEQUENCES, 4)
    assert len(set(drawn.tolist())) == 4 and drawn.tolist() != [0, 1, 2, 3]
    for whole, options in (
        (top, {"kind": "top-k", "k": 8, "temperature": 1.5}), (sampled, {"kind": "sampled", "draws": 300, "seed": 5}),
    ):  # fmt: skip
        place = tmp_path / whole.request.kind
        some = make_store(place, teacher, shards, 3, documents="joined", num_sequences=4, **options)
        assert (some.num_sequences, some.manifest.num_tokens) == (4, 4 * LENGTH)
        found, wanted = some.signal(drawn[[2, 0]]), whole.signal(drawn[[2, 0]])
        assert torch.equal(found.ids, wanted.ids) and torch.equal(found.log_probs, wanted.log_probs)
        missing = next(number for number in range(SEQUENCES) if number not in drawn)
        with pytest.raises(IndexError, match=f"no sequence {missing}: 4 of 10 sequences are in"):
            some.signal(np.array([missing]))


@pytest.mark.parametrize("kind", ["top-k", "sampled"])
def test_rows_that_pad_a_vocabulary_are_no_tokens(kind: str, shards: TokenShards, tmp_path: Path) -> None:
    """A teacher of 384 rows for 320 tokens: its distribution over the 320."""
    teacher = make_teacher(tmp_path, rows=384)
    store = make_store(tmp_path / "store", teacher, shards, kind=kind, k=320, draws=3000, documents="joined")
    model = AutoModelForCausalLM.from_pretrained(teacher.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(shards.rows(ORDER)).long()).logits[:, :-1, :VOCABULARY]
    wanted = torch.log_softmax(logits.double(), -1).flatten(0, 1)
    found = store.signal(ORDER)
    assert found.num_rows == VOCABULARY and int(found.ids.max()) < VOCABULARY
    if kind == "top-k":
        torch.testing.assert_close(found.log_probs.double(), wanted.gather(1, found.ids), rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(found.log_probs.exp().sum(1), torch.ones(len(wanted)))
    for rows in (320, 384, 576):
        store.check_matches(
            teacher_digest=teacher.digest, tokenizer_digest=shards.tokenizer_digest, tokens_digest=shards.digest,
            vocab_size=rows,
        )  # fmt: skip


def test_ids_without_a_row_of_the_teacher_are_refused_and_text_without_them_is_not(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, rows=VOCABULARY - 1)  # a token was added without resizing
    text = make_shards(tmp_path / "text", teacher, 4, LENGTH, ids=VOCABULARY - 1)
    assert make_store(tmp_path / "store", teacher, text, kind="top-k", k=4).request.vocab_size == VOCABULARY - 1
    with_it = make_shards(tmp_path / "with", teacher, 40, LENGTH)
    with pytest.raises(UserError, match=r"has token id 319, and the teacher .* has 319 embedding rows"):
        make_store(tmp_path / "other", teacher, with_it, kind="top-k", k=4)


def test_stores_and_shards_are_verified_on_request(
    copy: Path, shards: TokenShards, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (copy, shards.folder):
        assert run_command(main, ["--verify", str(folder)]) == 0
        assert "as written" in capsys.readouterr().out
    path = next(copy.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run_command(main, ["--verify", str(copy)]) == 2
    assert "is not what was written (its digest differs)" in capsys.readouterr().err
    assert run_command(main, ["--verify", str(copy), "--k", "3"]) == 2
