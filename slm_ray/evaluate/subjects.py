"""The models that are measured: those given, and their peers: teacher, random twin, first layers, published model."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.models import ModelFolder, count_params, find_model
from slm_ray.models.extraction import save_student
from slm_ray.models.starts import build_start
from slm_ray.models.teachers import load_teacher
from slm_ray.records.evaluation import FIRST_N, MODEL, PUBLISHED, RANDOM, TEACHER, Role
from slm_ray.records.files import cache_folder, whole_folder
from slm_ray.records.lineage import Lineage, find_lineage
from slm_ray.runtime.progress import Console

# Hub id to parameters, tied embeddings counted once, by a pattern of the names of the family's models.
_FAMILIES: Mapping[str, Mapping[str, int]] = {
    r"pythia-\d": {
        "EleutherAI/pythia-14m": 14_067_712, "EleutherAI/pythia-31m": 30_494_720, "EleutherAI/pythia-70m": 70_426_624,
        "EleutherAI/pythia-160m": 162_322_944, "EleutherAI/pythia-410m": 405_334_016,
        "EleutherAI/pythia-1b": 1_011_781_632, "EleutherAI/pythia-1.4b": 1_414_647_808,
        "EleutherAI/pythia-2.8b": 2_775_208_960, "EleutherAI/pythia-6.9b": 6_857_302_016,
        "EleutherAI/pythia-12b": 11_846_072_320,
    },
    r"smollm2": {
        "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
        "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    },
    r"gpt2": {
        "openai-community/gpt2": 124_439_808, "openai-community/gpt2-medium": 354_823_168,
        "openai-community/gpt2-large": 774_030_080, "openai-community/gpt2-xl": 1_557_611_200,
    },
    r"qwen2\.5": {
        "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
        "Qwen/Qwen2.5-7B": 7_615_616_512,
    },
    r"qwen3": {
        "Qwen/Qwen3-0.6B-Base": 596_049_920, "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
        "Qwen/Qwen3-4B-Base": 4_022_468_096,
    },
    r"open_?llama": {"openlm-research/open_llama_3b": 3_426_473_600, "openlm-research/open_llama_7b": 6_738_415_616},
}  # fmt: skip
# A published model of another size than this would say little about the student.
_FARTHEST = 2.0


def published_peer(teacher: str, teacher_params: int, params: int) -> str | None:
    """The published model of the teacher's family that is nearest in size to a student.

    Args:
        teacher: The teacher's name: a hub id, or a folder's.
        teacher_params: Its parameters; the peer has fewer.
        params: The student's.

    Returns:
        A hub id, or None where the family published none within a factor of two.
    """
    models = next((found for pattern, found in _FAMILIES.items() if re.search(pattern, teacher, re.IGNORECASE)), {})
    distances = {
        name: abs(math.log(size / params)) for name, size in models.items() if size < 0.98 * teacher_params and params
    }
    nearest = min(distances, key=lambda name: distances[name], default=None)
    return nearest if nearest is not None and distances[nearest] <= math.log(_FARTHEST) else None



_FOLDER = "peers"
_FORMAT = 1
_TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model", "*.jinja")


def random_twin(model: ModelFolder, seed: int, console: Console) -> ModelFolder:
    """A model of the same architecture, as its class initialises it.

    Args:
        model: The model.
        seed: Of its weights.
        console: Where to print.

    Raises:
        UserError: The model cannot be loaded, or the disk is full.
    """
    key = {"kind": "random", "model": model.digest, "seed": seed}
    return _kept(key, model, lambda: build_start("random", model.folder, model.name, seed, None), console)


def first_layers(model: ModelFolder, teacher: str, console: Console) -> ModelFolder:
    """The teacher's first whole layers, as many as the model's size allows (Inheritune, arXiv 2404.08634).

    Args:
        model: The model.
        teacher: A model folder, hub id, ``.gguf`` file or ``smollm2-135m``.
        console: Where to print.

    Raises:
        UserError: The teacher or the model is of no declared family, cannot be loaded, or even one layer is too large.
    """
    loaded = load_teacher(teacher)
    key = {"kind": "first-n", "model": model.digest, "teacher": loaded.digest}
    return _kept(key, model, lambda: build_start("first-n", model.folder, model.name, 0, loaded), console)


def _kept(key: dict[str, Any], model: ModelFolder, build: Callable[[], Any], console: Console) -> ModelFolder:
    """A peer's folder in the cache, made if it is not there."""
    folder = cache_folder() / _FOLDER / f"{key['kind']}-{digest_json({'format': _FORMAT, **key})}"
    if not (folder / "config.json").is_file():
        console.line(f"making the {key['kind']} peer of {model.name}")
        with whole_folder(folder) as temporary:
            save_student(build(), temporary)
            _copy_tokenizer(model.folder, temporary)
    try:
        return find_model(str(folder))
    except UserError as error:
        raise UserError(f"{error}; it is a peer that slm_ray made: delete the folder, and it is made again") from error


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_PATTERNS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)



