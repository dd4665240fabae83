"""Tokenizers: trained the same every time, kept, and extended so that old text is read as it was before."""

import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slm_ray.config.errors import UserError
from slm_ray.data.tokenizer_extension import continue_merges, extend_tokenizer, match_extension
from slm_ray.data.tokenizer_training import END_OF_TEXT, train_tokenizer
from slm_ray.runtime.progress import Console
from tests.data.conftest import make_texts
from tests.text_references import slow_merges

SWAHILI = "habari ya asubuhi mwalimu anafundisha watoto shuleni kila siku na wanafunzi wanasoma vitabu vya nchi".split()


def swahili(count: int = 60, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(SWAHILI, k=30)) + "." for _ in range(count)]


def test_training_is_the_same_every_time_and_kept(texts, corpus_of, tmp_path, capsys):
    corpus = corpus_of(texts)
    first = train_tokenizer(corpus, 320, tmp_path / "a", Console())
    again = train_tokenizer(corpus_of(list(reversed(texts))), 320, tmp_path / "b", Console())
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert "training a tokenizer of 320 tokens" in capsys.readouterr().err
    kept = train_tokenizer(corpus, 320, tmp_path / "a", Console())
    assert kept.get_vocab() == first.get_vocab() and capsys.readouterr().err == ""
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_trained_tokenizer_says_everything_and_ends_documents(texts, corpus_of, tmp_path):
    tokenizer = train_tokenizer(corpus_of(texts), 320, tmp_path, Console())
    assert len(tokenizer) == 320 and tokenizer.eos_token_id == 0 and tokenizer.eos_token == END_OF_TEXT
    for text in ("The budget 1234\n\n", "注意 → é \x00 🙂", *texts[:3]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("2026")["input_ids"]) == 4  # digits one by one
    words = len(tokenizer(texts[0])["input_ids"])
    assert words < len(texts[0].encode()) / 3


@pytest.mark.parametrize(
    ("size", "says"),
    [(257, "must have 258 tokens .* got 257"), (1 << 21, "got 2,097,152"), (5000, "gives a tokenizer of .* 5,000 are")],
)
def test_sizes_that_cannot_be_had(size, says, texts, corpus_of, tmp_path):
    with pytest.raises(UserError, match=says):
        train_tokenizer(corpus_of(texts), size, tmp_path, Console())
    assert not list(tmp_path.rglob("tokenizer.json"))


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_those_of_counting_anew_every_time(seed):
    rng = random.Random(seed)
    words = Counter({tuple(rng.choices("aab", k=rng.randint(1, 9))): rng.randint(1, 5) for _ in range(30)})
    known = {"a", "b", "ab"} if seed % 2 else {"a", "b"}
    assert continue_merges(words, set(known), 15) == slow_merges(words, known, 15)


def test_an_extended_tokenizer_reads_old_text_as_before_and_new_words_as_one(tokenizer):
    before = tokenizer.get_vocab()
    extended = extend_tokenizer(tokenizer, swahili(), 40)
    new, added = extended.tokenizer, len(extended.parts)
    assert added == 40 and len(new) == len(tokenizer) + 40 and tokenizer.get_vocab() == before
    assert before.items() < new.get_vocab().items()
    assert (new.eos_token, new.pad_token_id) == (tokenizer.eos_token, tokenizer.pad_token_id)
    for text in make_texts(5, seed=3):
        assert [part for i in new(text)["input_ids"] for part in parts_of(i, extended)] == tokenizer(text)["input_ids"]
    for text in swahili(3, seed=5):
        short = new(text)["input_ids"]
        assert new.decode(short) == text and len(short) < 0.7 * len(tokenizer(text)["input_ids"])
        assert [part for i in short for part in parts_of(i, extended)] == tokenizer(text)["input_ids"]


def parts_of(token: int, extended) -> list[int]:
    return extended.parts[token - extended.first_new] if token >= extended.first_new else [token]


def test_an_extension_survives_its_files_and_is_recognised(tokenizer, tmp_path):
    extended = extend_tokenizer(tokenizer, swahili(), 25)
    extended.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = swahili(1, seed=9)[0]
    assert again(text)["input_ids"] == extended.tokenizer(text)["input_ids"]
    matched = match_extension(tokenizer, again)
    assert (matched.first_new, matched.parts) == (extended.first_new, extended.parts)
    with pytest.raises(UserError, match="does not extend the model's own"):
        match_extension(again, tokenizer)


def test_what_cannot_be_extended(tokenizer):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), unk_token="a")
    with pytest.raises(UserError, match="only a fast byte-level BPE tokenizer"):
        extend_tokenizer(words, ["a"], 1)
    with pytest.raises(UserError, match=r"has words for [\d,]+ new tokens, but 100,000 are wanted"):
        extend_tokenizer(tokenizer, swahili(), 100_000)
    with pytest.raises(UserError, match="must be at least 1, got 0"):
        extend_tokenizer(tokenizer, swahili(), 0)
