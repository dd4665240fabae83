"""What a search starts from: the teacher and its tokens, with their digests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.data import CALIBRATION, HELD_OUT, TRAIN, Corpus, TokenShards, load_corpus, prepare_tokens
from slm_ray.models.precision import bf16_gain, measure_precision
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.session import default_workers
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import DTYPES
from slm_ray.search.genome import Genome
from slm_ray.search.placing import room
from slm_ray.search.space import NATURAL, SearchSpace, load_space
from slm_ray.search.teacher_text import FitText, mix, num_aside, num_to_write, teacher_text

INPUTS_FILE = "inputs.json"


@dataclass(frozen=True)
class SearchInputs:
    """Everything a search reads.

    Attributes:
        teacher: The teacher in the cache.
        architecture: Its sizes.
        space: The search space, its order replaced where the options say so.
        budget: The hard range of sizes.
        corpus: Where the text comes from.
        calibration: Tokens that candidates are measured on.
        train: Tokens that unit scores are learned from.
        held_out: Tokens that the front is measured on.
        other: Tokens of another kind of text, that winners are measured on besides; None where none was asked for.
        precision: ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``: what candidates and unit scores are computed on.
        reconstruction: Tokens that weights are fitted on, some of them the teacher's own text where that is asked for;
            None where nothing is reconstructed.
        aside: ``[sequences, length]`` of the teacher's own text that nothing is fitted on; it decides with the
            calibration text whether fitted weights are kept. None where the teacher writes nothing.
        written_tokens: Tokens that the teacher wrote just now; 0 where the cache had them.
    """

    teacher: Teacher
    architecture: Architecture
    space: SearchSpace
    budget: Budget
    corpus: Corpus
    calibration: TokenShards
    train: TokenShards
    held_out: TokenShards
    precision: str
    device: str = "cpu"
    reconstruction: FitText | None = None
    aside: NDArray[np.int32] | None = None
    written_tokens: int = 0
    other: TokenShards | None = None

    def digests(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        return {
            "teacher": self.teacher.digest,
            "space": self.space.digest,
            "calibration_tokens": self.calibration.digest,
            "train_tokens": self.train.digest,
            "held_out_tokens": self.held_out.digest,
            "other_tokens": None if self.other is None else self.other.digest,
            "budget": [self.budget.quantity, self.budget.low, self.budget.high],
            "precision": self.precision,
            "device": self.device,
        }


def check_sequence_length(config: SearchConfig, architecture: Architecture) -> None:
    """Make sure that the teacher has positions for the sequences.

    Raises:
        UserError: It has not.
    """
    most = architecture.structure.max_position_embeddings
    if config.sequence_length > most:
        raise UserError(
            f"--sequence-length {config.sequence_length} is over the teacher's {most} positions: give {most} or less"
        )


def search_workers(config: SearchConfig) -> int:
    """Trials at once on this machine: by its usable CPUs, and where they run on GPUs, by those too."""
    count = default_workers(config.threads)
    if config.address or device_of(config.device) == "cpu":
        return count
    return room("cuda", 1, {"CPU": count, "GPU": torch.cuda.device_count()})


def written_sequences(config: SearchConfig) -> int:
    """How many of the sequences that weights are fitted on the teacher writes; the others come from the corpus."""
    if config.reconstruct == "none":
        return 0
    return int(max(1, config.reconstruct_tokens // config.sequence_length) * config.teacher_text + 1e-9)


def _pack(
    config: SearchConfig, corpus: Corpus, tokenizer: Any, part: str, num_tokens: int, console: Console,
    flag: str | None = None,
) -> TokenShards:  # fmt: skip
    """Tokens of a part of a corpus, in the search's sequences."""
    return prepare_tokens(
        corpus, tokenizer, part, num_tokens=num_tokens, sequence_length=config.sequence_length,
        cache=cache_folder() / "tokens", console=console, flag=flag,
    )  # fmt: skip


def prepare_parts(
    config: SearchConfig, teacher: Teacher, console: Console
) -> tuple[Corpus, TokenShards, TokenShards, TokenShards]:
    """Tokenise and pack the three parts of the corpus.

    Returns:
        The corpus, then its calibration, train and held-out tokens.

    Raises:
        UserError: The corpus is wrong or too short, or the teacher's tokenizer is.
    """
    corpus = load_corpus(config.data, config.text_field, console)
    tokenizer = teacher.tokenizer()
    wanted = {
        CALIBRATION: config.calibration_tokens,
        TRAIN: config.importance_steps * config.importance_tokens,
        HELD_OUT: config.held_out_tokens,
    }
    parts = [_pack(config, corpus, tokenizer, part, count, console) for part, count in wanted.items()]
    return corpus, parts[0], parts[1], parts[2]