@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        label: Its name in the evaluation; no two have the same.
        role: ``model``, ``teacher``, ``random``, ``first-n`` or ``published``.
        of: The model it is a peer of, the first of several; None for a model that was given.
        model: Its folder.
        params: Its parameters, by the headers of its files.
        lineage: The record that slm_ray wrote beside it of where it comes from; None for any other model.
    """

    label: str
    role: Role
    of: str | None
    model: ModelFolder
    params: int
    lineage: Lineage | None = None


class Subjects:
    """All models of an evaluation.

    Attributes:
        found: In the order in which they are shown.
        peers: Label of a model to the labels of its peers.
        notes: Peers that are not measured, a sentence each.
    """

    def __init__(self, config: EvaluateConfig, console: Console) -> None:
        """Start with none.

        Args:
            config: The options.
            console: Where to print.
        """
        self.found: list[Subject] = []
        self.peers: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._config, self._console = config, console
        self._folders: dict[str, ModelFolder] = {}

    def add_models(self) -> None:
        """Find the models given.

        Raises:
            UserError: One cannot be found.
        """
        for name in self._config.model:
            subject = self._subject(name, MODEL, None)
            twins = [there for there in self.found if there.model.digest == subject.model.digest]
            if twins:
                self.notes.append(f"{subject.label} has the same weights as {twins[0].label}")
            self.found.append(subject)

    def add_peers(self, subject: Subject, *, make: bool) -> None:
        """Add the peers of a model.

        Args:
            subject: The model.
            make: Make the peers that do not exist yet; otherwise they are only named in the notes.

        Raises:
            UserError: ``--peers`` names the role of one that does not exist for the first model.
        """
        config = self._config
        teacher = config.teacher or (subject.lineage.teacher_name if subject.lineage else None)
        if subject.role != MODEL or (config.peers_are_auto and not teacher):
            return
        makers: dict[str, Callable[[str | None], Subject | None]] = {
            TEACHER: lambda name: self._subject(_need(subject, name, TEACHER), TEACHER, subject.label),
            RANDOM: lambda _: self._random(subject),
            FIRST_N: lambda name: self._first_n(subject, _need(subject, name, FIRST_N)),
            PUBLISHED: lambda name: self._published(subject, _need(subject, name, PUBLISHED)),
        }
        for role in config.peer_roles:
            if not make and role in (RANDOM, FIRST_N):
                self.notes.append(f"the {role} peer of {subject.label} is made when it is measured")
                continue
            try:
                peer = makers[role](str(teacher) if teacher else None)
            except UserError as error:
                # The first model must have the peers named by the user; others may lack some.
                if not config.peers_are_auto and subject is self.found[0]:
                    raise
                self.notes.append(f"no {role} peer of {subject.label}: {error}")
                continue
            if peer is not None and peer.model.digest != subject.model.digest:
                self.peers.setdefault(subject.label, []).append(self._add(peer).label)

    def _folder(self, name: str) -> ModelFolder:
        """A model by name, looked up once: its digest is over all its weights."""
        if name not in self._folders:
            self._folders[name] = find_model(name)
        return self._folders[name]

    def _subject(self, name: str, role: Role, of: str | None) -> Subject:
        model = self._folder(name)
        return Subject(model.name, role, of, model, count_params(model), find_lineage(model.folder))

    def _add(self, subject: Subject) -> Subject:
        """Add a model, or give the one that is there with the same weights."""
        same = next((there for there in self.found if there.model.digest == subject.model.digest), None)
        if same is None:
            self.found.append(subject)
            return subject
        if same.role == MODEL and subject.role == TEACHER and same is not self.found[0]:
            marked = dataclasses.replace(same, role=TEACHER)
            self.found[self.found.index(same)] = marked
            return marked
        return same

    def _random(self, subject: Subject) -> Subject:
        twin = random_twin(subject.model, self._config.generation.seed, self._console)
        return Subject(f"random twin of {subject.label}", RANDOM, subject.label, twin, count_params(twin))

    def _first_n(self, subject: Subject, teacher: str) -> Subject:
        made = first_layers(subject.model, teacher, self._console)
        return Subject(f"first layers like {subject.label}", FIRST_N, subject.label, made, count_params(made))

    def _published(self, subject: Subject, teacher: str) -> Subject | None:
        """The published model of its size; None where there is none and none has to be."""
        peer = published_peer(teacher, count_params(self._folder(teacher)), subject.params)
        if peer is not None:
            return self._subject(peer, PUBLISHED, subject.label)
        if self._config.peers_are_auto:
            return None
        raise UserError(
            f"--peers published: no published model of the family of {teacher} is known that is near the "
            f"{subject.params:,} parameters of {subject.label}: give it as a --model"
        )


def _need(subject: Subject, teacher: str | None, role: str) -> str:
    if teacher is None:
        raise UserError(f"--peers {role} needs a teacher, and no lineage of {subject.label} names it: give --teacher")
    return teacher


def find_subjects(config: EvaluateConfig, console: Console, *, make: bool = True) -> Subjects:
    """Find the models given, and their peers.

    Args:
        config: The options.
        console: Where to print.
        make: Make the peers that do not exist yet; otherwise they are only named in the notes.

    Raises:
        UserError: A model is not found, or ``--peers`` names a role that the first model has no peer of.
    """
    subjects = Subjects(config, console)
    subjects.add_models()
    for subject in list(subjects.found):
        subjects.add_peers(subject, make=make)
    return subjects
