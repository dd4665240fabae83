"""Shards made in parallel, against what one process would do in a few lines."""

import errno
import io
import json
import os

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.data import prepare as module
from slm_ray.data.blocks import Piece, cut_blocks, pack_block
from slm_ray.data.corpus import Corpus, Document
from slm_ray.data.load import load_corpus
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.split import part_of
from slm_ray.data.tokenizers import begin_of, tokenizer_digest
from slm_ray.runtime.progress import Console
from tests.data.conftest import make_texts

LENGTH = 32


@pytest.fixture
def small_blocks(monkeypatch):
    """Sizes at which a few hundred kilobytes are what terabytes are otherwise."""
    monkeypatch.setattr(module, "_LEAST_BLOCK_BYTES", 1 << 12)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    def call(corpus, part="train", *, cache=tmp_path / "shards", num_tokens=None, length=LENGTH, workers=0, said=None):
        return prepare_shards(
            corpus, tokenizer, part, sequence_length=length, num_tokens=num_tokens, cache=cache,
            console=Console(stream=said or io.StringIO()), workers=workers,
        )  # fmt: skip

    return call


def jsonl(path, texts, **fields) -> Corpus:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **fields}) + "\n" for text in texts))
    return load_corpus(str(path))


def all_rows(shards):
    return shards.rows(np.arange(shards.num_sequences))


def documents_in(shards):
    """The token ids between starts, in the order of the shards, without separators; stretches of documents too."""
    flat, positions = all_rows(shards).reshape(-1), shards.positions(np.arange(shards.num_sequences)).reshape(-1)
    found, current = [], []
    for place, (id, position) in enumerate(zip(flat.tolist(), positions.tolist(), strict=True)):
        if position == 0 and place % shards.sequence_length != 0:
            found.append(current)
            current = []
        current.append(id)
    return [[id for id in ids if id != shards.separator] for ids in [*found, current]]


class TestBlocks:
    def test_documents_of_the_part_in_order_none_lost_none_cut(self, texts):
        documents = [Document("", text) for text in [*texts, " ", ""]]
        for part in ("calibration", "train", "held_out"):
            blocks = list(cut_blocks(documents, part, 0, 1 << 64, 3000))
            pieces = [piece for block in blocks for piece in block]
            assert [piece.text for piece in pieces] == [text for text in texts if part_of(text) == part]
            assert all(piece.begins and piece.ends for piece in pieces)
            for block in blocks[:-1]:
                assert sum(len(piece.text.encode()) for piece in block[:-1]) < 3000
                assert sum(len(piece.text.encode()) for piece in block) >= 3000

    def test_a_long_document_goes_on_in_the_next_block(self, tokenizer):
        text = next(text for text in (f"word{n} " * 90_000 for n in range(20)) if part_of(text) == "train")
        blocks = list(cut_blocks([Document("", text)], "train", 0, 1 << 64, 1 << 17))
        assert len(blocks) > 2
        assert "".join(piece.text for block in blocks for piece in block) == text
        packed = [pack_block("", block, tokenizer.backend_tokenizer, 0, 1) for block in blocks]
        assert [len(block.starts) for block in packed] == [1] + [0] * (len(packed) - 1)
        assert [int((block.ids == 0).sum()) for block in packed] == [0] * (len(packed) - 1) + [1]
        ids = [id for block in packed for id in block.ids.reshape(-1).tolist() if id != 0]
        assert tokenizer.backend_tokenizer.decode(ids) == text

    def test_documents_and_sequences_begin_with_what_the_tokenizer_puts_there(self, tokenizer):
        pieces = [Piece(text, True, True) for text in make_texts(40, words=20)]
        backend, begin = tokenizer.backend_tokenizer, 1
        plain = pack_block("", pieces, backend, 0, 9)
        packed = pack_block("", pieces, backend, 0, 10, begin=begin)
        assert (packed.ids[:, 0] == begin).all() and (packed.ids.reshape(-1)[packed.starts] == begin).all()
        flat = packed.ids[:, 1:].reshape(-1)
        starts = packed.starts // 10 * 9 + packed.starts % 10 - 1
        words = np.delete(flat, starts)  # without what stands before documents
        common = min(len(words), plain.ids.size)
        assert np.array_equal(words[:common], plain.ids.reshape(-1)[:common]) and len(packed.starts) > 30
        assert packed.num_bytes == len(backend.decode([id for id in words.tolist() if id]).encode())
        assert begin_of(tokenizer) is None

