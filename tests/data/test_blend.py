"""Text in proportions: what a blend holds, against counting; and what is refused."""

import io

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.data.blend import parse_blend, split_count
from slm_ray.data.corpus import Corpus, blend_corpora
from slm_ray.data.load import load_corpus
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import sample_part
from slm_ray.runtime.progress import Console
from tests.data.conftest import make_texts

LENGTH = 32


@pytest.fixture
def blend(tmp_path) -> Corpus:
    for name, word, count in (("many", "alpha", 300), ("few.txt", "beta", 60)):
        (tmp_path / name).mkdir()
        for number, text in enumerate(make_texts(count, words=40)):
            (tmp_path / name / f"{number}.txt").write_text(f"{word} {text}")
    return load_corpus(f"{tmp_path}/many:3,{tmp_path}/few.txt:1")


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_each_corpus_has_its_share_of_the_sequences_evenly_in_between(blend, tokenizer, part):
    tokens = prepare_tokens(blend, tokenizer, part, num_tokens=12 * LENGTH, sequence_length=LENGTH)
    alone = [
        prepare_tokens(one, tokenizer, part, num_tokens=count * LENGTH, sequence_length=LENGTH)
        for (_, one), count in zip(blend.shares, (9, 3), strict=True)
    ]
    rows = [row.tolist() for row in tokens.ids]
    places = [[rows.index(row.tolist()) for row in shards.ids] for shards in alone]
    assert places[1] == [2, 6, 10] and places[0] == sorted(places[0])  # the middle of every four
    for shards, found in zip(alone, places, strict=True):
        assert np.array_equal(tokens.positions(np.array(found)), shards.positions(np.arange(shards.num_sequences)))
    assert tokens.num_documents == sum(shards.num_documents for shards in alone)
    assert tokens.num_bytes == sum(shards.num_bytes for shards in alone)
    assert tokens.digest == prepare_tokens(
        blend, tokenizer, part, num_tokens=12 * LENGTH, sequence_length=LENGTH
    ).digest


def test_training_repeats_a_corpus_that_has_less_than_its_share(blend, tokenizer, tmp_path):
    def prepare(corpus, num_tokens):
        return prepare_shards(
            corpus, tokenizer, "train", sequence_length=LENGTH, num_tokens=num_tokens, cache=tmp_path / "shards",
            console=Console(stream=io.StringIO()), workers=0,
        )  # fmt: skip

    few = prepare(blend.shares[1][1], None)
    count = few.num_sequences * 8
    shards = prepare(blend, count * LENGTH)
    assert shards.num_sequences == count
    rows = {row.tobytes(): 0 for row in few.ids}
    for row in shards.rows(np.arange(count)):
        if row.tobytes() in rows:
            rows[row.tobytes()] += 1
    assert set(rows.values()) == {2}
    manifest = (shards.folder / "manifest.json").read_text()
    assert "few.txt" in manifest and str(count // 4) in manifest
    with pytest.raises(UserError, match="has no end"):
        prepare(blend, None)


def test_samples_of_text_are_in_proportion_too(blend):
    pieces = sample_part(blend, "train", 4096, 1 << 30).pieces
    size = {word: sum(len(piece) for piece in pieces if piece.startswith(word)) for word in ("alpha", "beta")}
    assert size["alpha"] / size["beta"] == pytest.approx(3, rel=0.1)


def test_the_name_of_a_cache_depends_on_shares_and_content(blend, corpus_of):
    shares = tuple(zip((0.5, 0.5), (one for _, one in blend.shares), strict=True))
    names = {blend.identity, blend_corpora(blend.name, shares).identity}
    assert len(names) == 2 and blend.digest is not None
    stream = Corpus("owner/name", list)
    assert blend_corpora("x", ((0.5, stream), (0.5, corpus_of(["a"])))).digest is None


def test_a_path_with_a_colon_or_a_comma_is_a_path(tmp_path):
    for name in ("a:0.5.txt", "a:1,b:2.txt"):
        (tmp_path / name).write_text("x")
        assert not load_corpus(str(tmp_path / name)).shares
    (tmp_path / "b.txt").write_text("y")
    assert [share for share, _ in load_corpus(f"{tmp_path}/a:0.5.txt:1,{tmp_path}/b.txt:3").shares] == [0.25, 0.75]
    assert parse_blend("owner/name:config") == {}
    assert parse_blend("owner/name:config:1,b:0") == {"owner/name:config": 1.0}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a:0,b:0", "sum to 0: give at least one"),
        ("a:1,b:1,a:2", "names 'a' twice: name it once"),
        ("a:1,./a:2", "names './a' twice"),
        ("a:1,b:-1", "the weight of 'b' in a blend must be a number from 0, got '-1'"),
        ("a:1,b:nan", "got 'nan'"),
        ("a:1,b:half", "got 'half'"),
        ("a:1,b", "'b' in the blend 'a:1,b' has no weight: write it as"),
    ],
)
def test_a_blend_that_cannot_be_is_one_sentence(name, said):
    with pytest.raises(UserError, match=said) as caught:
        load_corpus(name)
    assert "\n" not in str(caught.value)


def test_counts_are_by_largest_remainder():
    assert split_count([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    assert split_count([0.7, 0.2, 0.1], 8) == [6, 1, 1]
    assert split_count([0.5, 0.5], 1) == [1, 0]
