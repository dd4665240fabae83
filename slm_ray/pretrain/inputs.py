"""What pretraining starts from: teacher, students, training tokens and held-out tokens, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.data import HELD_OUT, TRAIN, load_corpus, prepare_tokens, tokenizer_digest
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.shards import TokenShards
from slm_ray.models.families import context_length
from slm_ray.models.loading import quiet_transformers, read_config
from slm_ray.models.teachers import Teacher, load_teacher, loadable
from slm_ray.pretrain.config import FROM_STORE, PretrainConfig
from slm_ray.pretrain.scratch import (
    ScratchModel,
    known_vocabulary,
    plan_scratch,
    scratch_digest,
    scratch_tokenizer,
    vocabulary_rows,
    with_kept_settings,
)
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.records.lineage import read_lineage
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import RunFolder

INPUTS_FILE = "inputs.json"
TOKENIZER_FOLDER = "tokenizer"
HELD_OUT_FOLDER = "held_out"


@dataclass(frozen=True)
class Student:
    """A model to train.

    Attributes:
        label: Short name within the run.
        source: Its folder or hub id, as transformers loads it.
        tokenizer: Its tokenizer, or the teacher's where it has none.
        search_flops: What the search that found it cost; 0 for one that was not searched, None where that is not known.
        scratch: Its sizes, where it starts from nothing and has no source.
    """

    label: str
    source: str
    tokenizer: Any
    search_flops: float | None
    scratch: ScratchModel | None = None

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """A run's options with what is this model's own."""
        return self.scratch.config(config) if self.scratch else config


@dataclass(frozen=True)
class PretrainInputs:
    """Everything that pretraining reads.

    Attributes:
        teacher: The teacher in the cache; None where nothing needs one.
        students: The models to train.
        shards: Training tokens.
        held_out: Held-out tokens.
        store: Digest of the logit store, if there is one.
        capture_flops: What writing that store cost.
    """

    teacher: Teacher | None
    students: tuple[Student, ...]
    shards: TokenShards
    held_out: TokenShards
    store: str | None
    capture_flops: float

    def digests(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        scratch = tuple(student.scratch for student in self.students if student.scratch)
        return {
            "teacher": self.teacher.digest if self.teacher else None,
            "tokenizer": self.shards.tokenizer_digest,
            "training_tokens": self.shards.digest,
            "held_out_tokens": self.held_out.digest,
            "logit_store": self.store,
            **({"sizes_batches_and_rates": scratch_digest(scratch)} if scratch else {}),
        }


def find_teacher(config: PretrainConfig) -> Teacher | None:
    """The teacher that was named, or the one that the first student was cut from.

    Raises:
        UserError: One is needed and none is known, or it cannot be loaded.
    """
    if config.scratch:
        return load_teacher(config.teacher) if config.teacher else None
    name = config.teacher or read_lineage(config.students()[0]).get("teacher", {}).get("name")
    if config.grow_from is not None:
        name = config.teacher or config.students()[0]
    if name is not None:
        return load_teacher(name)
    teacher_starts = {"first-n", "random-subnet"} & set(config.starts())
    if config.distill == "none" and not teacher_starts:
        return None
    what = f"--distill {config.distill}" if config.distill != "none" else "this start"
    raise UserError(
        f"{what} needs a teacher, and {config.students()[0]} does not say what it was cut from: give --teacher"
    )


def _tokenizer_of(source: str) -> Any:
    """A model's own tokenizer, or None where it has none."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception:  # transformers raises many types where there is no tokenizer
        return None


def _label(source: str) -> str:
    path = Path(source)
    return f"winner-{path.name}" if path.parent.name == "winners" else path.name or source


def check_students(config: PretrainConfig) -> None:
    """Make sure, before anything is started, that the students are models with positions for the sequences.

    Raises:
        UserError: One is no model, or its positions are too few.
    """
    if config.grow_from is not None:
        return  # growth takes its layers from a teacher, which is checked when it is loaded
    if config.scratch:
        if rows := known_vocabulary(config):
            plan_scratch(config, rows)
        return
    for source in config.students():
        check_positions(read_config(loadable(source)), source, config.sequence_length)


