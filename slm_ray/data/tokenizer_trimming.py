"""A tokenizer with some of its tokens: which may go, in which order, and the smaller tokenizer itself.

A token that goes leaves its *pieces*: the two tokens its last merge joined, or the bytes of its character. A set of
tokens that holds the pieces of each of its members can write every text, so an order in which no token comes before its
pieces gives such a set of any size.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.data.tokenizers import load_tokenizer

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_BATCH = 256  # texts tokenised at once
_SPACE = "▁"  # what SentencePiece writes for a space
_ALWAYS = frozenset(_SPACE) | {chr(code) for code in range(128)}

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrimmableVocabulary:
    """A tokenizer's tokens with what each of them falls into."""

    tokenizer: Any  # The fast tokenizer
    contents: dict[int, str]  # Every token by its id
    fixed: tuple[int, ...]  # Ids that always stay: bytes, digits, special and chat tokens, ascending
    pieces: dict[int, tuple[int, ...]]  # For every other id, what its text is written with when it goes
    is_byte_level: bool  # Tokens are texts of bytes; else of characters, with tokens for bytes beside them

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.contents)

    def order(self, weights: FloatArray) -> IntArray:
        """All ids, those to keep first in front; none comes before its pieces.

        From the whole vocabulary, the token whose loss lengthens the text least goes, and its occurrences are counted
        as its pieces from then on. Of equals the latest goes, which tokenizers learned from the least text.

        ``weights``: ``[ids]`` how often each id occurs.
        """
        count = weights.astype(np.float64).copy()
        needed_by = np.zeros(len(count), dtype=np.int64)
        for pieces in self.pieces.values():
            for piece in pieces:
                needed_by[piece] += 1

        def entry(token: int) -> tuple[float, int]:
            return float(count[token]) * (len(self.pieces[token]) - 1), -token

        heap = [entry(token) for token in self.pieces if not needed_by[token]]
        heapq.heapify(heap)
        gone: list[int] = []
        while heap:
            token = -heapq.heappop(heap)[1]
            gone.append(token)
            for piece in self.pieces[token]:
                count[piece] += count[token]
                needed_by[piece] -= 1
                if not needed_by[piece] and piece in self.pieces:
                    heapq.heappush(heap, entry(piece))
        return np.array([*self.fixed, *reversed(gone)], dtype=np.int64)

    def trim(self, kept: Sequence[int]) -> Any:
        """The tokenizer with these ids only, ascending, which are numbered from 0 in that order."""
        place = check_kept(self, kept)
        with tempfile.TemporaryDirectory(prefix="slm_ray-tokenizer-") as name:
            folder = Path(name)
            self.tokenizer.save_pretrained(folder)
            _rewrite_json(folder / _FILE, lambda found: _trimmed(found, place))
            _rewrite_json(folder / _CONFIG, lambda found: _trimmed_settings(found, place))
            for path in folder.iterdir():  # older files that tell the same
                if path.name in ("vocab.json", "merges.txt", "added_tokens.json") or path.suffix == ".model":
                    path.unlink()
            trimmed = load_tokenizer(folder, local=True)
        if trimmed.get_vocab() != {self.contents[token]: number for token, number in place.items()}:
            raise UserError(
                f"a tokenizer of the class {type(self.tokenizer).__name__} does not keep its tokens' ids when it is "
                "trimmed: keep its vocabulary whole"
            )
        return trimmed


def check_kept(vocabulary: TrimmableVocabulary, kept: Sequence[int]) -> dict[int, int]:
    """The new id of each kept one, after checking that every text can be written with them."""
    place = {int(token): number for number, token in enumerate(kept)}
    if missing := [token for token in vocabulary.fixed if token not in place]:
        raise UserError(
            f"a vocabulary must keep its {len(vocabulary.fixed):,} bytes, digits, special and chat tokens, and "
            f"{vocabulary.contents[missing[0]]!r} is not among the {len(place):,} given: keep at least these"
        )
    for token in place:
        if any(piece not in place for piece in vocabulary.pieces.get(token, ())):
            raise ValueError(f"token {vocabulary.contents[token]!r} is kept without its pieces")
    return place


