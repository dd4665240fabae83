"""Extending a tokenizer with a language's words: its BPE training goes on where it had ended.

Tokens that are merely added are cut out of any text, inside of words too, and tokens of a second BPE can often not be
reached by the merges of the first. Going on with the merges (arXiv 2512.03989) has neither fault: a text is first cut
as before, and what comes out is merged further. So every new token stands for exactly the old ones it is merged from.
"""

from __future__ import annotations

import heapq
import itertools
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.data.tokenizers import load_tokenizer

_FILE = "tokenizer.json"
_LEAST_COUNT = 2  # a pair that occurs once is no word of the language
Pair = tuple[str, str]


@dataclass(frozen=True)
class ExtendedTokenizer:
    """A tokenizer with more tokens, and what the new ones are made of."""

    tokenizer: Any  # The fast tokenizer; old tokens keep their ids
    first_new: int  # The first new id; the others follow it
    parts: list[list[int]]  # For every new id, in order, the old ids that it stands for


def count_words(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as the tokenizer's own rules cut and write words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE" or "ByteLevel" not in str(backend.pre_tokenizer):
        raise UserError(
            "only a fast byte-level BPE tokenizer (SmolLM2's, GPT-2's, Pythia's, Qwen's, Llama 3's) can be extended: "
            "give a model that has one, or train one with slm-ray tokenizer train"
        )
    counts: Counter[str] = Counter()
    for text in texts:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return counts


def continue_merges(words: dict[tuple[str, ...], int], known: set[str], count: int) -> list[Pair]:
    """The next merges of a BPE training."""
    sequences, weights = [list(word) for word in words], list(words.values())
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, sequence in enumerate(sequences):
        for pair in itertools.pairwise(sequence):
            counts[pair] += weights[number]
            where[pair].add(number)
    heap = [(-amount, pair) for pair, amount in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < count:
        amount, pair = heapq.heappop(heap)
        if counts[pair] != -amount:
            continue  # its count has changed since, and a later entry tells it
        if -amount < _LEAST_COUNT:
            break
        union = pair[0] + pair[1]
        if union in known:
            continue
        known.add(union)
        merges.append(pair)
        changed: set[Pair] = set()
        for number in sorted(where.pop(pair)):
            before = sequences[number]
            after = _merged(before, pair, union)
            for old in itertools.pairwise(before):
                counts[old] -= weights[number]
                changed.add(old)
            for new in itertools.pairwise(after):
                counts[new] += weights[number]
                where[new].add(number)
                changed.add(new)
            sequences[number] = after
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
    return merges


def _merged(sequence: list[str], pair: Pair, union: str) -> list[str]:
    """A sequence with every pair in it, from the left, made one."""
    out, place = [], 0
    while place < len(sequence):
        if place + 1 < len(sequence) and (sequence[place], sequence[place + 1]) == pair:
            out.append(union)
            place += 2
        else:
            out.append(sequence[place])
            place += 1
    return out


def extend_tokenizer(tokenizer: Any, texts: Iterable[str], count: int) -> ExtendedTokenizer:
    """A tokenizer with ``count`` more tokens, those that shorten the texts most."""
    model = tokenizer.backend_tokenizer.model if hasattr(tokenizer, "backend_tokenizer") else None
    words = count_words(tokenizer, texts)
    if model is None or count < 1:
        raise UserError(f"the number of new tokens must be at least 1, got {count}")
    sequences: Counter[tuple[str, ...]] = Counter()
    for word, amount in words.items():
        sequences[tuple(token.value for token in model.tokenize(word))] += amount
    merges = continue_merges(sequences, set(tokenizer.get_vocab()), count)
    if len(merges) < count:
        raise UserError(
            f"the text has words for {len(merges):,} new tokens, but {count:,} are wanted: give more text, or ask for "
            "fewer"
        )
    first_new = max(tokenizer.get_vocab().values()) + 1
    extended = _with_merges(tokenizer, merges, first_new)
    parts: dict[str, list[int]] = {token: [number] for token, number in tokenizer.get_vocab().items()}
    for a, b in merges:
        parts[a + b] = parts[a] + parts[b]
    return ExtendedTokenizer(extended, first_new, [parts[a + b] for a, b in merges])


def _with_merges(tokenizer: Any, merges: list[Pair], first_new: int) -> Any:
    """The tokenizer with more merges behind its own, through its own files, so that all else of it stays."""
    with tempfile.TemporaryDirectory(prefix="slm_ray-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / _FILE
        description = json.loads(path.read_text(encoding="utf-8"))
        model = description["model"]
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [f"{a} {b}" if as_text else [a, b] for a, b in merges]
        # Added tokens are numbered behind the model's own; named among these, they keep the ids they have.
        model["vocab"] |= {added["content"]: added["id"] for added in description["added_tokens"]}
        model["vocab"] |= {a + b: first_new + number for number, (a, b) in enumerate(merges)}
        path.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
        for other in ("vocab.json", "merges.txt"):  # of a class that also writes the older files
            (Path(folder) / other).unlink(missing_ok=True)
        extended = load_tokenizer(Path(folder), local=True)
    wanted = tokenizer.get_vocab() | {a + b: first_new + number for number, (a, b) in enumerate(merges)}
    if extended.get_vocab() != wanted:
        raise UserError(
            f"a tokenizer of the class {type(tokenizer).__name__} does not keep its tokens' ids when it is extended: "
            "give a model whose tokenizer is of another class"
        )
    return extended


def match_extension(old: Any, new: Any) -> ExtendedTokenizer:
    """How an extended tokenizer extends another one, read off both."""
    count_words(old, [])
    before, after = old.get_vocab(), new.get_vocab()
    added = sorted((number, token) for token, number in after.items() if token not in before)
    first_new = max(before.values()) + 1
    follow = [number for number, _ in added] == list(range(first_new, first_new + len(added)))
    if not before.items() < after.items() or not follow:
        raise UserError(
            "the tokenizer given does not extend the model's own: every old token must keep its id, and the new ones "
            "must follow; make one with slm-ray tokenizer extend"
        )
    model = old.backend_tokenizer.model
    parts = [[before[piece.value] for piece in model.tokenize(token)] for _, token in added]
    return ExtendedTokenizer(new, first_new, parts)