def check_positions(model_config: Any, name: str, sequence_length: int) -> None:
    """Make sure that a model has positions for the sequences.

    Raises:
        UserError: It has not.
    """
    most = context_length(model_config)
    if most is not None and sequence_length > most:
        raise UserError(f"--sequence-length {sequence_length} is over {name}'s {most} positions: give {most} or less")


def load_students(config: PretrainConfig, teacher: Teacher | None) -> tuple[Student, ...]:
    """The students, their tokenizers checked against the teacher's.

    Raises:
        UserError: One has another tokenizer than the teacher, or none at all.
    """
    found: list[Student] = []
    for name in config.students():
        source = loadable(name)
        tokenizer = _tokenizer_of(source) or (teacher.tokenizer() if teacher else None)
        if tokenizer is None:
            raise UserError(f"{name} has no tokenizer: put its tokenizer.json into the folder, or give --teacher")
        _check_vocabulary(config, name, tokenizer, teacher)
        label = _label(name)
        if any(other.label == label for other in found):
            label = f"{label}-{len(found)}"
        found.append(Student(label, source, tokenizer, search_flops(name)))
    digests = {tokenizer_digest(student.tokenizer) for student in found}
    if len(digests) > 1:
        raise UserError("the students have different tokenizers, so they cannot read the same tokens: train them apart")
    return tuple(found)


def _check_vocabulary(config: PretrainConfig, name: str, tokenizer: Any, teacher: Teacher | None) -> None:
    """Make sure that a teacher reads the same tokens as its student: one cannot read words that it does not know."""
    if teacher is None or config.distill == "none":
        return
    ours, theirs = tokenizer_digest(tokenizer), tokenizer_digest(teacher.tokenizer())
    if ours == theirs:
        return
    known = set(teacher.tokenizer().get_vocab().items())
    extended = known < set(tokenizer.get_vocab().items())
    same = "a teacher that was extended in the same way (python -m slm_ray.tokenizer extend)"
    advice = same if extended else "another teacher"
    raise UserError(
        f"the tokenizer of {name} ({ours[:12]}) is not that of the teacher {teacher.name} ({theirs[:12]}): "
        f"distillation needs one vocabulary; give --distill none, or {advice}"
    )


def load_scratch(config: PretrainConfig, teacher: Teacher | None, run: Path, console: Console) -> tuple[Student, ...]:
    """The models from nothing, with their tokenizer.

    Args:
        config: The options.
        teacher: Whose help they have, if any.
        run: The run's folder, which knows what a resumed run began with.
        console: Where to say what is done.

    Raises:
        UserError: The tokenizer cannot be had or is not the teacher's, or a size does not go with it.
    """
    tokenizer = scratch_tokenizer(config, teacher, console)
    _check_vocabulary(config, f"--tokenizer {config.tokenizer}", tokenizer, teacher)
    rows = vocabulary_rows(config, len(tokenizer), teacher.architecture() if teacher else None)
    models = with_kept_settings(config, plan_scratch(config, rows), run)
    return tuple(Student(model.label, f"scratch {model.label}", tokenizer, 0.0, model) for model in models)


def search_flops(source: str) -> float | None:
    """What a winner's search cost, from its lineage or its run; 0 where the folder is of no search."""
    found = read_lineage(source)
    if not found:
        return 0.0
    if found.get("search_flops") is not None:
        return float(found["search_flops"])
    if "training" in found:
        return None  # of a run that did not know it
    result = Path(source).expanduser().resolve().parents[1] / "result.json"
    return float(read_json(result)["spent"]["flops"]) if result.is_file() else None