def read_vocabulary(tokenizer: Any) -> TrimmableVocabulary:
    """What a tokenizer's tokens are made of; one whose tokens cannot go is refused."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    model, kind = description["model"], description["model"]["type"]
    listed: Any = model.get("vocab") or {}
    ids: dict[str, int] = (
        {entry[0]: number for number, entry in enumerate(listed)} if isinstance(listed, list) else dict(listed)
    )
    has_byte_tokens = bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in ids for byte in range(256))
    is_byte_level = kind == "BPE" and "ByteLevel" in json.dumps(description["pre_tokenizer"])
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    # Some tokenizers (SmolLM2's) lack bytes that hardly any text has; what they cannot write, a trimmed one cannot.
    bytes_there = all(chr(code) in ids for code in range(33, 127))
    if affixes or kind not in ("BPE", "Unigram") or not ((is_byte_level and bytes_there) or has_byte_tokens):
        raise UserError(
            f"the vocabulary of a {type(tokenizer).__name__} ({kind}) cannot be trimmed: only byte-level BPE (GPT-2, "
            "Llama 3, Qwen, SmolLM, NeoX) and tokenizers with byte fallback (Llama 2, Gemma) can then still write "
            "every text; keep its vocabulary whole"
        )
    added = {entry["content"]: entry for entry in description["added_tokens"]}
    template = json.dumps(getattr(tokenizer, "chat_template", None) or "", ensure_ascii=False)
    everything = ids | {content: entry["id"] for content, entry in added.items()}
    always = set(_byte_characters() if is_byte_level else _ALWAYS | {f"<0x{byte:02X}>" for byte in range(256)})
    always |= {content for content, entry in added.items() if entry["special"] or content in template}
    always |= {str(model["unk_token"])} if model.get("unk_token") else set()
    fixed = {everything[content] for content in always if content in everything} | set(tokenizer.all_special_ids)
    if kind == "Unigram" and model.get("unk_id") is not None:
        fixed.add(model["unk_id"])
    merged = _merges(model, ids) if kind == "BPE" else {}
    split = _Splitter(ids, model, is_byte_level)
    pieces: dict[int, tuple[int, ...]] = {}
    for content, token in everything.items():
        if token in fixed:
            continue
        options = merged.get(token, ())
        pieces[token] = options[0] if len(options) == 1 else split(content)
    _fix_what_fixed_needs(fixed, pieces, merged, split, {token: content for content, token in everything.items()})
    contents = {token: content for content, token in everything.items()}
    return TrimmableVocabulary(tokenizer, contents, tuple(sorted(fixed)), pieces, is_byte_level)


def _fix_what_fixed_needs(
    fixed: set[int], pieces: dict[int, tuple[int, ...]], merged: Mapping[int, tuple[tuple[int, ...], ...]],
    split: _Splitter, contents: Mapping[int, str],
) -> None:  # fmt: skip
    """Fix also the pieces of tokens that stay, where those are the results of merges."""
    waiting = [token for token in fixed if token in merged]
    while waiting:
        token = waiting.pop()
        for piece in merged[token][0] if len(merged[token]) == 1 else split(contents[token]):
            if piece not in fixed:
                fixed.add(piece)
                pieces.pop(piece, None)
                waiting += [piece] if piece in merged else []


def _merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, tuple[tuple[int, ...], ...]]:
    """The pairs that each token is merged from."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for left, right in map(_pair, model["merges"]):
        found.setdefault(ids[left + right], []).append((ids[left], ids[right]))
    return {token: tuple(pairs) for token, pairs in found.items()}


def _pair(entry: Any) -> tuple[str, str]:
    """A merge as ``tokenizer.json`` has it, in either of its forms."""
    left, right = entry.split(" ", 1) if isinstance(entry, str) else entry
    return left, right


