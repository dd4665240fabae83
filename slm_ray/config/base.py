"""Configs: one declaration of a field gives its flag, its YAML field, its check and its entry in config.json.

A stage's config is a frozen pydantic model whose fields are components (``model``, ``data``, ``optimizer``, …), each
declared beside the code it configures. Components nest; names do not: every option has one name, the same as a flag, in
YAML and in config.json.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.config.redact import secret_in
from slm_ray.config.units import parse_number
from slm_ray.config.yaml_files import read_yaml

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A component, or a whole stage's config: frozen, keyword-only, without unknown fields.

    A rule between fields of one component is a ``@model_validator(mode="after")`` that raises ``ValueError`` with one
    sentence; a rule between components belongs to the config that holds both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values that a dial among the given options stands for; every option given by itself comes over them."""
        return {}

    def replace(self, **changes: Any) -> Self:
        """A copy in which options have other values, checked anew."""
        return build_config(type(self), flatten(self) | changes)


def option(default: Any, help: str, *, metavar: str | None = None, **rules: Any) -> Any:
    """Declare an option.

    ``default``: Its default; None where it depends on others (the type then allows None).
    """
    return Field(default=default, description=help, json_schema_extra={"metavar": metavar}, **rules)


def _count(value: Any) -> Any:
    """Read ``300k`` or ``20M`` as a whole number."""
    if not isinstance(value, str):
        return value
    number = parse_number(value)
    if number != int(number):
        raise ValueError(f"must be a whole number, got '{value}'")
    return int(number)


def _listed(value: Any) -> Any:
    """Read ``a,b`` as a tuple without repetitions; also a list, as a flag that was given several times makes one."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return value
    parts = [part.strip() for entry in value for part in str(entry).split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number that may be written ``300k`` or ``20M``."""

Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Texts with commas between them."""

Numbers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
"""Whole numbers with commas between them."""

Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, (int, float)) else value)]
"""Text that YAML may have read as a number, such as a budget of ``0.5``."""

@dataclass(frozen=True)
class Option:
    """One option of a config: its name and where in the tree of components it is."""

    name: str
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def flag(self) -> str:
        """Its flag: ``calibration_tokens`` is ``--calibration-tokens``."""
        return flag_of(self.name)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its value may have, None left out."""
        return tuple(kind for kind in _members(self.field.annotation) if kind is not type(None))

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid values where it is one of a few."""
        return tuple(str(value) for kind in self.kinds if get_origin(kind) is Literal for value in get_args(kind))

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false, and its flag has no value."""
        return self.kinds == (bool,)


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return (annotation,)


def flag_of(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def options_of(cls: type[Config]) -> dict[str, Option]:
    """All options of a config by name, those of nested components too.

    Raises:
        TypeError: Two components declare the same name.
    """
    found: dict[str, Option] = {}
    for option in _walk(cls, ()):
        if option.name in found:
            raise TypeError(f"{cls.__name__}: option {option.name} is declared twice")
        found[option.name] = option
    return found


def _walk(cls: type[Config], path: tuple[str, ...]) -> Iterator[Option]:
    for name, field in cls.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Config):
            yield from _walk(inner, (*path, name))
        else:
            yield Option(name, (*path, name), field)


def build_config(cls: type[C], given: Mapping[str, Any], *, source: str = "options") -> C:
    """Make a config from values by option name, finding every mistake at once."""
    options = options_of(cls)
    problems: list[str] = []
    tree: dict[str, Any] = {}
    for name, value in {**cls.preset(given), **given}.items():
        if name not in options:
            problems.append(f"{name}: no such option; {nearest(name, options)}")
        elif any(secret_in(text) for text in _texts(value)):  # options are kept on record and sent to trackers
            fix = "which would be kept on record: give that by the environment"
            problems.append(f"{flag_of(name)}: has a login or key in it, {fix}")
        elif isinstance(value, bool) and set(options[name].kinds) <= {int, float}:  # pydantic reads 1 for true
            problems.append(f"{flag_of(name)}: must be a number, got {value}")
        else:
            place = tree
            for part in options[name].path[:-1]:
                place = place.setdefault(part, {})
            place[name] = value
    try:
        config = cls.model_validate(_with_components(cls, tree))
    except ValidationError as error:
        raise ConfigError(source, [*problems, *(_sentence(cls, entry) for entry in error.errors())]) from None
    if problems:
        raise ConfigError(source, problems)
    return config


def build_section(cls: type[C], given: Any, path: str, problems: list[str]) -> C | None:
    """A config of a section of a file; what is wrong is added to ``problems`` with its path, and None returned."""
    if not isinstance(given, Mapping):
        problems.append(f"{path}: must hold options, got {given!r}")
        return None
    values = {str(name).strip().replace("-", "_"): value for name, value in given.items()}
    try:
        return build_config(cls, values)
    except ConfigError as error:
        names = {flag_of(name): name for name in options_of(cls)} | {name: name for name in values}
        for problem in error.problems:
            name, _, rest = problem.partition(":")
            problems.append(f"{path}.{names[name]}:{rest}" if name in names else f"{path}: {problem}")
        return None


