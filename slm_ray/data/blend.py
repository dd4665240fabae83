"""Text in proportions: how a blend is written, and the sequences of several corpora as one folder of shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from slm_ray.config.errors import UserError
from slm_ray.data.shards import Starts, TokenShards, write_manifest, write_shard
from slm_ray.records.files import whole_folder

_SHARD_SEQUENCES = 1024
_EXAMPLE = "write it as mine.jsonl:0.7,owner/name:0.3"


def parse_blend(name: str) -> dict[str, float]:
    """The corpora of ``NAME:WEIGHT,NAME:WEIGHT`` and their shares, which sum to 1; empty where it is one corpus.

    A blend has a comma and is no path that exists; a weight stands behind the last colon, so that names may have some.
    """
    if "," not in name or Path(name).expanduser().exists():
        return {}
    weights: dict[str, float] = {}
    paths = set[Path]()
    for entry in name.split(","):
        corpus, _, said = (text.strip() for text in entry.rpartition(":"))
        if not corpus:
            raise UserError(f"'{entry}' in the blend '{name}' has no weight: {_EXAMPLE}")
        if (weight := _weight(said)) is None:
            raise UserError(f"the weight of '{corpus}' in a blend must be a number from 0, got '{said}': {_EXAMPLE}")
        if (path := Path(corpus).expanduser().resolve()) in paths:
            raise UserError(f"the blend '{name}' names '{corpus}' twice: name it once, with the sum of its weights")
        paths.add(path)
        weights[corpus] = weight
    if not (total := sum(weights.values())):
        raise UserError(f"the weights of the blend '{name}' sum to 0: give at least one corpus a weight above 0")
    return {corpus: weight / total for corpus, weight in weights.items() if weight}


def _weight(said: str) -> float | None:
    try:
        weight = float(said)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None


def split_count(shares: Sequence[float], count: int) -> list[int]:
    """A number of sequences in proportion to shares that sum to 1, by largest remainder; the first wins a tie."""
    exact = [share * count for share in shares]
    found = [int(one + 1e-9) for one in exact]
    by_remainder = sorted(range(len(shares)), key=lambda at: round(found[at] - exact[at], 9))
    for at in by_remainder[: count - sum(found)]:
        found[at] += 1
    return found


def write_blend(
    folder: Path, parts: Sequence[tuple[TokenShards, int]], *, corpus: str, corpus_digest: str | None,
    made_from: Mapping[str, JsonValue],
) -> None:  # fmt: skip
    """Write so many sequences of each of several shards, evenly in between each other, whole or not at all.

    Shards that have fewer are gone through again from the first. They are of one tokenizer, part and length.
    """
    length = parts[0][0].sequence_length
    owners = np.repeat(np.arange(len(parts)), [count for _, count in parts])
    numbers = np.concatenate([np.arange(count) for _, count in parts])
    order = np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for _, count in parts]), kind="stable")
    with whole_folder(folder) as temporary:
        written = []
        for number, first in enumerate(range(0, len(order), _SHARD_SEQUENCES)):
            chosen = order[first : first + _SHARD_SEQUENCES]
            ids, starts = np.empty((len(chosen), length), dtype=np.int32), list[Starts]()
            for owner, (shards, _) in enumerate(parts):
                where = np.flatnonzero(owners[chosen] == owner)
                indices = numbers[chosen[where]] % shards.num_sequences
                ids[where] = shards.rows(indices)
                starts += _starts(shards, indices, where)
            written.append(write_shard(temporary, f"shard-{number:05d}", ids, np.sort(np.concatenate(starts))))
        one = parts[0][0]
        size = sum(shards.num_bytes * count / shards.num_sequences for shards, count in parts)
        write_manifest(
            temporary, written, sequence_length=length, num_bytes=round(size), separator=one.separator,
            vocab_size=one.vocab_size, part=one.part, corpus=corpus, corpus_digest=corpus_digest,
            tokenizer_digest=one.tokenizer_digest, made_from=made_from,
        )  # fmt: skip


def _starts(shards: TokenShards, indices: Starts, where: Starts) -> list[Starts]:
    """Where documents begin in sequences ``indices``, once these stand at the places ``where``."""
    length, starts = shards.sequence_length, shards.document_starts
    low, high = np.searchsorted(starts, indices * length), np.searchsorted(starts, (indices + 1) * length)
    ranges = zip(low, high, (where - indices) * length, strict=True)
    return [starts[first:end] + shift for first, end, shift in ranges]
