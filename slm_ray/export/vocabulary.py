"""A tokenizer as llama.cpp reads it: tokens, kinds, merges or scores, and how text is split before them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json

# How text is split, to llama.cpp's name for it; the patterns are those of tokenizer.json.
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPLITS = {rf"{_LETTERS}|\p{{N}}{{1,3}}": "llama-bpe", rf"{_LETTERS}|\p{{N}}": "qwen2"}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _refuse(what: str) -> UserError:
    return UserError(
        f"its tokenizer {what}, which is not exported: byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen) and BPE "
        "with byte fallback (Llama 2, Mistral) are exported"
    )


def _steps(node: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, in order."""
    if not node:
        return []
    return [step for one in node["pretokenizers"] for step in _steps(one)] if node["type"] == "Sequence" else [node]


def split_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text.

    Raises:
        UserError: It has none.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0]["pattern"].get("Regex", ""))
        for part, name in sorted(_SPLITS.items(), key=lambda entry: -len(entry[0])):
            if part in pattern:
                return name
    raise _refuse(f"splits text by {' and '.join(kinds) or 'nothing'}")


def _kind(text: str, added: dict[str, Any] | None, unknown: str | None) -> TokenType:
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, num_rows: int) -> None:
    """Write the tokenizer of a model's folder; rows of the embedding without a token are written as unused.

    Raises:
        UserError: There is none, or it is of another kind.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json, which a GGUF file holds: save the model's tokenizer there")
    tokenizer = read_json(path)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise _refuse(f"is a {model.get('type')} model")
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or ()}
    texts = {number: text for text, number in model["vocab"].items()} | {
        at: one["content"] for at, one in added.items()
    }
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(num_rows)]
    kinds = [
        _kind(text, added.get(number), model.get("unk_token")) if number in texts else TokenType.UNUSED
        for number, text in enumerate(tokens)
    ]
    by_merges = not model.get("byte_fallback")
    if by_merges:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_name(tokenizer))
    else:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        ranks = {"".join(pair): float(-rank) for rank, pair in enumerate(pairs)}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([ranks.get(text, 0.0 if kinds[at] != TokenType.NORMAL else -1e6)
                                 for at, text in enumerate(tokens)])  # fmt: skip
        normalizers = str(tokenizer.get("normalizer")) + str(tokenizer.get("pre_tokenizer"))
        writer.add_add_space_prefix("Prepend" in normalizers or "'prepend_scheme': 'first'" in normalizers
                                    or "'prepend_scheme': 'always'" in normalizers)  # fmt: skip
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=by_merges, n_vocab=num_rows)
    special.add_to_gguf(writer, quiet=True)