def _texts(value: Any) -> list[str]:
    """The texts in a value: itself, or those of a list."""
    return [text for text in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(text, str)]


def _with_components(cls: type[Config], tree: dict[str, Any]) -> dict[str, Any]:
    """Name every component, so that rules between its fields are checked even where no field is given."""
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            tree[name] = _with_components(field.annotation, tree.get(name, {}))
    return tree


def _sentence(cls: type[Config], entry: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence: the flag, the rule, the value and the nearest valid one."""
    options = {option.path: option for option in options_of(cls).values()}
    location = tuple(part for part in entry["loc"] if isinstance(part, str))
    option = next((options[location[:end]] for end in range(len(location), 0, -1) if location[:end] in options), None)
    kind, value, limits = entry["type"], entry["input"], entry.get("ctx", {})
    if kind == "value_error":
        text = str(limits["error"])
        return text if option is None or text.startswith("--") else f"{option.flag}: {text}"
    rules = {
        "greater_than_equal": "must be at least {ge:g}", "greater_than": "must be above {gt:g}",
        "less_than_equal": "must be at most {le:g}", "less_than": "must be below {lt:g}",
        "int_parsing": "must be a whole number", "int_type": "must be a whole number",
        "int_from_float": "must be a whole number", "float_parsing": "must be a number",
        "float_type": "must be a number", "finite_number": "must be a finite number",
        "bool_parsing": "must be true or false", "bool_type": "must be true or false",
        "string_type": "must be text", "tuple_type": "must be a list",
        "missing": "must be given",
    }  # fmt: skip
    name = option.flag if option else ".".join(location)
    if kind == "literal_error" and option is not None:
        return f"{name}: '{value}' is not one of them: {nearest(str(value), option.choices)}"
    if kind == "missing":
        return f"{name}: must be given"
    if value is None:
        return f"{name}: must have a value"
    rule = rules[kind].format(**limits) if kind in rules else entry["msg"]
    return f"{name}: {rule}, got {value!r}"


def flatten(config: Config) -> dict[str, Any]:
    """Every option by name, as plain JSON values; :func:`build_config` reads it back."""

    def leaves(value: dict[str, Any], cls: type[Config]) -> Iterator[tuple[str, Any]]:
        for name, field in cls.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
                yield from leaves(value[name], field.annotation)
            else:
                yield name, value[name]

    return dict(leaves(config.model_dump(mode="json"), type(config)))


def given_flag_pairs(config: Config) -> Iterator[tuple[str, ...]]:
    """The flags that give this config, each with its value: one for every option that is not at its default."""
    values = flatten(config)
    for name, option in options_of(type(config)).items():
        value = values[name]
        default = option.field.get_default(call_default_factory=True)
        if value is None or value == default or (isinstance(value, list) and tuple(value) == default):
            continue
        if option.is_switch:
            yield (option.flag if value else flag_of(f"no_{name}"),)
        else:
            yield option.flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)


def given_flags(config: Config) -> list[str]:
    """The words of a command that give this config."""
    return [word for flag in given_flag_pairs(config) for word in flag]


def add_flags(parser: argparse.ArgumentParser, cls: type[Config]) -> None:
    """Give a parser a flag for every option of a config; flags not given stay out of the result."""
    for name, option in options_of(cls).items():
        default = option.field.default
        text = option.field.description or ""
        text += f" ({', '.join(option.choices)})" if option.choices else ""
        if default is not None and default is not PydanticUndefined:
            shown = ",".join(map(str, default)) if isinstance(default, (tuple, list)) else default
            text += f" [default: {shown}]"
        arguments: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS, "dest": name}
        if option.is_switch:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            extra = option.field.json_schema_extra
            arguments["metavar"] = (extra.get("metavar") if isinstance(extra, dict) else None) or name.upper()
            if any(get_origin(kind) is tuple for kind in option.kinds):
                arguments["action"] = "append"  # several values: with commas between, or the flag several times
        parser.add_argument(option.flag, **arguments)


def load_config(cls: type[C], config_file: Path | None, flags: Mapping[str, Any]) -> C:
    """Make a config from a YAML file, if given, and the flags over it."""
    given: dict[str, Any] = {}
    if config_file is not None:
        loaded = read_yaml(config_file)
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{config_file} must hold a mapping of option names to values, got {type(loaded).__name__}")
        given.update({str(key).replace("-", "_"): value for key, value in (loaded or {}).items()})
    given.update(flags)
    return build_config(cls, given, source=str(config_file) if config_file else "options")


def refuse_changes(given: Sequence[str] | Mapping[str, Any], may_change: Sequence[str], run: Path) -> None:
    """Make sure that a resume changes nothing that decides the result."""
    if fixed := sorted(set(given) - set(may_change)):
        allowed = ", ".join(map(flag_of, may_change))
        rule = f"cannot be changed when {run} is resumed (only {allowed} can)"
        raise UserError(f"{flag_of(fixed[0])} {rule}: start a new run for that")
