"""Smaller vocabularies: every text is still written, ids follow, and other tokenizers are refused."""

import json
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from slm_ray.config.errors import UserError
from slm_ray.data.tokenizer_trimming import count_tokens, read_vocabulary, renumber_settings
from tests.data.conftest import make_texts

TEXTS = [*make_texts(60), "Fünf Äpfel kosten 12.50 € – 3 Stück; ¿qué tal? 日本語"] * 2
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>"]


def byte_level(ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("    ", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_fallback(kind: str) -> PreTrainedTokenizerFast:
    own_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "bpe":
        trained = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=400)
        trained.train_from_iterator([text.replace(" ", "▁") for text in TEXTS[:60]], trainer)
        found = json.loads(trained.to_str())["model"]
        vocab = {token: number for number, token in enumerate([*SPECIAL, *own_bytes, *found["vocab"]])}
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found["merges"]]
        model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    else:
        trained = Tokenizer(models.Unigram())
        trained.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"])
        trained.train_from_iterator(TEXTS[:60], trainer)
        pieces = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"] if entry[0] != "<unk>"]
        vocab = [*((name, 0.0) for name in SPECIAL), *((name, -20.0) for name in own_bytes), *pieces]
        model = models.Unigram(vocab, unk_id=2, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {
    "byte-level": byte_level,
    "ignore-merges": lambda: byte_level(ignore_merges=True),
    "bpe-fallback": lambda: byte_fallback("bpe"),
    "unigram": lambda: byte_fallback("unigram"),
}


def any_text(rng: random.Random) -> str:
    planes = [(32, 126), (32, 126), (0xA0, 0x24F), (0x370, 0x1FFF), (0x3040, 0x9FFF), (0x1F300, 0x1FAFF)]
    words = rng.choices(" ".join(TEXTS).split(), k=4)
    for _ in range(6):
        low, high = rng.choice(planes)
        words.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))))
    rng.shuffle(words)
    return rng.choice([" ", "  ", "\n", "    "]).join(words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_written_at_every_size(kind):
    tokenizer = KINDS[kind]()
    vocabulary, rng = read_vocabulary(tokenizer), random.Random(0)
    counts = count_tokens(tokenizer, TEXTS, vocabulary.size)
    order = vocabulary.order(counts)
    assert sorted(order.tolist()) == sorted(vocabulary.contents)
    for size in (len(vocabulary.fixed), (len(vocabulary.fixed) + vocabulary.size) // 2, vocabulary.size):
        kept = sorted(order[:size].tolist())
        trimmed = vocabulary.trim(kept)
        names = trimmed.get_vocab()
        assert sorted(names.values()) == list(range(size))
        assert all(names[vocabulary.contents[token]] == place for place, token in enumerate(kept))
        assert trimmed.bos_token_id == kept.index(tokenizer.bos_token_id)
        for _ in range(40):
            text = any_text(rng)
            old, new = (one.decode(one(text, add_special_tokens=False)["input_ids"]) for one in (tokenizer, trimmed))
            assert new == old
        assert trimmed("a")["input_ids"][:1] == [trimmed.bos_token_id] or tokenizer("a")["input_ids"][0] != 0
    assert vocabulary.trim(sorted(order.tolist()))(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_what_is_written_most_stays_and_no_token_comes_before_its_pieces():
    vocabulary = read_vocabulary(byte_level())
    counts = count_tokens(vocabulary.tokenizer, TEXTS, vocabulary.size)
    order = vocabulary.order(counts).tolist()
    place = {token: number for number, token in enumerate(order)}
    assert all(place[token] > max(place[piece] for piece in pieces) for token, pieces in vocabulary.pieces.items())
    lengths = []
    for size in (len(vocabulary.fixed), 350, 420, vocabulary.size):
        lengths.append(count_tokens(vocabulary.trim(sorted(order[:size])), TEXTS, vocabulary.size).sum())
    assert lengths == sorted(lengths, reverse=True)
    natural = sorted(place, key=lambda token: (token not in vocabulary.fixed, token))[:350]
    assert lengths[1] <= count_tokens(vocabulary.trim(sorted(natural)), TEXTS, vocabulary.size).sum()


def test_digits_special_and_chat_tokens_always_stay():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<tool>", "<other>"])
    tokenizer.chat_template = "{{ '<tool>' + messages[0]['content'] }}"
    vocabulary = read_vocabulary(tokenizer)
    names = {vocabulary.contents[token] for token in vocabulary.fixed}
    assert {*SPECIAL, *"0123456789", "<tool>"} <= names and "<other>" not in names
    smallest = vocabulary.trim(vocabulary.fixed)
    assert smallest.chat_template == tokenizer.chat_template
    said = smallest.apply_chat_template([{"role": "user", "content": "<other> 7"}], tokenize=False)
    assert smallest.decode(smallest(said, add_special_tokens=False)["input_ids"]) == "<tool><other> 7"


def test_other_tokenizers_and_too_few_tokens_are_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(UserError, match=r"\(WordLevel\) cannot be trimmed: only byte-level BPE"):
        read_vocabulary(words)
    vocabulary = read_vocabulary(byte_level())
    with pytest.raises(UserError, match=r"must keep its .* bytes, digits, special and chat tokens"):
        vocabulary.trim(vocabulary.fixed[1:])
    last = int(vocabulary.order(np.zeros(vocabulary.size))[-1])
    whole = max(vocabulary.pieces, key=lambda token: len(vocabulary.contents[token]))
    assert last in vocabulary.pieces
    with pytest.raises(ValueError, match="without its pieces"):
        vocabulary.trim(sorted({*vocabulary.fixed, whole}))


def test_settings_get_the_new_ids():
    settings = {"eos_token_id": [2, 9], "pad_token_id": 7, "bos_token_id": 2, "suppress_tokens": [9, 4], "top_k": 9}
    found = renumber_settings(settings, [0, 2, 4, 9])
    assert found == {
        "eos_token_id": [1, 3], "pad_token_id": None, "bos_token_id": 1, "suppress_tokens": [3, 2], "top_k": 9,
    }  # fmt: skip
