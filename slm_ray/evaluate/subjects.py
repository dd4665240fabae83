"""The models that are measured: those given, and their peers: teacher, random twin, first layers, published model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from dataclasses import dataclass

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.models import ModelFolder, count_params, find_model
from slm_ray.models.extraction import save_student
from slm_ray.models.families.published import published_architecture, published_family
from slm_ray.models.starts import build_start
from slm_ray.models.teachers import load_teacher
from slm_ray.models.vocabulary import on_ids_of
from slm_ray.records.cost import num_params
from slm_ray.records.evaluation import FIRST_N, MODEL, PUBLISHED, RANDOM, TEACHER, Role
from slm_ray.records.files import cache_folder, whole_folder
from slm_ray.records.lineage import Lineage, find_lineage
from slm_ray.runtime.progress import Console

_FARTHEST = 2.0  # a published model of another size than this would say little about the student
_FORMAT = 1  # raise it when a made peer's weights change
_TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model", "*.jinja")


def published_peer(teacher: str, teacher_params: int, params: int) -> str | None:
    """The hub id of the published model of the teacher's family that is nearest in size to a student.

    It is smaller than the teacher; None where the family published none within a factor of two.
    """
    distances = {}
    for name in published_family(teacher):
        architecture = published_architecture(name)
        size = num_params(architecture) if architecture else 0
        if params and 0 < size < 0.98 * teacher_params:
            distances[name] = abs(math.log(size / params))
    nearest = min(distances, key=lambda name: distances[name], default=None)
    return nearest if nearest is not None and distances[nearest] <= math.log(_FARTHEST) else None


def made_peer(
    role: str, model: ModelFolder, console: Console, *, seed: int = 0, teacher: str | None = None
) -> ModelFolder:
    """A peer in the cache, made if it is not there.

    ``random`` is a model of the same architecture, as its class initialises it; ``first-n`` the teacher's first whole
    layers, as many as the model's size allows (Inheritune, arXiv 2404.08634), with the model's own tokens.
    """
    loaded = on_ids_of(str(model.folder), load_teacher(teacher)) if teacher else None
    key = {"kind": role, "model": model.digest} | ({"teacher": loaded.digest} if loaded else {"seed": seed})
    folder = cache_folder() / "peers" / f"{role}-{digest_json({'format': _FORMAT, **key})}"
    if not (folder / "config.json").is_file():
        console.line(f"making the {role} peer of {model.name}")
        with whole_folder(folder) as temporary:
            save_student(build_start(role, model.folder, model.name, seed, loaded), temporary)
            for file in (file for pattern in _TOKENIZER_PATTERNS for file in model.folder.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, temporary / file.name)
    return find_model(str(folder))


@dataclass(frozen=True)
class Subject:
    """A model that is measured: its name in the evaluation, and what it is to the model that it is a peer ``of``."""

    label: str
    role: Role
    of: str | None
    model: ModelFolder
    params: int
    lineage: Lineage | None = None


class Subjects:
    """All models of an evaluation.

    Attributes:
        found: In the order in which they are shown
        peers: Label of a model to the labels of its peers
        notes: Peers that are not measured, a sentence each
    """

    def __init__(self, config: EvaluateConfig, console: Console, *, make: bool = True) -> None:
        """Find the models given, and their peers; without ``make``, peers that do not exist yet are only noted."""
        self.found: list[Subject] = []
        self.peers: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._config, self._console, self._make = config, console, make
        self._folders: dict[str, ModelFolder] = {}
        for name in config.model:
            subject = self._named(name, MODEL, None)
            twins = [there for there in self.found if there.model.digest == subject.model.digest]
            if twins:
                self.notes.append(f"{subject.label} has the same weights as {twins[0].label}")
            self.found.append(subject)
        for subject in list(self.found):
            self._add_peers(subject)

    def _add_peers(self, subject: Subject) -> None:
        config = self._config
        teacher = config.teacher or (subject.lineage.teacher_name if subject.lineage else None)
        if subject.role != MODEL or (config.peers_are_auto and not teacher):
            return
        for role in config.peer_roles:
            if not self._make and role in (RANDOM, FIRST_N):
                self.notes.append(f"the {role} peer of {subject.label} is made when it is measured")
                continue
            try:
                peer = self._peer(subject, role, teacher)
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

    def _named(self, name: str, role: Role, of: str | None) -> Subject:
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

    def _peer(self, subject: Subject, role: str, teacher: str | None) -> Subject | None:
        """A peer of a model; None where no published one is near it and none has to be."""
        label = subject.label
        if role == RANDOM:
            made = made_peer(RANDOM, subject.model, self._console, seed=self._config.generation.seed)
            return Subject(f"random twin of {label}", RANDOM, label, made, count_params(made))
        if teacher is None:
            raise UserError(f"--peers {role} needs a teacher, and no lineage of {label} names it: give --teacher")
        if role == TEACHER:
            return self._named(teacher, TEACHER, label)
        if role == FIRST_N:
            made = made_peer(FIRST_N, subject.model, self._console, teacher=teacher)
            return Subject(f"first layers like {label}", FIRST_N, label, made, count_params(made))
        peer = published_peer(teacher, count_params(self._folder(teacher)), subject.params)
        if peer is not None:
            return self._named(peer, PUBLISHED, label)
        if self._config.peers_are_auto:
            return None
        raise UserError(
            f"--peers published: no published model of the family of {teacher} is known that is near the "
            f"{subject.params:,} parameters of {label}: give it as a --model"
        )
