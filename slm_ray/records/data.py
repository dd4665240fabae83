"""Records of prepared data: what a folder of token shards holds, and the seal that tells whether a manifest was edited.

A sealed record's file carries a digest of its own content, because everything in its folder is trusted by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import JsonValue, ValidationError

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.base import SCHEMA_VERSION, Part, Record
from slm_ray.records.files import read_json, write_json

R = TypeVar("R", bound=Record)
_SEAL = "manifest_digest"


class StoredFile(Part):
    """A file as it was written: its size, a checksum that costs next to nothing, and one that cannot be forged."""

    bytes: int
    crc32: int
    sha256: str


class Shard(Part):
    """One shard: consecutive sequences in ``NAME.ids.npy``, document starts in ``NAME.starts.npy``.

    Attributes:
        name: Its files' name without ending.
        num_sequences: Sequences in it.
        num_documents: Documents that begin in it.
        max_id: The largest token id in it.
        ids: The file of token ids.
        starts: The file of document starts.
    """

    name: str
    num_sequences: int
    num_documents: int
    max_id: int
    ids: StoredFile
    starts: StoredFile


class TokenSummary(Part):
    """What must be known of packed tokens to use them rightly.

    Attributes:
        part: ``calibration``, ``train``, ``held_out`` or ``whole``.
        num_sequences: Number of sequences.
        sequence_length: Tokens per sequence.
        num_documents: Documents; one that goes on in the next shard counts once.
        num_bytes: UTF-8 bytes of the text that the tokens stand for; what bits per byte divides by.
        separator: The id behind each document (the tokenizer's EOS), or None if the tokenizer has none.
        vocab_size: One more than the largest id the tokenizer can give.
        max_id: The largest id that occurs.
        corpus: Name of the corpus.
        corpus_digest: Its digest; None for a remote stream.
        tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.
        digest: SHA-256 over the shards' digests, the sequence length and the separator: what two runs must share to
            have the same sequences.
    """

    part: str
    num_sequences: int
    sequence_length: int
    num_documents: int
    num_bytes: int
    separator: int | None
    vocab_size: int
    max_id: int
    corpus: str
    corpus_digest: str | None
    tokenizer_digest: str
    digest: str


class ShardManifest(Record):
    """The manifest that makes a folder of shards one thing.

    Attributes:
        tokens: What the shards hold together.
        made_from: All that decided what they are, for whoever reads the file.
        shards: In the order of the sequences.
    """

    FILE: ClassVar[str] = "manifest.json"
    tokens: TokenSummary
    made_from: dict[str, JsonValue]
    shards: tuple[Shard, ...]


class PreparedBlock(Record):
    """One finished block of a preparation of shards.

    Attributes:
        shard: Its whole sequences; None where it fills none.
        num_tokens: Tokens of the block, those behind its last whole sequence included.
        text_bytes: UTF-8 bytes of its text.
        num_bytes: Those of its sequences.
    """

    FILE: ClassVar[str] = "block.json"  # of many in a folder: each has its block's name instead
    shard: Shard | None
    num_tokens: int
    text_bytes: int
    num_bytes: int


def write_sealed(folder: Path, record: Record) -> None:
    """Write a record with a digest of its content, whole or not at all.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    content = record.to_json()
    write_json(folder / record.FILE, {**content, _SEAL: digest_json(content)})


def read_sealed(folder: Path, cls: type[R], remedy: str) -> R:
    """Read a record that :func:`write_sealed` wrote.

    Args:
        folder: Where it lies.
        cls: Its class.
        remedy: What a user does about a damaged one.

    Raises:
        UserError: It is missing, was edited, or is of another version.
    """
    path = folder / cls.FILE
    value: Any = read_json(path)
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(value, dict) and version != SCHEMA_VERSION:
        found = version if version is not None else 1
        raise UserError(f"{path} has schema version {found}, this slm_ray reads version {SCHEMA_VERSION}: {remedy}")
    try:
        whole = value.pop(_SEAL) == digest_json(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path} is not what was written (its digest differs): {remedy}")
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, entry["loc"])) for entry in error.errors()[:3])
        raise UserError(f"{path} is not what was written (wrong or missing: {fields}): {remedy}") from None


def first_difference(there: Part, here: Part) -> str | None:
    """The first field that two parts do not share, as ``NAME is A, not B``; None where all agree."""
    before, now = there.to_json(), here.to_json()
    for name, value in now.items():
        if before.get(name) != value:
            return f"{name.replace('_', ' ')} is {before.get(name)}, not {value}"
    return None


class TrainedTokenizer(Record):
    """What a tokenizer was trained on.

    Attributes:
        made_from: Digest of all that decided it.
        corpus: Name of the corpus.
        corpus_digest: Its digest; None for a remote stream.
        tokens: Tokens in all.
        bytes_per_token: UTF-8 bytes of held-out text that a token stands for; None where there is no such text.
    """

    FILE: ClassVar[str] = "vocabulary.json"
    made_from: str
    corpus: str
    corpus_digest: str | None
    tokens: int
    bytes_per_token: float | None


class BytesPerToken(Part):
    """UTF-8 bytes of held-out text that a token stands for; None where there is no such text."""

    before: float | None
    after: float | None


class ExtendedVocabulary(Record):
    """How a model's vocabulary was extended.

    Attributes:
        made_from: Digest of all that decided it.
        model: The model, as the user named it.
        corpus: Name of the corpus that new tokens were learned from.
        corpus_digest: Its digest; None for a remote stream.
        first_new: The first new id; the others follow it.
        new_tokens: How many there are.
        rows: Rows of the embedding.
        bytes_per_token: Of the old tokenizer and of the new one.
    """

    FILE: ClassVar[str] = "vocabulary.json"
    made_from: str
    model: str
    corpus: str
    corpus_digest: str | None
    first_new: int
    new_tokens: int
    rows: int
    bytes_per_token: BytesPerToken
