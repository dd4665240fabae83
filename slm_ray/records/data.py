"""Records of prepared data: what a folder of token shards holds, and the seal that tells whether a manifest was edited.

A sealed record's file carries a digest of its own content, because everything in its folder is trusted by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import JsonValue

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.base import Part, Record, check_version, parse_record
from slm_ray.records.files import read_json, write_json

R = TypeVar("R", bound=Record)
_SEAL = "manifest_digest"


class StoredFile(Part):
    """A file as it was written: its size, a checksum that costs next to nothing, and one that cannot be forged."""

    bytes: int
    crc32: int
    sha256: str


class Shard(Part):
    """One shard: consecutive sequences in ``NAME.ids.npy``, document starts in ``NAME.starts.npy``."""

    name: str  # Its files' name without ending
    num_sequences: int  # Sequences in it
    num_documents: int  # Documents that begin in it
    max_id: int  # The largest token id in it
    ids: StoredFile  # The file of token ids
    starts: StoredFile  # The file of document starts


class TokenSummary(Part):
    """What must be known of packed tokens to use them rightly."""

    part: str  # ``calibration``, ``train``, ``held_out`` or ``whole``
    num_sequences: int  # Number of sequences
    sequence_length: int  # Tokens per sequence
    num_documents: int  # Documents; one that goes on in the next shard counts once
    num_bytes: int  # UTF-8 bytes of the text that the tokens stand for; what bits per byte divides by
    separator: int | None  # The id behind each document (the tokenizer's EOS), or None if the tokenizer has none
    vocab_size: int  # One more than the largest id the tokenizer can give
    max_id: int  # The largest id that occurs
    corpus: str  # Name of the corpus
    corpus_digest: str | None  # Its digest; None for a remote stream
    tokenizer_digest: str  # See :func:`slm_ray.data.tokenizer_digest`
    # SHA-256 over the shards' digests, the sequence length and the separator: what two runs must share to have the same
    # sequences
    digest: str


class ShardManifest(Record):
    """The manifest that makes a folder of shards one thing."""

    FILE: ClassVar[str] = "manifest.json"
    tokens: TokenSummary  # What the shards hold together
    made_from: dict[str, JsonValue]  # All that decided what they are, for whoever reads the file
    shards: tuple[Shard, ...]  # In the order of the sequences


class PreparedBlock(Record):
    """One finished block of a preparation of shards."""

    FILE: ClassVar[str] = "block.json"  # of many in a folder: each has its block's name instead
    shard: Shard | None  # Its whole sequences; None where it fills none
    num_tokens: int  # Tokens of the block, those behind its last whole sequence included
    text_bytes: int  # UTF-8 bytes of its text
    num_bytes: int  # Those of its sequences


def write_sealed(folder: Path, record: Record) -> None:
    """Write a record with a digest of its content, whole or not at all."""
    content = record.to_json()
    write_json(folder / record.FILE, {**content, _SEAL: digest_json(content)})


def read_sealed(folder: Path, cls: type[R], remedy: str) -> R:
    """Read a record that :func:`write_sealed` wrote."""
    path = folder / cls.FILE
    value: Any = read_json(path)
    seal = value.pop(_SEAL, None) if isinstance(value, dict) else None
    check_version(value, str(path), remedy)
    if seal != digest_json(value):
        raise UserError(f"{path} is not what was written (its digest differs): {remedy}")
    return parse_record(cls, value, str(path), remedy)


def first_difference(there: Part, here: Part) -> str | None:
    """The first field that two parts do not share, as ``NAME is A, not B``; None where all agree."""
    before, now = there.to_json(), here.to_json()
    for name, value in now.items():
        if before.get(name) != value:
            return f"{name.replace('_', ' ')} is {before.get(name)}, not {value}"
    return None


class _Vocabulary(Record):
    """What is known of every vocabulary that was made."""

    FILE: ClassVar[str] = "vocabulary.json"
    made_from: str  # Digest of all that decided it
    corpus: str  # Name of the corpus that was read for it
    corpus_digest: str | None  # Its digest; None for a remote stream


class TrainedTokenizer(_Vocabulary):
    """What a tokenizer was trained on."""

    tokens: int  # Tokens in all
    # UTF-8 bytes of held-out text that a token stands for; None where there is no such text
    bytes_per_token: float | None


class BytesPerToken(Part):
    """UTF-8 bytes of held-out text that a token stands for; None where there is no such text."""

    before: float | None
    after: float | None


class _ChangedVocabulary(_Vocabulary):
    model: str  # The model, as the user named it
    rows: int  # Rows of the embedding
    bytes_per_token: BytesPerToken  # Of the old tokenizer and of the new one


class TrimmedVocabulary(_ChangedVocabulary):
    """Which of a model's tokens were kept."""

    general: float  # The share that the teacher's own text has in the counts
    new_tokens: int = 0  # Of the rows, those of tokens learned on the text


class ExtendedVocabulary(_ChangedVocabulary):
    """How a model's vocabulary was extended."""

    first_new: int  # The first new id; the others follow it
    new_tokens: int  # How many there are
