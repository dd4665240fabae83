"""The page that raters open: which texts stand side by side, in which order, and nothing that names a model."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.records.base import SCHEMA_VERSION, read_record
from slm_ray.records.evaluation import EvaluationResult, ModelFigures
from slm_ray.records.measurement import GenerationRecord, read_measurement
from slm_ray.records.rating import KeyItem, SameText
from slm_ray.report.text import script_json

_FIX = "evaluate the models with --prompts first"


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What one model wrote.

    Attributes:
        model: Its name in the evaluation.
        prompts: Prompt's id to its text, in order.
        texts: Prompt's id to the model's continuation.
    """

    model: str
    prompts: Mapping[str, str]
    texts: Mapping[str, str]


def read_writings(run: Path, models: Sequence[str] = ()) -> list[Writing]:
    """Read what models wrote in an evaluation.

    Raises:
        UserError: It is not an evaluation, a model is not in it or wrote nothing, there are fewer than two, or they
            were given different prompts.
    """
    by_name = {model.name: model for model in read_record(run, EvaluationResult).models}
    for name in models:
        if name not in by_name:
            raise unknown_name("model", name, by_name)
        if by_name[name].generation is None:
            raise UserError(f"{name} generated nothing in {run}: {_FIX}, or leave it out of --models")
    chosen = models or [name for name, model in by_name.items() if model.generation]
    if len(chosen) < 2:
        what = f"only {chosen[0]} has" if chosen else "no model has"
        raise UserError(f"two models are needed to compare, but {what} texts in {run}: {_FIX}")
    writings = [_writing(run, by_name[name]) for name in chosen]
    for writing in writings[1:]:
        if writing.prompts != writings[0].prompts:
            raise UserError(
                f"{writings[0].model} and {writing.model} were given different prompts in {run}: evaluate them together"
            )
    return writings


def _writing(run: Path, model: ModelFigures) -> Writing:
    """The record of a model's generation whose settings are those of the evaluation's result."""
    folder = run / model.records
    for file in sorted(folder.glob("generation-*.json")):
        record = read_measurement(file)
        wanted = model.generation.settings if model.generation else None
        if isinstance(record, GenerationRecord) and record.figures.settings == wanted:
            samples = record.figures.samples
            return Writing(
                model=model.name, prompts={sample.id: sample.prompt for sample in samples},
                texts={sample.id: sample.text for sample in samples},
            )  # fmt: skip
    raise UserError(f"{folder} has no record of what {model.name} generated: run the same evaluation again")


def make_pairs(
    writings: Sequence[Writing], *, seed: int, most: int | None
) -> tuple[tuple[KeyItem, ...], tuple[SameText, ...]]:  # fmt: skip
    """Choose what is compared, in the order in which it is shown.

    Every pair of models gets its share of the comparisons, and each of the two is left in half of its own.

    Raises:
        UserError: All texts are the same.
    """
    rng = random.Random(seed)
    queues, same = [], []
    for first, second in combinations(writings, 2):
        different = [name for name in first.texts if first.texts[name].strip() != second.texts[name].strip()]
        alike = (name for name in first.texts if name not in different)
        same += [SameText(prompt=name, models=(first.model, second.model)) for name in alike]
        rng.shuffle(different)
        sides = [number % 2 == 0 for number in range(len(different))]
        if rng.random() < 0.5:
            sides = [not side for side in sides]
        pairs = ((first.model, second.model) if side else (second.model, first.model) for side in sides)
        queues.append([(name, *pair) for name, pair in zip(different, pairs, strict=True)])
    rng.shuffle(queues)
    chosen = [one for turn in zip_longest(*queues) for one in turn if one is not None][:most]
    if not chosen:
        raise UserError("all models wrote the same texts: there is nothing to compare")
    rng.shuffle(chosen)
    items = [
        KeyItem(item=str(number), prompt=prompt, left_model=left, right_model=right)
        for number, (prompt, left, right) in enumerate(chosen, 1)
    ]
    return tuple(items), tuple(same)


def page_data(items: Sequence[KeyItem], writings: Sequence[Writing]) -> dict[str, Any]:
    """What the page knows; no model is named in it."""
    texts, prompts = {one.model: one.texts for one in writings}, writings[0].prompts
    shown = [
        {
            "item": one.item, "prompt": prompts[one.prompt], "left": texts[one.left_model][one.prompt],
            "right": texts[one.right_model][one.prompt],
        }
        for one in items
    ]  # fmt: skip
    return {"page": digest_json(shown), "version": SCHEMA_VERSION, "items": shown}


def rating_page(data: Mapping[str, Any]) -> str:
    """The whole page: one HTML file that needs no network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = resources.files("slm_ray.evaluate.rating") / "templates"
    style, script = (templates.joinpath(f"rating.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    page = Environment(
        loader=PackageLoader("slm_ray.evaluate.rating"), autoescape=True, undefined=StrictUndefined
    ).get_template("rating.html")
    # Only this script and this style are let in, whatever a model wrote.
    return page.render(
        style=Markup(style), script=Markup(script), style_digest=_digest(style), script_digest=_digest(script),
        data=Markup(script_json(dict(data))),
    )  # fmt: skip


def _digest(text: str) -> Any:
    """What a content security policy calls a script or a style."""
    from markupsafe import Markup

    return Markup("sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
