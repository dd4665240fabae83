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
from slm_ray.records.architecture import Architecture

ORDERS = ("natural", "magnitude", "activation", "taylor")
DEFAULT_ORDER = "taylor"
NATURAL = "natural"
VOCABULARY = "vocabulary"
EVEN_WIDTH = 8  # matrix kernels want widths that are multiples of this many numbers


@dataclass(frozen=True)
class _Rules:
    """The values that the fields of one axis may have; where there is one, it need not be given."""

    per: tuple[str, ...]
    step: int
    least: int
    select: tuple[str, ...] = ("count", "subset")
    order: tuple[str, ...] = ORDERS


_RULES = {
    "hidden": _Rules(per=("model",), step=64, least=1),
    "layers": _Rules(per=("model",), step=1, least=1),
    "heads": _Rules(per=("layer", "model"), step=1, least=0),
    "queries": _Rules(per=("layer", "model"), step=1, least=1, select=("count",)),
    "neurons": _Rules(per=("layer", "model"), step=64, least=0),
    "experts": _Rules(per=("layer", "model"), step=1, least=0),
    VOCABULARY: _Rules(per=("model",), step=1024, least=1, select=("count",), order=("text", NATURAL)),
}
AXES = tuple(name for name in _RULES if name not in ("experts", VOCABULARY))
"""The axes of any teacher's units; a mixture's experts take the place of neurons."""
_SPACE_FIELDS = ("name", "description", "order", "axes")


@dataclass(frozen=True)
class Axis:
    """What may be chosen along one axis of the teacher."""

    per: str  # ``model``: one choice applied in every layer; ``layer``: each layer has its own
    select: str  # ``count``: the first n units along the order; ``subset``: any of them
    # By which scores units are ordered, best first: ``natural`` (the teacher's own order), ``magnitude``,
    # ``activation`` or ``taylor``; tokens by what the ``text`` needs, or ``natural``
    order: str
    step: int  # Units are kept and pruned in blocks of this many, along the order
    least: int  # The smallest number of units kept, rounded up to whole blocks


_AXIS_FIELDS = tuple(field.name for field in dataclasses.fields(Axis))


@dataclass(frozen=True)
class SearchSpace:
    """What may be chosen of any teacher. An axis that is not named is kept whole."""

    name: str
    description: str
    order: str
    axes: Mapping[str, Axis]

    def orders(self) -> tuple[str, ...]:
        """The scores this space needs, sorted; ``natural`` is not among them, for it needs none."""
        return tuple(sorted({axis.order for name, axis in self.axes.items() if name != VOCABULARY} - {NATURAL}))

    def axes_of(self, teacher: Architecture) -> dict[str, Axis]:
        """What may be chosen of a teacher, by the names of ``AXES``; of a mixture, experts for ``neurons``."""
        axes, needed = dict(self.axes), teacher.structure.experts_per_token
        axes.pop(VOCABULARY, None)
        experts, neurons = axes.pop("experts", None), axes.pop("neurons", None)
        if needed:
            neurons = dataclasses.replace(experts, least=max(experts.least, needed)) if experts else None
        return axes | ({"neurons": neurons} if neurons else {})

    def with_order(self, order: str) -> SearchSpace:
        """The same space with every axis ordered this way."""
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        axes = {
            name: axis if name == VOCABULARY else dataclasses.replace(axis, order=order)
            for name, axis in self.axes.items()
        }
        return dataclasses.replace(self, order=order, axes=axes)

    def to_json(self) -> dict[str, Any]:
        """What a YAML file of this space holds, defaults filled in; :func:`parse_space` reads it back."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """Spaces with the same choices have the same digest, whatever they are called."""
        return digest_json({name: dataclasses.asdict(axis) for name, axis in self.axes.items()})

    def width_warning(self) -> str | None:
        """One sentence on steps that lead to widths for which matrix kernels are slow; None where there are none."""
        uneven = {}
        for name in ("hidden", "neurons"):
            step = self.axes[name].step if name in self.axes else EVEN_WIDTH
            if widths := [count * step for count in range(1, EVEN_WIDTH) if count * step % EVEN_WIDTH]:
                uneven[name] = f"axes.{name}.step {step} gives widths such as {', '.join(map(str, widths[:3]))}"
        if not uneven:
            return None
        rule = f"for which matrix products are slow: use multiples of {EVEN_WIDTH}, best of 64"
        return f"space '{self.name}': {' and '.join(uneven.values())}, {rule}"


def _one_of(value: Any, choices: tuple[str, ...]) -> str | None:
    return None if value in choices else f"must be one of a few, got {value!r}; {nearest(str(value), choices)}"


def _whole_number(value: Any, low: int) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole and value >= low else f"must be a whole number of at least {low}, got {value!r}"


def _parse_axis(name: str, given: Any, order: str, problems: list[str]) -> Axis | None:
    path, rules = f"axes.{name}", _RULES[name]
    if not isinstance(given, Mapping):
        problems.append(f"{path}: must be a mapping such as {{per: model, select: count}}, got {given!r}")
        return None
    before = len(problems)
    for field in given:
        if field not in _AXIS_FIELDS:
            problems.append(f"{path}.{field}: no such field; {nearest(str(field), _AXIS_FIELDS)}")
    order = order if order in rules.order else rules.order[0]
    values = {"order": order, "step": rules.step, "least": rules.least, **given}
    found = {
        "order": _one_of(values["order"], rules.order),
        "step": _whole_number(values["step"], 1),
        "least": _whole_number(values["least"], rules.least),
    }
    for field, choices in (("per", rules.per), ("select", rules.select)):
        if field not in given and len(choices) > 1:
            found[field] = f"must be given; {nearest('', choices)}"
        else:
            found[field] = _one_of(values.setdefault(field, choices[0]), choices)
    problems.extend(f"{path}.{field}: {problem}" for field, problem in found.items() if problem)
    return None if len(problems) > before else Axis(**{field: values[field] for field in _AXIS_FIELDS})


def parse_space(value: Any, source: str) -> SearchSpace:
    """Make a space from what a YAML file holds."""
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
        problems.append(f"axes: must be a mapping with at least one axis ({', '.join(_RULES)}), got {given!r}")
        given = {}
    problems.extend(f"axes.{name}: no such axis; {nearest(str(name), _RULES)}" for name in given if name not in _RULES)
    for name in _RULES:
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
    """Load a space by name (``fine``) or from a file (anything with a ``/`` or ending in ``.yaml`` or ``.yml``)."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    elif text in space_names():
        path = spaces_folder() / f"{text}.yaml"
    else:
        fix = "a file of your own is given by its path, such as ./mine.yaml"
        raise UserError(f"{unknown_name('search space', text, space_names())}; {fix}")
    return parse_space(read_yaml(path), text)