class _Splitter:
    """What a token's text is written with, the token itself left out."""

    def __init__(self, ids: Mapping[str, int], model: Mapping[str, Any], is_byte_level: bool) -> None:
        self.ids, self.is_byte_level = ids, is_byte_level
        self.ranks = {_pair(entry): rank for rank, entry in enumerate(model.get("merges", ()))}
        self.scores = dict(model["vocab"]) if model["type"] == "Unigram" else None
        self.longest = max(map(len, ids)) if self.scores is not None else 0

    def __call__(self, content: str) -> tuple[int, ...]:
        if self.scores is not None:
            return self._numbers(self._likeliest(content))
        parts = list(content)
        while len(parts) > 2 or (len(parts) == 2 and parts[0] + parts[1] != content):
            none, pairs = len(self.ranks), itertools.pairwise(parts)
            rank, place = min((self.ranks.get(pair, none), place) for place, pair in enumerate(pairs))
            if rank == none:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return self._numbers(parts)

    def _likeliest(self, content: str) -> list[str]:
        """The segmentation with the greatest sum of scores (Viterbi)."""
        assert self.scores is not None
        unknown = min(self.scores.values()) - 10.0
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, len(content) + 1):
            options = []
            for start in range(max(0, end - self.longest), end):
                part = content[start:end]
                if (start or end < len(content)) and (part in self.scores or len(part) == 1):
                    options.append((best[start][0] + self.scores.get(part, unknown), start))
            best.append(max(options) if options else (unknown, end - 1))
        parts, end = [], len(content)
        while end:
            parts.append(content[best[end][1] : end])
            end = best[end][1]
        return parts[::-1]

    def _numbers(self, parts: Iterable[str]) -> tuple[int, ...]:
        parts = list(parts)
        numbers: list[int] = []
        for part in parts:
            if part in self.ids and len(parts) > 1:
                numbers.append(self.ids[part])
            elif self.is_byte_level:  # an added token's text
                own = [_byte_characters()[byte] for byte in part.encode()]
                numbers += [self.ids[char] for char in own if char in self.ids]
            else:
                numbers += [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        return tuple(numbers)


@functools.cache
def _byte_characters() -> tuple[str, ...]:
    """How byte-level tokenizers write each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in shown else chr(next(others)) for byte in range(256))


def _rewrite_json(path: Path, change: Any) -> None:
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(found), ensure_ascii=False), encoding="utf-8")


def _trimmed(description: dict[str, Any], place: Mapping[int, int]) -> dict[str, Any]:
    """``tokenizer.json`` with the kept tokens, numbered anew."""
    model, listed = description["model"], description["model"]["vocab"]
    added = [entry | {"id": place[entry["id"]]} for entry in description["added_tokens"] if entry["id"] in place]
    description["added_tokens"] = added
    # Added tokens are numbered behind the model's own; named among these, they keep the ids they are given.
    if isinstance(listed, list):
        whole = {place[number]: entry for number, entry in enumerate(listed) if number in place}
        whole = {entry["id"]: [entry["content"], 0.0] for entry in added} | whole
        model["vocab"] = [whole[number] for number in range(len(place))]
        model["unk_id"] = None if model.get("unk_id") is None else place[model["unk_id"]]
    else:
        vocab = {content: place[number] for content, number in listed.items() if number in place}
        model["vocab"] = vocab | {entry["content"]: entry["id"] for entry in added}
        pairs = ((entry, *_pair(entry)) for entry in model["merges"])
        model["merges"] = [entry for entry, a, b in pairs if a in vocab and b in vocab and a + b in vocab]
    if description.get("post_processor"):
        description["post_processor"] = _renumbered(description["post_processor"], place)
    return description


def _renumbered(value: Any, place: Mapping[int, int]) -> Any:
    """A post-processor with its special tokens' new ids."""
    if isinstance(value, list):
        return [_renumbered(entry, place) for entry in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _renumbered(entry, place) for key, entry in value.items()}
    if isinstance(changed.get("ids"), list):
        changed["ids"] = [place[number] for number in changed["ids"]]
    for key in ("sep", "cls"):
        if isinstance(changed.get(key), list):
            changed[key] = [changed[key][0], place[changed[key][1]]]
    return changed


def _trimmed_settings(settings: dict[str, Any], place: Mapping[int, int]) -> dict[str, Any]:
    """``tokenizer_config.json`` with new ids, for the class that reads ``tokenizer.json`` as it is."""
    decoder = settings.get("added_tokens_decoder")
    if decoder:
        settings["added_tokens_decoder"] = {
            str(place[int(number)]): entry for number, entry in decoder.items() if int(number) in place
        }
    return settings | {"tokenizer_class": "PreTrainedTokenizerFast"}


def count_tokens(tokenizer: Any, texts: Sequence[str], size: int) -> FloatArray:
    """``[size]``: how often each token occurs in texts."""
    counts = np.zeros(size, dtype=np.float64)
    backend = tokenizer.backend_tokenizer
    for first in range(0, len(texts), _BATCH):
        for found in backend.encode_batch(list(texts[first : first + _BATCH]), add_special_tokens=False):
            np.add.at(counts, np.asarray(found.ids, dtype=np.int64), 1.0)
    return counts


def blend(own: FloatArray, general: FloatArray | None, share: float) -> FloatArray:
    """Counts of one's own text with a share of another's, as if both had the same number of tokens."""
    if general is None or not general.sum():
        return own
    return own / max(own.sum(), 1.0) * (1 - share) + general / general.sum() * share


def renumber_settings(settings: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A config's, or a generation config's, fields with the new ids; ids that went, or never were any, are None."""
    place = {int(token): number for number, token in enumerate(kept)}

    def new(value: Any) -> Any:
        if isinstance(value, list):
            return [place[entry] for entry in value if entry in place]
        return place.get(value) if isinstance(value, int) else value

    def is_of_ids(name: str) -> bool:
        return name.endswith(("_token_id", "suppress_tokens"))

    return {name: new(value) if is_of_ids(name) else value for name, value in settings.items()}