def prepare_inputs(config: PretrainConfig, folder: RunFolder, console: Console, workers: int) -> PretrainInputs:
    """Load and check everything; Ray must run, unless ``--shards`` is given.

    Raises:
        UserError: Something is missing, damaged, or does not fit the rest.
    """
    teacher = find_teacher(config)
    students = load_scratch(config, teacher, folder.path, console) if config.scratch else load_students(config, teacher)
    tokenizer = students[0].tokenizer
    shards = training_shards(config, tokenizer, folder.path, console, workers)
    held_out = held_out_tokens(config, tokenizer, folder.path, console)
    _check_shards(config, shards, tokenizer)
    store = _check_store(config, shards, teacher)
    return PretrainInputs(teacher, students, shards, held_out, *store)


def training_shards(
    config: PretrainConfig, tokenizer: Any, folder: Path, console: Console, workers: int
) -> TokenShards:
    """The tokens to train on, found in the cache or prepared by ``workers`` tasks; the tokenizer is kept in ``folder``.

    Raises:
        UserError: The corpus is wrong or too short.
    """
    if config.shards is not None:
        return TokenShards.open(Path(config.shards).expanduser().resolve())
    corpus = load_corpus(config.data, config.text_field, console)
    place = folder / TOKENIZER_FOLDER
    if not place.is_dir():
        tokenizer.save_pretrained(place)
    return prepare_shards(
        corpus, place.resolve(), TRAIN, sequence_length=config.sequence_length, num_tokens=config.num_data_tokens(),
        cache=cache_folder() / "shards", console=console, workers=workers,
    )  # fmt: skip


def held_out_tokens(config: PretrainConfig, tokenizer: Any, folder: Path, console: Console) -> TokenShards:
    """The held-out tokens, kept in the run folder, so that every worker and every later evaluation reads the same."""
    place = (folder / HELD_OUT_FOLDER).resolve()
    if not place.is_dir():
        corpus = load_corpus(config.data, config.text_field, console)
        packed = prepare_tokens(
            corpus, tokenizer, HELD_OUT, num_tokens=config.eval_tokens, sequence_length=config.sequence_length,
            cache=cache_folder() / "tokens", console=console, flag="--eval-tokens",
        )  # fmt: skip
        packed.copy_to(place)
    return TokenShards.open(place)


def _check_shards(config: PretrainConfig, shards: TokenShards, tokenizer: Any) -> None:
    ours = tokenizer_digest(tokenizer)
    if shards.tokenizer_digest != ours:
        raise UserError(
            f"the shards in {shards.folder} were made with another tokenizer ({shards.tokenizer_digest[:12]}) than the "
            f"student's ({ours[:12]}): prepare them anew without --shards"
        )
    if shards.sequence_length != config.sequence_length:
        raise UserError(
            f"the shards in {shards.folder} have sequences of {shards.sequence_length} tokens, not "
            f"{config.sequence_length}: give --sequence-length {shards.sequence_length}"
        )


def _check_store(config: PretrainConfig, shards: TokenShards, teacher: Teacher | None) -> tuple[str | None, float]:
    """The digest and the cost of the logit store, which must be of this teacher and these tokens."""
    if config.distill not in FROM_STORE or teacher is None:
        return None, 0.0
    from slm_ray.distill.store import LogitStore

    store = LogitStore.open(Path(str(config.store)).expanduser().resolve())
    store.check_matches(
        teacher_digest=teacher.digest, tokenizer_digest=shards.tokenizer_digest, tokens_digest=shards.digest,
        vocab_size=teacher.architecture().structure.vocab_size, documents=config.documents,
        # Heads alone can be brought to any temperature; masses and draws cannot.
        temperature=None if config.distill == "top-k" else config.temperature,
    )  # fmt: skip
    return store.digest, float(store.manifest["flops"])


def keep_digests(folder: RunFolder, inputs: PretrainInputs) -> None:
    """Write the inputs' digests, or check that a resumed run still has the same.

    Raises:
        UserError: The teacher, the text or the store is no longer what the run was started with.
    """
    path, now = folder.file(INPUTS_FILE), inputs.digests()
    if not path.exists():
        write_json(path, now)
        return
    before = read_json(path)
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder.path} cannot be resumed: its {name.replace('_', ' ')} was {before.get(name)}, now {now[name]}: "
            "restore it, or start a new run"
        )
