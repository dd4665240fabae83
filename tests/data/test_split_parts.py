import hashlib
from fractions import Fraction

import pytest

from slm_ray.data.split import PARTS, part_of, sample_part, split_text, summarise_parts


def reference_part(text: str) -> str:
    share = Fraction(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16), 2**64)
    return "calibration" if share < Fraction(1, 10) else "train" if share < Fraction(9, 10) else "held_out"


def test_the_part_follows_the_documented_rule():
    texts = [f"document {number}" for number in range(3000)]
    assert [part_of(text) for text in texts] == [reference_part(text) for text in texts]


def test_the_shares_are_10_80_10_percent():
    parts = [part_of(str(number)) for number in range(20_000)]
    assert [round(parts.count(part) / len(parts), 2) for part in PARTS] == [0.1, 0.8, 0.1]


def test_a_summary_counts_every_document_once_and_ignores_their_order(corpus_of, texts):
    summary, backwards = summarise_parts(corpus_of(texts)), summarise_parts(corpus_of(texts[::-1]))
    assert sum(part["documents"] for part in summary.values()) == len(texts)
    assert sum(part["bytes"] for part in summary.values()) == sum(len(text.encode()) for text in texts)
    assert summary == backwards
    assert len({part["digest"] for part in summary.values()}) == 3


@pytest.mark.parametrize("text", ["", "x", "a b " * 500, "x" * 999, "line\n" * 300, "par\n\n" * 300, "é注\n\n\n" * 99])
@pytest.mark.parametrize("size", [2, 7, 64, 10_000])
def test_pieces_are_the_text_again_and_none_is_too_long(text, size):
    pieces = split_text(text, size)
    assert "".join(pieces) == text
    assert all(len(piece) <= size + size // 2 for piece in pieces)
    assert len(pieces) == 1 or all(pieces)


def test_a_text_is_cut_at_a_blank_line_before_a_line_end_before_a_space():
    assert split_text("aaaaaa\n\nb\nc dd ee ff", 10)[0] == "aaaaaa\n\n"
    assert split_text("aaaaaaa\nb c dd ee ff", 10)[0] == "aaaaaaa\n"
    assert split_text("aaaaaaa b" + "c" * 30, 10)[0] == "aaaaaaa "
    assert split_text("a" * 30, 10)[0] == "a" * 10


def test_a_larger_sample_begins_with_the_smaller_one(corpus_of, texts):
    corpus = corpus_of(texts)
    small, large = (sample_part(corpus, "train", 100, target) for target in (500, 5000))
    everything = sample_part(corpus, "train", 100, 10**9)
    assert large.pieces[: len(small.pieces)] == small.pieces
    assert everything.pieces[: len(large.pieces)] == large.pieces
    assert 500 <= sum(map(len, small.pieces)) < 650
    assert (small.is_whole_part, everything.is_whole_part) == (False, True)


def test_a_sample_takes_no_notice_of_order_or_of_copies(corpus_of, texts):
    plain = sample_part(corpus_of(texts), "train", 100, 5000).pieces
    shuffled = sample_part(corpus_of(texts[::-1] + texts[:100]), "train", 100, 5000).pieces
    assert plain == shuffled
    assert len(set(plain)) == len(plain)
