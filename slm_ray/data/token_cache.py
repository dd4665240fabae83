"""Packed tokens on the disk: found again by what they were made from, trusted only after their digests are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.packed import PackedTokens, digest_array
from slm_ray.records.files import read_json, whole_folder, write_json
from slm_ray.runtime.progress import Console

IDS_FILE, STARTS_FILE, MANIFEST_FILE = "ids.npy", "document_starts.npy", "manifest.json"
_FORMAT = 1  # raise it when the files, or the choice and order of documents, change


def load_or_build(
    cache: Path, wanted: dict[str, Any], build: Callable[[], PackedTokens], console: Console
) -> PackedTokens:
    """Give the tokens made from ``wanted``: from the cache if they are there and whole, else made and stored.

    Args:
        cache: The folder of all cached tokens.
        wanted: All that decides what the tokens are, as JSON-like values.
        build: Makes them.
        console: Where to say that damaged tokens are made again.

    Returns:
        The tokens, memory-mapped read-only.

    Raises:
        UserError: They cannot be made or cannot be written.
    """
    folder = cache / f"{wanted['part']}-{digest_json({'format': _FORMAT, **wanted})}"
    if folder.exists():
        try:
            return _load(folder, wanted)
        except _DamagedError as error:
            console.line(f"the cached tokens in {folder} are damaged ({error}): making them again")
    tokens = build()
    try:
        _store(folder, wanted, tokens)
    except UserError:
        # Another process may have stored the same tokens first; then the folder could not take its name, and need not.
        try:
            return _load(folder, wanted)
        except _DamagedError:
            pass
        raise
    return _load(folder, wanted)


class _DamagedError(Exception):
    """What is wrong with a cached folder."""


def _store(folder: Path, wanted: dict[str, Any], tokens: PackedTokens) -> None:
    content = {
        "format": _FORMAT,
        "made_from": wanted,
        "tokens": tokens.describe(),
        "document_starts_digest": digest_array(tokens.document_starts),
    }
    with whole_folder(folder) as temporary:
        np.save(temporary / IDS_FILE, tokens.ids, allow_pickle=False)
        np.save(temporary / STARTS_FILE, tokens.document_starts, allow_pickle=False)
        write_json(temporary / MANIFEST_FILE, {**content, "manifest_digest": digest_json(content)})


def _load(folder: Path, wanted: dict[str, Any]) -> PackedTokens:
    """Map stored tokens and check every digest.

    Raises:
        _DamagedError: Something is missing, unreadable, or not what it was when it was written.
    """
    try:
        content = read_json(folder / MANIFEST_FILE)
        _check(content.pop("manifest_digest") == digest_json(content), MANIFEST_FILE)
        ids = np.load(folder / IDS_FILE, mmap_mode="r", allow_pickle=False)
        starts = np.load(folder / STARTS_FILE, mmap_mode="r", allow_pickle=False)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise _DamagedError(str(error)) from error
    said = content["tokens"]
    _check(content["made_from"] == wanted, MANIFEST_FILE)
    _check(ids.dtype == np.int32 and digest_array(ids) == said["digest"], IDS_FILE)
    _check(starts.dtype == np.int64 and digest_array(starts) == content["document_starts_digest"], STARTS_FILE)
    return PackedTokens(
        ids=ids,
        document_starts=starts,
        part=said["part"],
        num_bytes=said["num_bytes"],
        separator=said["separator"],
        corpus=said["corpus"],
        corpus_digest=said["corpus_digest"],
        tokenizer_digest=said["tokenizer_digest"],
        digest=said["digest"],
    )


def _check(holds: bool, file: str) -> None:
    if not holds:
        raise _DamagedError(f"{file} is not what was written")
