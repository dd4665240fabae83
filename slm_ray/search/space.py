"""The grammar of search spaces: what may be chosen of a teacher, written in YAML, one file per space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import slm_ray
from slm_ray.config.digest import digest_json
from slm_ray.config.errors import ConfigError, UserError, nearest, unknown_name
from slm_ray.config.yaml_files import read_yaml

AXES = ("hidden", "layers", "heads", "queries", "neurons")
ORDERS = ("natural", "magnitude", "activation", "taylor")
DEFAULT_ORDER = "taylor"
NATURAL = "natural"
_PER = {
    "hidden": ("model",),
    "layers": ("model",),
    "heads": ("layer", "model"),
    "queries": ("layer", "model"),
    "neurons": ("layer", "model"),
}
_SELECT = {**dict.fromkeys(AXES, ("count", "subset")), "queries": ("count",)}
_STEP = {"hidden": 64, "layers": 1, "heads": 1, "queries": 1, "neurons": 64}
_LEAST = {"hidden": 1, "layers": 1, "heads": 0, "queries": 1, "neurons": 0}
_SPACE_FIELDS = ("name", "description", "order", "axes")
_AXIS_FIELDS = ("per", "select", "order", "step", "least")


@dataclass(frozen=True)
class Axis:
    """What may be chosen along one axis of the teacher.

    Attributes:
        per: ``model``: one choice applied in every layer; ``layer``: each layer has its own.
        select: ``count``: the first n units along the order; ``subset``: any of them.
        order: By which scores units are ordered, best first: ``natural`` (the teacher's own order), ``magnitude``,
            ``activation`` or ``taylor``.
        step: Units are kept and dropped in blocks of this many, cut along the order.
        least: The smallest number of units kept, rounded up to whole blocks.
    """

    per: str
    select: str
    order: str
    step: int
    least: int


@dataclass(frozen=True)
class SearchSpace:
    """What may be chosen of any teacher. An axis that is not named is kept whole."""

    name: str
    description: str
    order: str
    axes: Mapping[str, Axis]

    def orders(self) -> tuple[str, ...]:
        """The scores this space needs, sorted; ``natural`` is not among them, for it needs none."""
        return tuple(sorted({axis.order for axis in self.axes.values()} - {NATURAL}))

    def with_order(self, order: str) -> SearchSpace:
        """The same space with every axis ordered this way.

        Raises:
            UserError: There is no such order.
        """
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        axes = {name: dataclasses.replace(axis, order=order) for name, axis in self.axes.items()}
        return dataclasses.replace(self, order=order, axes=axes)

    def to_json(self) -> dict[str, Any]:
        """What a YAML file of this space holds, defaults filled in; :func:`parse_space` reads it back."""
        return {
            "name": self.name,
            "description": self.description,
            "order": self.order,
            "axes": {name: dataclasses.asdict(axis) for name, axis in self.axes.items()},
        }

    @property
    def digest(self) -> str:
        """Spaces with the same choices have the same digest, whatever they are called."""
        return digest_json({name: dataclasses.asdict(axis) for name, axis in self.axes.items()})


def _one_of(value: Any, choices: tuple[str, ...]) -> str | None:
    return None if value in choices else f"must be one of a few, got {value!r}; {nearest(str(value), choices)}"


def _whole_number(value: Any, low: int) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole and value >= low else f"must be a whole number of at least {low}, got {value!r}"


def _parse_axis(name: str, given: Any, order: str, problems: list[str]) -> Axis | None:
    path = f"axes.{name}"
    if not isinstance(given, Mapping):
        problems.append(f"{path}: must be a mapping such as {{per: model, select: count}}, got {given!r}")
        return None
    before = len(problems)
    for field in given:
        if field not in _AXIS_FIELDS:
            problems.append(f"{path}.{field}: no such field; {nearest(str(field), _AXIS_FIELDS)}")
    only_one = {"per": _PER[name], "select": _SELECT[name]}
    defaults = {field: choices[0] for field, choices in only_one.items() if len(choices) == 1}
    values = {**defaults, "order": order, "step": _STEP[name], "least": _LEAST[name], **given}
    for field, choices in only_one.items():
        if field not in values:
            problems.append(f"{path}.{field}: must be given; {nearest('', choices)}")
    found = {field: _one_of(values[field], choices) for field, choices in only_one.items() if field in values}
    found["order"] = _one_of(values["order"], ORDERS)
    found["step"] = _whole_number(values["step"], 1)
    found["least"] = _whole_number(values["least"], _LEAST[name])
    problems.extend(f"{path}.{field}: {problem}" for field, problem in found.items() if problem)
    if len(problems) > before:
        return None
    return Axis(**{field: values[field] for field in _AXIS_FIELDS})


def parse_space(value: Any, source: str) -> SearchSpace:
    """Make a space from what a YAML file holds.

    Args:
        value: The loaded YAML.
        source: What to call the place it came from.

    Raises:
        ConfigError: Anything is wrong; every mistake is listed with its path, rule, value and nearest valid name.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(source, [f"must hold a mapping with {', '.join(_SPACE_FIELDS)}, got {value!r}"])
    problems = [
        f"{key}: no such field; {nearest(str(key), _SPACE_FIELDS)}" for key in value if key not in _SPACE_FIELDS
    ]
    for field in ("name", "description"):
        text = value.get(field, "" if field == "description" else None)
        if not isinstance(text, str) or (field == "name" and not text.strip()):
            problems.append(f"{field}: must be text, got {text!r}")
    order = value.get("order", DEFAULT_ORDER)
    if problem := _one_of(order, ORDERS):
        problems.append(f"order: {problem}")
        order = DEFAULT_ORDER
    given = value.get("axes")
    axes: dict[str, Axis] = {}
    if not isinstance(given, Mapping) or not given:
        problems.append(f"axes: must be a mapping with at least one axis ({', '.join(AXES)}), got {given!r}")
        given = {}
    problems.extend(f"axes.{name}: no such axis; {nearest(str(name), AXES)}" for name in given if name not in AXES)
    for name in AXES:
        if name in given and (axis := _parse_axis(name, given[name], order, problems)):
            axes[name] = axis
    if problems:
        raise ConfigError(source, problems)
    return SearchSpace(value["name"].strip(), value.get("description", "").strip(), order, axes)


def spaces_folder() -> Path:
    """Where the named spaces are: the repository's folder, else the one installed with the package."""
    in_repository = Path(slm_ray.__file__).parent.parent / "search_spaces"
    return in_repository if in_repository.is_dir() else Path(str(resources.files("slm_ray") / "search_spaces"))


def space_names() -> list[str]:
    """The names ``load_space`` knows, sorted."""
    return sorted(path.stem for path in spaces_folder().glob("*.yaml"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """Load a space by name (``fine``) or from a file (anything with a ``/`` or ending in ``.yaml`` or ``.yml``).

    Raises:
        UserError: There is no such space or file, or it is not YAML.
        ConfigError: The file holds mistakes; all of them are listed.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    elif text in space_names():
        path = spaces_folder() / f"{text}.yaml"
    else:
        fix = "a file of your own is given by its path, such as ./mine.yaml"
        raise UserError(f"{unknown_name('search space', text, space_names())}; {fix}")
    return parse_space(read_yaml(path), text)
