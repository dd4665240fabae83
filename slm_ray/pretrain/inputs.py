"""What pretraining starts from: teacher, students, training tokens and held-out tokens, checked against each other.

Models and their vocabularies are checked first, before tokens are prepared and Ray is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import BY_TEACHER, load_corpus
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import HELD_OUT, TRAIN
from slm_ray.data.tokenizers import load_tokenizer, tokenizer_digest
from slm_ray.distill.config import different_length
from slm_ray.evaluate.teacher_text import corpus_by
from slm_ray.models.families import context_length
from slm_ray.models.loading import read_config
from slm_ray.models.teachers import Teacher, load_teacher, loadable
from slm_ray.models.vocabulary import on_ids_of
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.scratch import (
    ScratchModel,
    known_vocabulary,
    plan_scratch,
    scratch_tokenizer,
    vocabulary_rows,
    with_kept_settings,
)
from slm_ray.records.files import cache_folder, read_json
from slm_ray.records.lineage import find_lineage, pruned_from
from slm_ray.records.training import HELD_OUT_FOLDER, TOKENIZER_FOLDER, TrainInputs
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console
from slm_ray.runtime.shared import publish

if TYPE_CHECKING:
    from slm_ray.distill.store import LogitStore


@dataclass(frozen=True)
class Student:
    """A model to train."""

    label: str  # Short name within the run
    source: str  # Its folder or hub id, as transformers loads it
    tokenizer: Any  # Its tokenizer, or the teacher's where it has none
    rows: int  # Rows of its embedding
    # What the search that found it cost; 0 for one that was not searched, None where that is not known
    search_flops: float | None
    scratch: ScratchModel | None = None  # Its sizes, where it starts from scratch and has no source

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """A run's options with this model's own batch and rate."""
        return self.scratch.config(config) if self.scratch else config


@dataclass(frozen=True)
class PretrainInputs:
    """Everything that pretraining reads."""

    teacher: Teacher | None  # The teacher in the cache; None where nothing needs one
    students: tuple[Student, ...]  # The models to train
    shards: TokenShards  # Training tokens
    held_out: TokenShards  # Held-out tokens
    store: str | None = None  # Digest of the logit store, if there is one
    capture_flops: float = 0.0  # What writing that store cost
    captured: int | None = None  # Sequences of the shards that the store has; None for all, or without a store

    def sequences(self, wanted: int | None) -> int | None:
        """How many of the shards' sequences are trained on: no more than the store has; None for all."""
        return min((count for count in (wanted, self.captured) if count is not None), default=None)

    def digests(self) -> TrainInputs:
        """Digests that must be the same for a run to be continued."""
        scratch = [student.scratch for student in self.students if student.scratch]
        sizes = [model.facts().to_json() | {"architecture": model.architecture.digest} for model in scratch]
        return TrainInputs(
            teacher=self.teacher.digest if self.teacher else None, tokenizer=self.shards.tokenizer_digest,
            training_tokens=self.shards.digest, held_out_tokens=self.held_out.digest, logit_store=self.store,
            sizes_batches_and_rates=digest_json(sizes) if sizes else None,
        )  # fmt: skip


def check_students(config: PretrainConfig) -> None:
    """Make sure, from configs alone, that the students are models with positions for the sequences."""
    if config.growth.grow_from is not None:
        return  # growth takes its layers from a teacher, which is checked when it is loaded
    if config.model.scratch:
        if rows := known_vocabulary(config):
            plan_scratch(config, rows)
        return
    for source in config.model.students:
        check_positions(read_config(loadable(source)), source, config.data.sequence_length)


def check_positions(model_config: Any, name: str, sequence_length: int) -> None:
    """Make sure that a model has positions for the sequences."""
    most = context_length(model_config)
    if most is not None and sequence_length > most:
        raise UserError(f"--sequence-length {sequence_length} is over {name}'s {most} positions: give {most} or less")


def teacher_name(config: PretrainConfig) -> str | None:
    """The teacher that was named, or the one that the first student was pruned from; None where none is needed."""
    if config.model.scratch:
        return config.model.teacher
    first = config.model.students[0]
    name = config.model.teacher or pruned_from(first)
    if config.growth.grow_from is not None:
        name = config.model.teacher or first
    if name is None and (config.kind != "none" or {"first-n", "random-subnet"} & set(config.model.starts)):
        what = f"--distill {config.kind}" if config.kind != "none" else "this start"
        raise UserError(f"{what} needs a teacher, and {first} does not say what it was pruned from: give --teacher")
    return name


