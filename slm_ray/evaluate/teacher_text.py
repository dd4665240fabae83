"""Text that the teacher writes itself, so that weights that are fitted do not serve the user's text alone.

Weights fitted on one kind of text are at their worst on every other. A language model's own samples are text of all
the kinds it was trained on, need no data, and are what LLM-QAT (arXiv 2305.17888) calibrates on: each text begins with
a token drawn evenly from the vocabulary and goes on as the model itself draws it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.data.corpus import Corpus, Document, digest_texts
from slm_ray.data.load import BY_TEACHER
from slm_ray.data.sample import load_or_build
from slm_ray.data.shards import TokenShards, digest_array, write_shards
from slm_ray.data.split import TRAIN
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.evaluate.decoding import Sampling, continue_rows
from slm_ray.evaluate.models import LoadedModel, ModelFolder
from slm_ray.models.precision import choose_precision
from slm_ray.models.teachers import Teacher
from slm_ray.records.files import cache_folder
from slm_ray.runtime.progress import Console, Progress

MOST_WRITTEN_TOKENS = 16384  # written anew; where more are wanted, they are taken again from the first
ASIDE_TOKENS = 1024  # of them that nothing is fitted on
CORPUS_TEXTS = 128  # where its text is a corpus
_TEXT_TOKENS = 256  # of one text: attention over longer ones takes most of the time
_BATCH_TEXTS = 64  # the weights are read once for all of them
_SEED = 0  # of the teacher, not of the run: the text is made once for all runs
_VERSION = 3


@dataclass(frozen=True)
class MixedText:
    """Tokens of the user's text, some of which the teacher wrote."""

    ids: NDArray[np.int32]  # int32 ``[sequences, length]``
    part: str  # The corpus's part that those of the user's text are of
    digest: str  # SHA-256 of shape and ids
    written_tokens: int = 0  # How many of them the teacher wrote

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return int(self.ids.size)

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence."""
        return int(self.ids.shape[1])


def mix(own: TokenShards | MixedText, written: NDArray[np.int32] | None, num_written: int) -> MixedText:
    """Sequences of the user's text and of the teacher's, evenly in between each other.

    ``written``: ``[sequences, length]``, the teacher's; None where there are none.
    """
    if written is None or not num_written:
        return MixedText(own.ids, own.part, own.digest)
    count = own.num_sequences + num_written
    before = np.arange(count + 1) * num_written // count  # how many of the teacher's stand before each place
    rows = [
        written[theirs % len(written)] if after > theirs else own.ids[place - theirs]
        for place, (theirs, after) in enumerate(itertools.pairwise(before.tolist()))
    ]
    ids = np.stack(rows)
    return MixedText(ids, own.part, digest_array(ids), num_written * ids.shape[1])


def num_aside(sequence_length: int) -> int:
    """Sequences that are put aside to decide with."""
    return max(1, ASIDE_TOKENS // sequence_length)


def num_to_write(sequences: int, sequence_length: int) -> int:
    """How many sequences the teacher writes where so many are wanted; those put aside come on top."""
    return min(sequences, max(1, MOST_WRITTEN_TOKENS // sequence_length)) + num_aside(sequence_length)


def teacher_text(
    teacher: Teacher, device: str, precision: str, num_sequences: int, sequence_length: int, console: Console
) -> tuple[NDArray[np.int32], bool]:
    """Text of the teacher's own, out of the cache where it was written before.

    Returns ``[num_sequences, sequence_length]``, and whether it came from the cache.
    """
    tokenizer = teacher.tokenizer()
    was_cached = True
    wanted: dict[str, Any] = {
        "part": TRAIN, "written_by": teacher.digest, "tokenizer": tokenizer_digest(tokenizer), "precision": precision,
        "device": device, "num_sequences": num_sequences, "sequence_length": sequence_length, "version": _VERSION,
        "text_tokens": _TEXT_TOKENS, "seed": _SEED,
    }  # fmt: skip

    def build(folder: Path) -> None:
        nonlocal was_cached
        was_cached = False
        length = min(_TEXT_TOKENS, sequence_length)
        count = -(-num_sequences * sequence_length // length)
        progress = Progress(console, "the teacher's own text", count, "texts")
        flat = write(teacher, precision, count, length, progress.update, device).reshape(-1)
        ids = np.ascontiguousarray(flat[: num_sequences * sequence_length].reshape(num_sequences, sequence_length))
        size = sum(len(tokenizer.decode(row.tolist()).encode()) for row in ids)
        starts = np.arange(0, ids.size, length, dtype=np.int64)
        name = f"text written by {teacher.name}"
        write_shards(
            folder,
            ids,
            starts,
            vocab_size=len(tokenizer),
            num_bytes=size,
            part=TRAIN,
            corpus=name,
            tokenizer_digest=wanted["tokenizer"],
            made_from=wanted,
        )

    return load_or_build(cache_folder() / "tokens", wanted, build, console).ids, was_cached


def corpus_by(teacher: Teacher, console: Console) -> Corpus:
    """What a teacher writes itself as a corpus of :data:`CORPUS_TEXTS` documents, written when it is first read."""

    def read() -> list[Document]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        ids, _ = teacher_text(teacher, device, choose_precision("auto", device), CORPUS_TEXTS, _TEXT_TOKENS, console)
        texts = teacher.tokenizer().batch_decode(ids, skip_special_tokens=True)
        return [Document(f"text {number}", text) for number, text in enumerate(texts)]

    return Corpus(BY_TEACHER, read, compute_digest=lambda: digest_texts(document.text for document in read()))


def write(
    teacher: Teacher, precision: str, count: int, length: int, on_text: Callable[[float], None] = lambda done: None,
    device: str = "cpu",
) -> NDArray[np.int32]:
    """Let a teacher write.

    With torch's own number of threads: a run's ``--workers`` must not change a result. Returns ``[count, length]``.
    """
    loaded = LoadedModel(ModelFolder(teacher.name, teacher.folder, teacher.digest), precision, torch.device(device))
    firsts = first_tokens(teacher.tokenizer(), loaded.model.get_input_embeddings().weight.shape[0], count)
    if length == 1:
        return firsts[:, None]
    sampling = Sampling(max_new_tokens=length - 1, temperature=1.0, seed=_SEED)
    texts: list[list[int]] = []
    for start in range(0, count, _BATCH_TEXTS):
        rows = [[int(first)] for first in firsts[start : start + _BATCH_TEXTS]]
        names = [str(start + number) for number in range(len(rows))]

        def on_token(done: int, start: int = start, rows: int = len(rows)) -> None:
            on_text(start + rows * done / length)

        written = continue_rows(loaded, rows, names, [], sampling, on_token)
        texts += [row + new for row, (new, _) in zip(rows, written, strict=True)]
        on_text(len(texts))
    return np.array(texts, dtype=np.int32)


def first_tokens(tokenizer: Any, num_known: int, count: int) -> NDArray[np.int32]:
    """The tokens that texts begin with: drawn evenly from the vocabulary, special ones left out, all different.

    Where there are more texts than tokens, some begin alike.
    """
    special = set(tokenizer.all_special_ids)
    plain = np.array([token for token in range(min(num_known, len(tokenizer))) if token not in special])
    return np.random.default_rng(_SEED).choice(plain, count, replace=count > len(plain)).astype(np.int32)