def packed_by_hand(texts, tokenizer, block_bytes, length):
    """What the shards must be: the whole sequences of blocks."""
    blocks, block, filled = [], [], 0
    for text in texts:
        if part_of(text) == "train":
            block += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            filled += len(text.encode())
            if filled >= block_bytes:
                blocks.append(block)
                block, filled = [], 0
    blocks.append(block)
    whole = [id for block in blocks for id in block[: len(block) // length * length]]
    return np.array(whole, dtype=np.int32).reshape(-1, length)


def test_the_sequences_are_those_packed_by_hand(prepare, small_blocks, tokenizer, texts, tmp_path):
    shards = prepare(jsonl(tmp_path / "a.jsonl", texts))
    assert np.array_equal(all_rows(shards), packed_by_hand(texts, tokenizer, 1 << 12, LENGTH))
    whole = sum(len(text.encode()) for text in texts if part_of(text) == "train")
    kept = [id for id in all_rows(shards).reshape(-1).tolist() if id != tokenizer.eos_token_id]
    assert shards.num_bytes == len(tokenizer.decode(kept).encode()) < whole
    assert (shards.part, shards.separator, shards.vocab_size) == ("train", tokenizer.eos_token_id, len(tokenizer))
    assert shards.tokenizer_digest == tokenizer_digest(tokenizer)
    assert shards.summary.max_id == all_rows(shards).max()
    shards.verify()
    for number in range(0, 300, 20):  # the same from many files
        jsonl(tmp_path / "corpus" / f"{number:03d}.jsonl", texts[number : number + 20])
    assert prepare(load_corpus(str(tmp_path / "corpus"))).digest == shards.digest


def test_the_same_for_any_number_of_workers(one_ray, prepare, small_blocks, texts, tmp_path, corpus_of):
    found = [prepare(corpus_of(texts), workers=workers, cache=tmp_path / f"{workers}") for workers in (0, 1, 2)]
    assert found[0].num_tokens > 0.9 * 12_000
    assert found[0].summary == found[1].summary == found[2].summary
    names = [sorted(path.name for path in shards.folder.iterdir()) for shards in found]
    assert names[0] == names[1] == names[2]


class TestNumTokens:
    @pytest.fixture(scope="class")
    def many(self):
        return make_texts(1500, seed=5)

    def test_a_fair_sample_of_about_that_many(self, prepare, small_blocks, many, tmp_path):
        corpus = jsonl(tmp_path / "a.jsonl", many)
        whole = prepare(corpus)
        some = prepare(corpus, num_tokens=whole.num_tokens // 8)
        assert whole.num_tokens / 8 <= some.num_tokens <= whole.num_tokens / 3
        # Spread over the whole file: the numbers that texts begin with.
        assert some.num_documents > 60

    def test_a_guess_that_falls_short_is_widened(self, prepare, small_blocks, many, tmp_path):
        corpus = jsonl(tmp_path / "a.jsonl", many, other="x" * 20_000)
        whole = prepare(corpus, cache=tmp_path / "whole")
        wanted = whole.num_tokens // 8
        found = prepare(corpus, num_tokens=wanted)
        assert wanted <= found.num_tokens < 0.6 * whole.num_tokens
        names = [path.name for path in found.folder.glob("shard-*.ids.npy")]
        assert {name.split("-")[1] for name in names} >= {"0", "1"}
        starts = [tuple(ids[:6]) for ids in documents_in(found)]
        assert len(set(starts)) > 0.9 * len(starts), "documents were taken twice"

    def test_less_than_a_sequence(self, prepare, corpus_of, texts, tmp_path):
        with pytest.raises(UserError) as caught:
            prepare(corpus_of(texts), length=10**6)
        assert "the train part of the corpus 'made-up' has " in str(caught.value)
        assert "less than one sequence of 1,000,000: give more text, or a smaller" in str(caught.value)
        assert list((tmp_path / "shards").iterdir()) == []


def stream(texts):
    return Corpus("owner/name", lambda: [Document(f"{number}", text) for number, text in enumerate(texts)])


def broken_off(texts):
    yield from (Document("", text) for text in texts)
    raise AssertionError("read to the end")


class TestStreams:
    def test_the_beginning_and_no_more_than_is_needed(self, prepare, small_blocks, tokenizer):
        texts = make_texts(600, seed=6)
        some = prepare(Corpus("owner/name", lambda: broken_off(texts)), num_tokens=6000)
        assert 6000 <= some.num_tokens < 9000
        whole_blocks = (some.num_sequences * LENGTH - 3000) // LENGTH
        expected = packed_by_hand(texts, tokenizer, 1 << 12, LENGTH)
        assert np.array_equal(all_rows(some)[:whole_blocks], expected[:whole_blocks])
        assert some.corpus_digest is None

    def test_a_limit_that_falls_short_is_raised(self, prepare, small_blocks, tokenizer):
        texts = [f"{number}" + " teacher" * 500 for number in range(400)]
        bytes_per_token = len(texts[0]) / len(tokenizer(texts[0])["input_ids"])
        assert bytes_per_token > module._SPARE * module._BYTES_PER_TOKEN
        some = prepare(Corpus("owner/name", lambda: broken_off(texts)), num_tokens=40_000)
        assert 40_000 <= some.num_tokens < 50_000

class TestInterrupted:
    def test_what_is_finished_is_not_made_again(self, prepare, small_blocks, texts, tmp_path):
        corpus = jsonl(tmp_path / "a.jsonl", texts)
        expected = prepare(corpus, cache=tmp_path / "undisturbed")
        work = tmp_path / "shards" / f".{expected.folder.name}.work"
        obstacle = work / "shard-0-0000009.ids.npy"
        (obstacle / "in the way").mkdir(parents=True)
        with pytest.raises(UserError, match=r"writing .*shard-0-0000009.ids.npy: "):
            prepare(corpus)
        finished = {path.stem for path in work.glob("shard-*.json")}
        assert len(finished) >= 5
        assert expected.folder.name not in os.listdir(tmp_path / "shards")
        (obstacle / "in the way").rmdir()
        obstacle.rmdir()
        arrays = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npy") if path.name[:15] in finished}
        found = prepare(corpus)
        assert arrays and found.digest == expected.digest
        for name, time in arrays.items():
            assert (found.folder / name).stat().st_mtime_ns == time

    def test_killed_at_the_very_end(self, prepare, small_blocks, texts, tmp_path, monkeypatch):
        corpus = jsonl(tmp_path / "a.jsonl", texts)

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "take_name", killed)
            prepare(corpus)
        monkeypatch.setattr(module, "block_packer", None)  # no block may be made again
        prepare(corpus).verify()
        assert not list((tmp_path / "shards").glob(".*"))


def test_a_second_call_reads_nothing_and_a_missing_shard_is_made_again(prepare, corpus_of, texts):
    corpus = corpus_of(texts)
    first = prepare(corpus)

    def never():
        raise AssertionError("the corpus was read")

    same = Corpus("made-up", never, compute_digest=corpus.compute_digest, size=lambda: 90_000)
    assert prepare(same).digest == first.digest
    next(first.folder.glob("*.ids.npy")).unlink()
    said = io.StringIO()
    assert prepare(corpus, said=said).digest == first.digest
    assert "is missing" in said.getvalue() and "making them again" in said.getvalue()


def test_what_goes_wrong_is_one_sentence(prepare, corpus_of, texts, tmp_path, monkeypatch):
    corpus = jsonl(tmp_path / "a.jsonl", texts)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{'no': json}\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 301 is not JSON"):
        prepare(corpus)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full: free some space"):
        prepare(corpus_of(texts))
    assert not list(tmp_path.glob("shards/*/shard*"))
