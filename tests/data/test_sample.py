import io
import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus, Document
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import part_of
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.runtime.progress import Console

LENGTH = 32


def prepare(corpus, tokenizer, part="train", num_tokens=10 * LENGTH, sequence_length=LENGTH, **options):
    return prepare_tokens(corpus, tokenizer, part, num_tokens=num_tokens, sequence_length=sequence_length, **options)


@pytest.fixture
def corpus(corpus_of, texts):
    return corpus_of(texts)


def documents_in(tokens):
    """The token ids of each document, without its separator."""
    flat = tokens.ids.reshape(-1).tolist()
    ends = [*tokens.document_starts[1:].tolist(), len(flat)]
    return [
        [id for id in flat[start:end] if id != tokens.separator]
        for start, end in zip(tokens.document_starts.tolist(), ends, strict=True)
    ]


def test_the_tokens_are_those_of_documents_of_the_part_each_ended_by_eos(corpus, tokenizer, texts):
    tokens = prepare(corpus, tokenizer, sequence_length=256, num_tokens=8 * 256)
    assert (tokens.ids.shape, tokens.ids.dtype) == ((8, 256), np.int32)
    assert (tokens.num_tokens, tokens.num_sequences, tokens.sequence_length) == (2048, 8, 256)
    found = [tokenizer.decode(ids) for ids in documents_in(tokens)]
    assert set(found[:-1]) <= {text for text in texts if part_of(text) == "train"}
    assert any(text.startswith(found[-1].rstrip("\ufffd")) for text in texts)
    flat = tokens.ids.reshape(-1)
    assert (flat[tokens.document_starts[1:] - 1] == tokenizer.eos_token_id).all()


def test_num_bytes_is_the_text_covered(corpus, tokenizer):
    for num_tokens in range(LENGTH, 20 * LENGTH, 3 * LENGTH):
        tokens = prepare(corpus, tokenizer, num_tokens=num_tokens)
        exact = sum(len(tokenizer.backend_tokenizer.decode(ids).encode()) for ids in documents_in(tokens)[:-1])
        last = documents_in(tokens)[-1]
        # A byte-level token may end inside a character; that character is counted whole.
        last_bytes = len(tokenizer.backend_tokenizer.decode(last).rstrip("\ufffd").encode())
        assert 0 <= tokens.num_bytes - exact - last_bytes <= 3


def test_a_tokenizer_without_eos_gives_no_separator_and_says_so(corpus, trained_tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained_tokenizer))
    tokens = prepare(corpus, bare, cache=tmp_path)
    assert tokens.separator is None
    assert bare.convert_tokens_to_ids("<eos>") not in tokens.ids
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert json.loads(manifest.read_text())["tokens"]["separator"] is None


def test_a_stream_is_read_only_as_far_as_needed(tokenizer):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield Document(str(taken[-1]), f"document {taken[-1]} of the search")

    tokens = prepare(Corpus("owner/name", endless), tokenizer, "calibration")
    assert tokens.corpus_digest is None
    assert len(taken) < 10_000


def test_a_part_that_is_too_small_says_what_it_has_what_is_needed_and_the_fix(corpus_of, tokenizer, texts):
    with pytest.raises(UserError) as caught:
        prepare(corpus_of(texts[:100]), tokenizer, "calibration", num_tokens=100 * 512, sequence_length=512)
    said = str(caught.value)
    held = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts[:100] if part_of(text) == "calibration")
    assert f"the calibration part of the corpus 'made-up' has {held:,} tokens, but 51,200 are needed" in said
    assert "(100 sequences of 512): give more text, or fewer tokens with --calibration-tokens or a smaller" in said


@pytest.mark.parametrize(
    "options, said",
    [
        ({"part": "heldout"}, "unknown part of a corpus 'heldout': did you mean 'held_out'?"),
        ({"num_tokens": 0}, "the number of train tokens must be at least 1, got 0"),
        ({"sequence_length": 1}, "--sequence-length must be at least 2, got 1"),
    ],
)
def test_wrong_sizes_and_names(corpus, tokenizer, options, said):
    with pytest.raises(UserError) as caught:
        prepare(corpus, tokenizer, **options)
    assert said in str(caught.value)


def test_the_tokenizer_digest_knows_the_tokenizer_not_its_settings_of_the_moment(tokenizer):
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer.backend_tokenizer.padding is not None
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_digest(tokenizer) != before


class TestCache:
    def test_a_second_run_reads_no_text(self, corpus_of, tokenizer, texts, tmp_path):
        corpus = corpus_of(texts)
        first = prepare(corpus, tokenizer, cache=tmp_path)

        def never():
            raise AssertionError("the corpus was read")

        same = Corpus("made-up", never, compute_digest=corpus.compute_digest)
        second = prepare(same, tokenizer, cache=tmp_path)
        assert isinstance(second.ids, np.memmap)
        assert np.array_equal(first.ids, second.ids)
        assert np.array_equal(first.document_starts, second.document_starts)
        assert first.summary == second.summary == prepare(corpus, tokenizer).summary

    def test_damage_is_found_said_and_mended(self, corpus, tokenizer, tmp_path):
        good = prepare(corpus, tokenizer, cache=tmp_path)
        (path,) = tmp_path.glob("*/shard-00000.ids.npy")
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
        stream = io.StringIO()
        again = prepare(corpus, tokenizer, cache=tmp_path, console=Console(stream=stream))
        assert again.digest == good.digest
        assert "making them again" in stream.getvalue() and path.read_bytes() == data
