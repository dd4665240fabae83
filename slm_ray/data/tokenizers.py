"""Loading a tokenizer, and the digest that tells whether two do the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from slm_ray.config.digest import sha256_bytes
from slm_ray.config.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(source: Path | str, sentence: str | None = None, *, local: bool | None = None) -> Any:
    """The tokenizer of a model folder or hub id; no code of its own is run.

    ``sentence``: What to say where there is none; ``no tokenizer can be loaded from SOURCE`` by default. ``local``: Ask
    no hub; by default where ``source`` is a folder.
    """
    from transformers import AutoTokenizer

    local = Path(source).expanduser().is_dir() if local is None else local
    try:
        return AutoTokenizer.from_pretrained(
            os.path.expanduser(source), local_files_only=local, trust_remote_code=False
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        said = sentence or f"no tokenizer can be loaded from {source}"
        raise UserError(f"{said} ({reason.rstrip('.')}): give a model folder that has a tokenizer.json") from error


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of a fast tokenizer's backend without padding and truncation, which calls switch on and off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast one: use a model folder that has a tokenizer.json"
        )
    copy: Tokenizer = type(backend).from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """The SHA-256 of what a fast tokenizer does, padding and truncation left out."""
    return sha256_bytes(plain_backend(tokenizer).to_str().encode())


def begin_of(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id that a tokenizer puts before every text (Gemma, Llama 2, Mistral: BOS); None where it puts none."""
    ids, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return ids[0] if ids[1 : 1 + len(plain)] == plain and ids[0] == tokenizer.bos_token_id else None


def begin_facts(tokenizer: PreTrainedTokenizerFast) -> dict[str, JsonValue]:
    """What tokens are made from besides, where they begin with an id of their own."""
    begin = begin_of(tokenizer)
    return {} if begin is None else {"begin": begin}


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """One more than the largest id that a tokenizer can give."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
