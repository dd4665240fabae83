"""The models that are measured: those given, and their peers: teacher, random twin, first layers, published model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.models import ModelFolder, count_params, find_model
from slm_ray.evaluate.peers import first_layers, random_twin
from slm_ray.evaluate.published import published_peer
from slm_ray.records.evaluation import FIRST_N, MODEL, PUBLISHED, RANDOM, TEACHER, Role
from slm_ray.records.lineage import Lineage, find_lineage
from slm_ray.runtime.progress import Console


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