def _other_tokens(config: SearchConfig, teacher: Teacher, console: Console) -> TokenShards | None:
    """The held-out part of another corpus, where one was given.

    Raises:
        UserError: That corpus is wrong or too short.
    """
    if not config.other_data:
        return None
    corpus = load_corpus(config.other_data, config.text_field, console)
    return _pack(config, corpus, teacher.tokenizer(), HELD_OUT, config.other_tokens, console, "--other-tokens")


def tokens_to_write(config: SearchConfig) -> int:
    """How many tokens the teacher writes, those put aside included; they are kept in the cache."""
    wanted = written_sequences(config)
    return num_to_write(wanted, config.sequence_length) * config.sequence_length if wanted else 0


def _written(
    config: SearchConfig, teacher: Teacher, precision: str, console: Console
) -> tuple[NDArray[np.int32], NDArray[np.int32], int] | None:
    """The teacher's own text to fit on, the sequences put aside, and how many tokens were written now.

    Raises:
        UserError: The teacher cannot write.
    """
    tokens, length = tokens_to_write(config), config.sequence_length
    if not tokens:
        return None
    ids, was_cached = teacher_text(teacher, precision, tokens // length, length, console)
    aside = num_aside(length)
    return ids[:-aside], ids[-aside:], 0 if was_cached else ids.size


def _reconstruction_tokens(
    config: SearchConfig, corpus: Corpus, teacher: Teacher, train: TokenShards, written: NDArray[np.int32] | None,
    console: Console,
) -> FitText | None:  # fmt: skip
    """Tokens to fit weights on: as many as were asked for; where the part has not so many, the scores' own instead."""
    if config.reconstruct == "none":
        return None
    num_written, length = written_sequences(config), config.sequence_length
    wanted = max(config.reconstruct_tokens, length) - num_written * length
    try:
        own = _pack(config, corpus, teacher.tokenizer(), TRAIN, wanted, console, "--reconstruct-tokens")
    except UserError as error:
        if train.num_tokens >= wanted:
            raise
        console.line(f"{error}; weights are fitted on the {train.num_tokens:,} tokens that scores are learned from")
        own, share = train, config.teacher_text
        num_written = int(train.num_sequences * share / (1 - share) + 1e-9)
    return mix(own, written, num_written)


def prepare_inputs(config: SearchConfig, console: Console) -> SearchInputs:
    """Load and check everything a search reads.

    Args:
        config: The options.
        console: Where to say what was found.

    Raises:
        UserError: Something is missing or wrong, or the space cannot meet the budget.
    """
    space = load_space(config.space)
    if config.order:
        space = space.with_order(config.order)
    teacher = load_teacher(config.teacher)
    architecture = teacher.architecture()
    check_sequence_length(config, architecture)
    budget = config.budget(architecture)
    genome = Genome(space.with_order(NATURAL), architecture)
    genome.check_budget(budget, config.sequence_length)
    corpus, calibration, train, held_out = prepare_parts(config, teacher, console)
    other = _other_tokens(config, teacher, console)
    device = device_of(config.device, config.address)
    precision = measure_precision(config.precision, device)
    teacher.state_as(DTYPES[precision])  # made here once, so that no two workers make it at the same time
    console.line(
        f"teacher {teacher.name}, {budget}, {calibration.num_tokens:,} calibration tokens, {precision} on {device}"
        + (f" (products in bf16 {bf16_gain():.1f}× as fast)" if (config.precision, device) == ("auto", "cpu") else "")
    )
    written, aside, written_tokens = _written(config, teacher, precision, console) or (None, None, 0)
    fitted = _reconstruction_tokens(config, corpus, teacher, train, written, console)
    if fitted is not None:
        teacher.state_as(DTYPES["fp32"])
    return SearchInputs(
        teacher, architecture, space, budget, corpus, calibration, train, held_out, precision, device, fitted,
        aside, written_tokens, other=other,
    )  # fmt: skip


def with_kept_precision(config: SearchConfig, folder: Path) -> SearchConfig:
    """Options with what a run of them was begun in: what products take is not measured a second time.

    Args:
        config: The options.
        folder: The run's folder, begun or not.

    Raises:
        UserError: Its record is damaged.
    """
    path = folder / INPUTS_FILE
    return replace(config, precision=read_json(path)["precision"]) if path.exists() else config


def keep_digests(folder: RunFolder, inputs: SearchInputs) -> None:
    """Write the inputs' digests, or check that a resumed run still has the same.

    Raises:
        UserError: The teacher, the text or the space is no longer what the run was started with.
    """
    path = folder.file(INPUTS_FILE)
    if not path.exists():
        write_json(path, inputs.digests())
        return
    before, now = {"device": "cpu"} | read_json(path), inputs.digests()  # older runs do not say it
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder.path} cannot be resumed: its {name.replace('_', ' ')} was {before.get(name)}, now {now[name]}: "
            "restore it, or start a new run"
        )
