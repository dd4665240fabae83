"""Which texts are shown side by side, in which order, and which of them is left: fixed by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, zip_longest
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.rating.records import Writing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two continuations of one prompt.

    Attributes:
        item: Its number on the page; says nothing of what it is.
        prompt: The prompt's id.
        text: The prompt.
        left: The text on the left.
        right: The text on the right.
        left_model: Who wrote the left one.
        right_model: Who wrote the right one.
    """

    item: str
    prompt: str
    text: str
    left: str
    right: str
    left_model: str
    right_model: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All comparisons of a page.

    Attributes:
        comparisons: In the order in which they are shown.
        same: Prompt's id and two models that wrote the same text: there is nothing to prefer, so they are not shown.
    """

    comparisons: tuple[Comparison, ...]
    same: tuple[tuple[str, str, str], ...]

    def page_data(self) -> dict[str, Any]:
        """What the page knows; no model is named in it."""
        items = [
            {"item": one.item, "prompt": one.text, "left": one.left, "right": one.right} for one in self.comparisons
        ]
        return {"page": digest_json(items), "items": items}

    @property
    def digest(self) -> str:
        """The page's digest: ratings belong to one page."""
        return str(self.page_data()["page"])

    def key(self, run: str, seed: int, models: Sequence[str]) -> dict[str, Any]:
        """Who wrote what, for the file that raters do not see.

        Args:
            run: The evaluation's folder.
            seed: Of the order.
            models: All models.
        """
        items = [asdict(one) for one in self.comparisons]
        shown = [{name: item[name] for name in ("item", "prompt", "left_model", "right_model")} for item in items]
        same = [{"prompt": prompt, "models": [first, second]} for prompt, first, second in self.same]
        return {
            "format": KEY_FORMAT, "page": self.digest, "run": run, "seed": seed, "models": list(models), "items": shown,
            "same": same,
        }  # fmt: skip


KEY_FORMAT = "slm_ray rating key 1"


def make_pairs(writings: Sequence[Writing], *, seed: int, most: int | None) -> Pairs:
    """Choose what is compared.

    Every pair of models gets its share of the comparisons, and each of the two is left in half of its own.

    Args:
        writings: What each model wrote.
        seed: Of everything that is random.
        most: At most so many comparisons; None for every prompt of every pair.

    Raises:
        UserError: All texts are the same.
    """
    rng = random.Random(seed)
    queues, same = [], []
    for first, second in combinations(writings, 2):
        different = [name for name in first.texts if first.texts[name].strip() != second.texts[name].strip()]
        same += [(name, first.model, second.model) for name in first.texts if name not in different]
        rng.shuffle(different)
        sides = [number % 2 == 0 for number in range(len(different))]
        if rng.random() < 0.5:
            sides = [not side for side in sides]
        queues.append([(name, first, second, side) for name, side in zip(different, sides, strict=True)])
    rng.shuffle(queues)
    chosen = [one for turn in zip_longest(*queues) for one in turn if one is not None][:most]
    if not chosen:
        raise UserError("all models wrote the same texts: there is nothing to compare")
    rng.shuffle(chosen)
    return Pairs(comparisons=tuple(_comparison(number, *one) for number, one in enumerate(chosen, 1)), same=tuple(same))


def _comparison(number: int, prompt: str, first: Writing, second: Writing, first_is_left: bool) -> Comparison:
    left, right = (first, second) if first_is_left else (second, first)
    return Comparison(
        item=str(number), prompt=prompt, text=first.prompts[prompt], left=left.texts[prompt], right=right.texts[prompt],
        left_model=left.model, right_model=right.model,
    )  # fmt: skip


def opponents(key: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """A key's comparisons: number to prompt, left model and right model."""
    return {item["item"]: (item["prompt"], item["left_model"], item["right_model"]) for item in key["items"]}
