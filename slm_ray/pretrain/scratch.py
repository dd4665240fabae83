"""Models from nothing: their vocabulary, their sizes by the ladder, and the batch and rate that go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError, first_line
from slm_ray.data import load_corpus
from slm_ray.data.tokenizer_training import check_size, train_tokenizer
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.models.loading import quiet_transformers
from slm_ray.models.scratch import ROTARY, Rung, find_rung, pad_vocabulary, with_positions
from slm_ray.models.teacher_sizes import BUNDLED_ARCHITECTURE, look_up_teacher
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.pretrain.config import SCRATCH, PretrainConfig
from slm_ray.records.architecture import Architecture
from slm_ray.records.files import cache_folder, read_json
from slm_ray.runtime.progress import Console

TRAIN_PREFIX = "train:"
MODEL_FILE = "model.json"


@dataclass(frozen=True)
class ScratchModel:
    """One model from nothing.

    Attributes:
        label: Short name within the run: its size, and its positions where they are not rotary.
        rung: Its step of the ladder.
        architecture: Its sizes, with its positions.
        positions: The kind of positions.
        batch_size: Sequences of a step.
        learning_rate: Peak rate.
    """

    label: str
    rung: Rung
    architecture: Architecture
    positions: str
    batch_size: int
    learning_rate: float

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """A run's options with this model's batch and rate."""
        return dataclasses.replace(config, batch_size=self.batch_size, learning_rate=self.learning_rate)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {
            "target": self.rung.target, "positions": self.positions, "batch_size": self.batch_size,
            "learning_rate": self.learning_rate, "params_without_embeddings": self.rung.matrix_params,
        }  # fmt: skip


def plan_scratch(config: PretrainConfig, vocab_size: int) -> tuple[ScratchModel, ...]:
    """Every model from nothing that a run trains.

    Args:
        config: The options.
        vocab_size: Rows of the embedding.

    Raises:
        UserError: A size cannot be had with this vocabulary, or the tokens are too few for one step.
    """
    found = []
    for size, target in config.scratch_sizes().items():
        rung = find_rung(target, vocab_size)
        label = size if config.positions == ROTARY else f"{size}-{config.positions}"
        architecture = with_positions(rung.architecture, config.positions, config.sequence_length)
        batch = config.batch_size or rung.batch_size(config.num_tokens(), config.sequence_length, _multiple(config))
        rate = config.learning_rate or rung.learning_rate(batch * config.sequence_length)
        model = ScratchModel(label, rung, architecture, config.positions, batch, rate)
        model.config(config).check()
        found.append(model)
    return tuple(found)


def with_kept_settings(config: PretrainConfig, models: tuple[ScratchModel, ...], run: Path) -> tuple[ScratchModel, ...]:
    """Models with the batch and rate that a resumed run began with: the ladder's batch depends on the workers, too.

    Args:
        config: The options.
        models: As planned now.
        run: The run's folder.

    Raises:
        UserError: The workers of now cannot share that batch.
    """
    found = []
    for model in models:
        kept = next(iter(sorted(run.glob(f"{model.label}.{SCRATCH}*/{MODEL_FILE}"))), None)
        if kept is not None:
            settings = read_json(kept)["scratch"]
            model = dataclasses.replace(
                model, batch_size=settings["batch_size"], learning_rate=settings["learning_rate"]
            )
            model.config(config).check()
        found.append(model)
    return tuple(found)


def _multiple(config: PretrainConfig) -> int:
    """What a batch must be a multiple of, so that workers and micro-batches divide it."""
    return config.workers * (config.micro_batch_size() or 1)


def scratch_digest(models: tuple[ScratchModel, ...]) -> str:
    """What must be the same for a run of these models to be continued."""
    return digest_json([model.describe() | {"architecture": model.architecture.digest} for model in models])


def vocabulary_rows(config: PretrainConfig, tokenizer_size: int, teacher: Architecture | None) -> int:
    """Rows of the embedding: the teacher's where it is distilled from, else the tokenizer's, to a multiple of 64."""
    if config.distill != "none" and teacher is not None:
        return teacher.structure.vocab_size
    return pad_vocabulary(tokenizer_size)


def known_vocabulary(config: PretrainConfig) -> int | None:
    """Rows of the embedding as far as they can be told without a download or a training; None where they cannot.

    Raises:
        UserError: There is no such tokenizer or teacher.
    """
    teacher = look_up_teacher(config.teacher).architecture if config.teacher else None
    if config.distill != "none":
        return teacher.structure.vocab_size if teacher else None
    source = config.tokenizer or config.teacher or BUNDLED_NAME
    if size := train_size(source):
        return pad_vocabulary(size)
    if source == BUNDLED_NAME:
        return pad_vocabulary(BUNDLED_ARCHITECTURE.structure.vocab_size)
    if not Path(source).is_dir() and config.tokenizer is None:
        return None
    tokenizer = _load_tokenizer(source, local_files_only=True, fallback=lambda: None)
    return None if tokenizer is None else pad_vocabulary(len(tokenizer))


def train_size(source: str) -> int | None:
    """The vocabulary of ``train:SIZE``; None for any other text.

    Raises:
        UserError: The size is no whole number, or too small or large.
    """
    if not source.startswith(TRAIN_PREFIX):
        return None
    text = source.removeprefix(TRAIN_PREFIX).replace("_", "")
    if not text.isdigit():
        raise UserError(f"--tokenizer '{source}' must name a whole number of tokens, like train:8192")
    check_size(int(text))
    return int(text)


def scratch_tokenizer(config: PretrainConfig, teacher: Teacher | None, console: Console) -> Any:
    """The tokenizer of models from nothing: named, trained on the corpus, the teacher's, or the bundled one.

    Raises:
        UserError: It cannot be loaded, or the corpus is too small to train it.
    """
    source = config.tokenizer
    if source is None and teacher is not None:
        return teacher.tokenizer()
    if source is None or source == BUNDLED_NAME:
        return load_teacher(BUNDLED_NAME).tokenizer()
    if size := train_size(source):
        corpus = load_corpus(config.data, config.text_field, console)
        return train_tokenizer(corpus, size, cache_folder() / "tokenizers", console)
    return _load_tokenizer(source)


def _load_tokenizer(source: str, *, local_files_only: bool = False, fallback: Callable[[], Any] | None = None) -> Any:
    """A fast tokenizer from a folder or the hub.

    Raises:
        UserError: There is none, unless ``fallback`` says what then.
    """
    from transformers import AutoTokenizer

    path = Path(source).expanduser()
    if not path.is_dir() and (path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise UserError(
            f"--tokenizer {source} is no folder, no hub id (owner/model), not {BUNDLED_NAME}, not train:SIZE: check it"
        )
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                path if path.is_dir() else source, local_files_only=local_files_only, trust_remote_code=False
            )
    except Exception as error:  # transformers raises many types where there is no tokenizer
        if fallback is not None and not path.is_dir():
            return fallback()
        raise UserError(f"--tokenizer {source} could not be loaded: {first_line(error)}") from error
