"""Models from scratch: their vocabulary, their sizes by the ladder, and the batch and rate that go with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.data.load import load_corpus
from slm_ray.data.tokenizer_training import check_size, train_tokenizer
from slm_ray.data.tokenizers import load_tokenizer
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.models.families.published import published_architecture
from slm_ray.models.scratch import Rung, find_rung, pad_vocabulary, with_positions
from slm_ray.models.teacher_sizes import BUNDLED_ARCHITECTURE, look_up_teacher
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.pretrain.components import SCRATCH
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records.architecture import Architecture
from slm_ray.records.base import read_record
from slm_ray.records.files import cache_folder
from slm_ray.records.training import ScratchFacts, TrainedModel
from slm_ray.runtime.progress import Console

TRAIN_PREFIX = "train:"


@dataclass(frozen=True)
class ScratchModel:
    """One model from scratch."""

    label: str  # Short name within the run: its size, and its positions where they are not rotary
    rung: Rung  # Its step of the ladder
    architecture: Architecture  # Its sizes, with its positions
    positions: str  # The kind of positions
    batch_size: int  # Sequences of a step
    learning_rate: float  # Peak rate

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """A run's options with this model's batch and rate."""
        return config.of_model(self.batch_size, self.learning_rate)

    def facts(self) -> ScratchFacts:
        """For the record."""
        return ScratchFacts(
            target=self.rung.target, positions=self.positions, batch_size=self.batch_size,
            learning_rate=self.learning_rate, params_without_embeddings=self.rung.matrix_params,
        )  # fmt: skip


def plan_scratch(config: PretrainConfig, vocab_size: int) -> tuple[ScratchModel, ...]:
    """Every model from scratch that a run trains."""
    found, length, positions = [], config.data.sequence_length, config.model.positions
    # Workers and micro-batches must divide a batch.
    micro = config.batch.micro_batch
    multiple = config.run.workers * (micro if isinstance(micro, int) else 1)
    for size, target in config.model.scratch_sizes.items():
        rung = find_rung(target, vocab_size)
        label = size if positions == "rotary" else f"{size}-{positions}"
        batch = config.batch.batch_size or rung.batch_size(config.num_tokens, length, multiple)
        rate = config.optimizer.learning_rate or rung.learning_rate(batch * length)
        architecture = with_positions(rung.architecture, positions, length)
        model = ScratchModel(label, rung, architecture, positions, batch, rate)
        model.config(config)  # checks them
        found.append(model)
    return tuple(found)


def with_kept_settings(config: PretrainConfig, models: tuple[ScratchModel, ...], run: Path) -> tuple[ScratchModel, ...]:
    """Models with the batch and rate that a resumed run began with: the ladder's batch depends on the workers, too."""
    found = []
    for model in models:
        folder = next(iter(sorted(run.glob(f"{model.label}.{SCRATCH}*"))), None)
        if folder is not None and (folder / TrainedModel.FILE).is_file():
            kept = read_record(folder, TrainedModel).scratch
            if kept is not None:
                model = dataclasses.replace(model, batch_size=kept.batch_size, learning_rate=kept.learning_rate)
                model.config(config)
        found.append(model)
    return tuple(found)


def vocabulary_rows(config: PretrainConfig, tokenizer_size: int, teacher: Architecture | None) -> int:
    """Rows of the embedding: the teacher's where it is distilled from, else the tokenizer's, to a multiple of 64."""
    if config.kind != "none" and teacher is not None:
        return teacher.structure.vocab_size
    return pad_vocabulary(tokenizer_size)


def known_vocabulary(config: PretrainConfig) -> int | None:
    """Rows of the embedding as far as they are known without a download or a training; None where they are not."""
    named, tokenizer = config.model.teacher, config.model.tokenizer
    teacher = look_up_teacher(named).architecture if named else None
    if config.kind != "none":
        return teacher.structure.vocab_size if teacher else None
    source = tokenizer or named or BUNDLED_NAME
    if size := train_size(source):
        return pad_vocabulary(size)
    if source == BUNDLED_NAME:
        return pad_vocabulary(BUNDLED_ARCHITECTURE.structure.vocab_size)
    if published := published_architecture(source):
        return pad_vocabulary(published.structure.vocab_size)
    is_folder = Path(source).expanduser().is_dir()
    if not is_folder and tokenizer is None:
        return None
    try:
        return pad_vocabulary(len(_load_tokenizer(source, local=True)))
    except UserError:
        if is_folder or not _is_hub_id(source):
            raise
        return None


def train_size(source: str) -> int | None:
    """The vocabulary of ``train:SIZE``; None for any other text."""
    if not source.startswith(TRAIN_PREFIX):
        return None
    text = source.removeprefix(TRAIN_PREFIX).replace("_", "")
    if not text.isdigit():
        raise UserError(f"--tokenizer '{source}' must name a whole number of tokens, like train:8192")
    check_size(int(text))
    return int(text)


def scratch_tokenizer(config: PretrainConfig, teacher: Teacher | None, console: Console) -> Any:
    """The tokenizer of models from scratch: named, trained on the corpus, the teacher's, or the bundled one."""
    source = config.model.tokenizer
    if source is None and teacher is not None:
        return teacher.tokenizer()
    if source is None or source == BUNDLED_NAME:
        return load_teacher(BUNDLED_NAME).tokenizer()
    if size := train_size(source):
        corpus = load_corpus(config.data.data, config.data.text_field, console)
        return train_tokenizer(corpus, size, cache_folder() / "tokenizers", console)
    return _load_tokenizer(source)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _load_tokenizer(source: str, *, local: bool | None = None) -> Any:
    path = Path(source).expanduser()
    if not path.is_dir() and (path.exists() or not _is_hub_id(source)):
        raise UserError(
            f"--tokenizer {source} is no folder, no hub id (owner/model), not {BUNDLED_NAME}, not train:SIZE: check it"
        )
    return load_tokenizer(source, f"--tokenizer {source} could not be loaded", local=local)
