"""Who is measured: the models given, and beside those that slm_ray exported, what they have to be held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.models import ModelFolder, count_params, find_model
from slm_ray.evaluate.peers import first_layers, random_twin
from slm_ray.evaluate.published import published_peer
from slm_ray.records.evaluation import FIRST_N, MODEL, PUBLISHED, RANDOM, TEACHER, Role
from slm_ray.records.lineage import read_lineage
from slm_ray.runtime.progress import Console


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        label: What it is called; no two have the same.
        role: ``model``, ``teacher``, ``random``, ``first-n`` or ``published``.
        of: The model it is a peer of, the first of several; None for a model that was given.
        model: Its folder.
        params: Its parameters, by what is in its files.
        lineage: What slm_ray wrote beside it of where it came from; empty for any other model.
    """

    label: str
    role: Role
    of: str | None
    model: ModelFolder
    params: int
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Subjects:
    """All models of an evaluation.

    Attributes:
        found: In the order in which they are shown.
        peers: Label of a model to the labels of its peers.
        notes: Peers that could not be had, a sentence each.
    """

    found: list[Subject] = field(default_factory=list)
    peers: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _folders: dict[str, ModelFolder] = field(default_factory=dict)

    def find(self, name: str) -> ModelFolder:
        """A model by name, looked up once: its digest is over all its weights.

        Raises:
            UserError: There is no such model.
        """
        if name not in self._folders:
            self._folders[name] = find_model(name)
        return self._folders[name]

    def add(self, subject: Subject) -> Subject:
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


def find_subjects(config: EvaluateConfig, console: Console, *, make: bool = True) -> Subjects:
    """Find the models given, and their peers.

    Args:
        config: The options.
        console: Where to print.
        make: Make the peers that do not exist yet; without it they are only named, in the notes.

    Raises:
        UserError: A model cannot be found, or a peer that was asked for by name cannot be had.
    """
    subjects = Subjects()
    for name in config.model:
        model = subjects.find(name)
        label = model.name if all(there.label != model.name for there in subjects.found) else f"{model.name} (again)"
        twins = [there for there in subjects.found if there.model.digest == model.digest]
        subject = Subject(label, MODEL, None, model, count_params(model), read_lineage(model.folder))
        if twins:
            subjects.notes.append(f"{label} has the same weights as {twins[0].label}")
        subjects.found.append(subject)
    for subject in list(subjects.found):
        _add_peers(config, subjects, subject, console, make)
    return subjects


def _teacher_of(config: EvaluateConfig, subject: Subject) -> str | None:
    name = config.teacher or (subject.lineage.get("teacher") or {}).get("name")
    return str(name) if name else None


def _add_peers(config: EvaluateConfig, subjects: Subjects, subject: Subject, console: Console, make: bool) -> None:
    teacher_name = _teacher_of(config, subject)
    if config.peers_are_auto and teacher_name is None:
        return
    wanted = config.peer_roles
    if subject.role != MODEL or not wanted:
        return
    makers: dict[str, Callable[[], Subject | None]] = {
        TEACHER: lambda: _teacher(subjects, subject, teacher_name),
        RANDOM: lambda: _random(config, subject, console),
        FIRST_N: lambda: _first_n(config, subject, teacher_name, console),
        PUBLISHED: lambda: _published(config, subjects, subject, teacher_name),
    }
    for role in wanted:
        if not make and role in (RANDOM, FIRST_N):
            subjects.notes.append(f"the {role} peer of {subject.label} is made when it is measured")
            continue
        try:
            peer = makers[role]()
        except UserError as error:
            # One asked for by name is owed to the model that everything is about; others may have none.
            if not config.peers_are_auto and subject is subjects.found[0]:
                raise
            subjects.notes.append(f"no {role} peer of {subject.label}: {error}")
            continue
        if peer is None or peer.model.digest == subject.model.digest:
            continue
        added = subjects.add(peer)
        subjects.peers.setdefault(subject.label, []).append(added.label)


def _need_teacher(subject: Subject, teacher: str | None, role: str) -> str:
    if teacher is None:
        raise UserError(
            f"--peers {role} needs a teacher, and {subject.label} does not say what it was cut from: give --teacher"
        )
    return teacher


def _teacher(subjects: Subjects, subject: Subject, name: str | None) -> Subject:
    found = subjects.find(_need_teacher(subject, name, TEACHER))
    return Subject(found.name, TEACHER, subject.label, found, count_params(found), read_lineage(found.folder))


def _random(config: EvaluateConfig, subject: Subject, console: Console) -> Subject:
    twin = random_twin(subject.model, config.generation.seed, console)
    return Subject(f"random twin of {subject.label}", RANDOM, subject.label, twin, count_params(twin))


def _first_n(config: EvaluateConfig, subject: Subject, teacher: str | None, console: Console) -> Subject:
    cut = first_layers(subject.model, _need_teacher(subject, teacher, FIRST_N), console)
    return Subject(f"first layers like {subject.label}", FIRST_N, subject.label, cut, count_params(cut))


def _published(config: EvaluateConfig, subjects: Subjects, subject: Subject, teacher: str | None) -> Subject | None:
    """The published model of its size; None where there is none, unless it was asked for by name."""
    name = _need_teacher(subject, teacher, PUBLISHED)
    peer = published_peer(name, count_params(subjects.find(name)), subject.params)
    if peer is None:
        if not config.peers_are_auto:
            raise UserError(
                f"--peers published: no published model of the family of {name} is known that is near the "
                f"{subject.params:,} parameters of {subject.label}: give it as a --model"
            )
        return None
    found = subjects.find(peer)
    return Subject(peer, PUBLISHED, subject.label, found, count_params(found))