def load_models(
    config: PretrainConfig, run: Path, console: Console
) -> tuple[Teacher | None, tuple[Student, ...]]:
    """Load the teacher, and find the students; their vocabularies are checked against each other."""
    name = teacher_name(config)
    teacher = load_teacher(name) if name is not None else None
    if teacher is not None and config.model.students and not config.model.scratch:
        teacher = on_ids_of(config.model.students[0], teacher)
    found = _scratch_students(config, teacher, run, console) if config.model.scratch else _students(config, teacher)
    for student in found:
        check_vocabulary(config, student.source if student.scratch is None else f"--tokenizer {config.model.tokenizer}",
                         student.tokenizer, student.rows, teacher)  # fmt: skip
    if len({tokenizer_digest(student.tokenizer) for student in found}) > 1:
        raise UserError("the students have different tokenizers, so they cannot read the same tokens: train them apart")
    return teacher, found


def _tokenizer_of(source: str) -> Any:
    """A model's own tokenizer, or None where it has none."""
    try:
        return load_tokenizer(source)
    except UserError:
        return None


def _label(source: str) -> str:
    path = Path(source)
    return f"winner-{path.name}" if path.parent.name == "winners" else path.name or source


def _students(config: PretrainConfig, teacher: Teacher | None) -> tuple[Student, ...]:
    found: list[Student] = []
    for name in config.model.students:
        source = loadable(name)
        tokenizer = _tokenizer_of(source) or (teacher.tokenizer() if teacher else None)
        if tokenizer is None:
            raise UserError(f"{name} has no tokenizer: put its tokenizer.json into the folder, or give --teacher")
        label = _label(name)
        if any(other.label == label for other in found):
            label = f"{label}-{len(found)}"
        found.append(Student(label, source, tokenizer, int(read_config(source).vocab_size), search_flops(name)))
    return tuple(found)


def _scratch_students(
    config: PretrainConfig, teacher: Teacher | None, run: Path, console: Console
) -> tuple[Student, ...]:
    tokenizer = scratch_tokenizer(config, teacher, console)
    rows = vocabulary_rows(config, len(tokenizer), teacher.architecture() if teacher else None)
    models = with_kept_settings(config, plan_scratch(config, rows), run)
    return tuple(Student(model.label, f"scratch {model.label}", tokenizer, rows, 0.0, model) for model in models)


def check_vocabulary(config: PretrainConfig, name: str, tokenizer: Any, rows: int, teacher: Teacher | None) -> None:
    """Make sure that a teacher reads the same tokens as its student, and that both have rows for them."""
    if teacher is None or config.kind == "none":
        return
    ours, theirs = tokenizer_digest(tokenizer), tokenizer_digest(teacher.tokenizer())
    if ours != theirs:
        known = set(teacher.tokenizer().get_vocab().items())
        extended = known < set(tokenizer.get_vocab().items())
        same = "a teacher that was extended in the same way (python -m slm_ray.tokenizer extend)"
        raise UserError(
            f"the tokenizer of {name} ({ours[:12]}) is not that of the teacher {teacher.name} ({theirs[:12]}): "
            f"distillation needs one vocabulary; give --distill none, or {same if extended else 'another teacher'}"
        )
    check_rows(name, rows, teacher.name, teacher.architecture().structure.vocab_size, len(tokenizer))


def check_rows(student: str, student_rows: int, teacher: str, teacher_rows: int, num_ids: int) -> None:
    """Make sure that student and teacher both have embedding rows for every token id.

    Their numbers of rows may differ beyond that, as between sizes of Qwen2.5: the losses compare rows that both have.
    """
    rows = min(student_rows, teacher_rows)
    if student_rows != teacher_rows and rows < num_ids:
        raise UserError(
            f"{student if student_rows < teacher_rows else teacher} has {rows:,} embedding rows for {num_ids:,} token "
            "ids: distillation compares the rows that both models have; resize its embeddings, or give --distill none"
        )


def search_flops(source: str) -> float | None:
    """What a winner's search cost, from its lineage or its run; 0 where the folder is of no search."""
    found = find_lineage(source)
    if found is None:
        return 0.0
    if found.search_flops is not None:
        return found.search_flops
    if found.training:
        return None  # of a run that did not know it
    result = Path(source).expanduser().resolve().parents[1] / "result.json"
    return float(read_json(result)["spent"]["flops"]) if result.is_file() else None


