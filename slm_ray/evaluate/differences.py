"""Which models are compared with which, in what: every model with the first, and every student with its own peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slm_ray.evaluate.compare import Difference, compare_group, compare_known, compare_samples, compare_text
from slm_ray.evaluate.inputs import Inputs
from slm_ray.evaluate.parts import GENERATION, TASK, TEXT, Part

Measured = Sequence[tuple[Part, dict[str, Any]]]


def pairs(inputs: Inputs) -> list[tuple[str, str]]:
    """The model, and what it is compared with, for every comparison."""
    labels = [subject.label for subject in inputs.subjects]
    found = [(label, labels[0]) for label in labels[1:]]
    for label, peers in inputs.peers.items():
        if label != labels[0]:
            found += [(peer, label) for peer in peers if peer != labels[0]]
    return found


def differences(inputs: Inputs, kept: Mapping[str, Measured], rows: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """All differences of an evaluation.

    Args:
        inputs: What was to be measured.
        kept: Label to the records of its parts.
        rows: What the result says of each model.
    """
    by_name = {row["name"]: row for row in rows}
    found: list[Difference] = []
    for names in pairs(inputs):
        mine, other = ({(part.kind, part.name): record for part, record in kept[name]} for name in names)
        found += _texts(names, mine, other, [by_name[name] for name in names])
        found += _tasks(names, mine, other)
        found += _groups(inputs, names, mine, other)
        found += _generations(names, mine, other)
    return found


Parts = Mapping[tuple[str, str], Mapping[str, Any]]


def _texts(
    names: tuple[str, str], mine: Parts, other: Parts, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Difference]:
    figures = [{text["domain"]: text["bits_per_byte_stderr"] for text in row["text"]} for row in rows]
    for (kind, domain), record in mine.items():
        if kind == TEXT and (kind, domain) in other:
            both = [
                {**found, "bits_per_byte_stderr": figure.get(domain)}
                for found, figure in zip((record, other[kind, domain]), figures, strict=True)
            ]
            yield compare_text(names, domain, *both)


def _tasks(names: tuple[str, str], mine: Parts, other: Parts) -> Iterator[Difference]:
    for (kind, task), record in mine.items():
        if kind != TASK or (kind, task) not in other:
            continue
        theirs = other[kind, task]
        if record["documents_digest"] != theirs["documents_digest"]:
            continue  # not the same questions
        for metric, values in record["samples"].items():
            if theirs["samples"].get(metric):
                better = record["metrics"][metric]["better"]
                yield compare_samples(names, TASK, task, metric, values, theirs["samples"][metric], better)


def _groups(inputs: Inputs, names: tuple[str, str], mine: Parts, other: Parts) -> Iterator[Difference]:
    """Groups by their members' documents, where each model has all of them."""
    if inputs.plan is None:
        return
    from slm_ray.evaluate.tasks.groups import group_rows

    by_task = [{name: record for (kind, name), record in parts.items() if kind == TASK} for parts in (mine, other)]
    for row in group_rows(inputs.plan, by_task[0]):
        for metric, figure in row["metrics"].items():
            members = _members(row["weights"], metric, by_task)
            if members:
                yield compare_group(names, row["task"], metric, members, figure["better"])


def _members(
    weights: Mapping[str, float], metric: str, by_task: Sequence[Mapping[str, Mapping[str, Any]]]
) -> list[tuple[float, Sequence[float], Sequence[float]]]:
    """Weight and both models' values of each task; empty where one of them has none, or of other documents."""
    members = []
    for task, weight in weights.items():
        records = [found.get(task) for found in by_task]
        values = [(record or {}).get("samples", {}).get(metric) for record in records]
        if not values[0] or not values[1] or len({(record or {}).get("documents_digest") for record in records}) > 1:
            return []
        members.append((weight, values[0], values[1]))
    return members


def _generations(names: tuple[str, str], mine: Parts, other: Parts) -> Iterator[Difference]:
    record, theirs = (parts.get((GENERATION, GENERATION)) for parts in (mine, other))
    if record is None or theirs is None:
        return
    if record["settings_digested"]["prompts"] != theirs["settings_digested"]["prompts"]:
        return
    for metric, figure in record["metrics"].items():
        its = theirs["metrics"].get(metric)
        if its is None or not figure["better"]:
            continue
        if figure.get("statistics") and its.get("statistics"):
            from slm_ray.evaluate.text_metrics import corpus_difference

            found = corpus_difference(metric, figure["statistics"], its["statistics"])
            yield compare_known(names, GENERATION, metric, found, figure["better"])
        elif figure["values"] and its["values"]:
            yield compare_samples(names, GENERATION, metric, metric, figure["values"], its["values"], figure["better"])