def prepare_inputs(
    config: PretrainConfig, teacher: Teacher | None, students: tuple[Student, ...], folder: Path, console: Console
) -> PretrainInputs:
    """Prepare the tokens, on Ray's workers if it launches the training, and check everything."""
    tokenizer = students[0].tokenizer
    workers = usable_cpus() if config.run.launcher == "ray" else 0
    shards = training_shards(config, tokenizer, folder, console, workers)
    held_out = held_out_tokens(config, tokenizer, folder, console)
    for student in students:
        for tokens in (shards, held_out):
            tokens.check_ids(student.rows, student.label)
            if teacher is not None and config.kind != "none":
                tokens.check_ids(teacher.architecture().structure.vocab_size, teacher.name)
    store = _open_store(config, shards, teacher)
    for path in (shards.folder, held_out.folder, *([teacher.folder] if teacher else []),
                 *([store_folder(config)] if store else [])):  # fmt: skip
        publish(path)
    if store is None:
        return PretrainInputs(teacher, students, shards, held_out)
    captured = store.num_sequences if store.num_sequences < shards.num_sequences else None
    kept = store.manifest
    return PretrainInputs(teacher, students, shards, held_out, kept.digest, float(kept.flops), captured)


def _corpus(config: PretrainConfig, console: Console) -> Corpus:
    def by_teacher() -> Corpus:
        if (name := teacher_name(config)) is None:
            raise UserError(f"the corpus '{BY_TEACHER}' is what the teacher writes itself: give --teacher")
        return corpus_by(load_teacher(name), console)

    return load_corpus(config.data.data, config.data.text_field, console, by_teacher=by_teacher)


def training_shards(
    config: PretrainConfig, tokenizer: Any, folder: Path, console: Console, workers: int
) -> TokenShards:
    """Tokens to train on, found in the cache or prepared by Ray's ``workers`` (0: here), with the tokenizer kept."""
    data = config.data
    if data.shards is not None:
        shards = TokenShards.open(Path(data.shards).expanduser().resolve())
        _check_shards(config, shards, tokenizer)
        return shards
    corpus = _corpus(config, console)
    place = folder / TOKENIZER_FOLDER
    if not place.is_dir():
        tokenizer.save_pretrained(place)
    return prepare_shards(
        corpus, place.resolve(), TRAIN, sequence_length=data.sequence_length, num_tokens=config.num_data_tokens,
        cache=cache_folder() / "shards", console=console, workers=workers,
    )  # fmt: skip


def held_out_tokens(config: PretrainConfig, tokenizer: Any, folder: Path, console: Console) -> TokenShards:
    """The held-out tokens, kept in the run folder, so that every worker and every later evaluation reads the same."""
    place = (folder / HELD_OUT_FOLDER).resolve()
    if place.is_dir():
        return TokenShards.open(place)
    corpus = _corpus(config, console)
    packed = prepare_tokens(
        corpus, tokenizer, HELD_OUT, num_tokens=config.evaluation.eval_tokens,
        sequence_length=config.data.sequence_length, cache=cache_folder() / "tokens", console=console,
        flag="--eval-tokens",
    )  # fmt: skip
    return packed.copy_to(place)


def _check_shards(config: PretrainConfig, shards: TokenShards, tokenizer: Any) -> None:
    ours = tokenizer_digest(tokenizer)
    if shards.tokenizer_digest != ours:
        raise UserError(
            f"the shards in {shards.folder} were made with another tokenizer ({shards.tokenizer_digest[:12]}) than the "
            f"student's ({ours[:12]}): prepare them anew without --shards"
        )
    if shards.sequence_length != config.data.sequence_length:
        raise UserError(different_length(shards, config.data.sequence_length))


def store_folder(config: PretrainConfig) -> Path:
    """The folder of the logit store."""
    return Path(str(config.distill.store)).expanduser().resolve()


def _open_store(config: PretrainConfig, shards: TokenShards, teacher: Teacher | None) -> LogitStore | None:
    """The logit store, if one is read, which must be of this teacher and these tokens."""
    if not config.distill.from_store or teacher is None:
        return None
    from slm_ray.distill.store import LogitStore

    store = LogitStore.open(store_folder(config))
    store.check_matches(
        teacher_digest=teacher.digest, tokenizer_digest=shards.tokenizer_digest, tokens_digest=shards.digest,
        vocab_size=teacher.architecture().structure.vocab_size, documents=config.data.documents,
        # Heads alone can be brought to any temperature; masses and draws cannot.
        temperature=None if config.kind == "top-k" else config.distill.temperature,
    )  # fmt: skip
    return store
