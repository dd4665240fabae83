"""One declaration of an option gives its flag, its YAML field and its check.

A config is a frozen dataclass whose fields are made with :func:`option`. Its values come, later over earlier, from the
defaults, a YAML file and the command line; every mistake is found at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slm_ray.config import base
from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.config.redact import MASK, secret_in
from slm_ray.config.yaml_files import read_yaml

T = TypeVar("T")
Check = Callable[[Any], str | None]


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    check: Check | None = None,
    metavar: str | None = None,
    kind: type | None = None,
) -> Any:
    """Declare one option of a config dataclass.

    Args:
        default: Its default value. Its type is the option's type unless ``kind`` says otherwise.
        help: One line for ``--help``.
        choices: The valid names, when it is one of a few.
        check: Gives a sentence about what is wrong with a value, or None.
        metavar: How the value is called in ``--help``.
        kind: ``str``, ``int``, ``float`` or ``bool``; needed where the default is None.
    """
    meta = {"help": help, "choices": tuple(choices) if choices else None, "check": check, "metavar": metavar}
    return dataclasses.field(default=default, metadata={**meta, "kind": kind or type(default)})


def at_least(low: float) -> Check:
    """A check that a number is ``low`` or more."""
    return lambda value: None if value >= low else f"must be at least {low:g}, got {value:g}"


def flag_of(name: str) -> str:
    """The flag of a field: ``calibration_tokens`` is ``--calibration-tokens``."""
    return "--" + name.replace("_", "-")


def given_flags(config: Any) -> Iterator[tuple[str, ...]]:
    """The flags that give a config, with their values: every option that would be another one if it were left out."""
    if isinstance(config, base.Config):
        yield from base.given_flag_pairs(config)
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        without = dataclasses.replace(config, **{field.name: field.default})  # some defaults depend on other options
        if value is None or value == getattr(without, field.name):
            continue
        if field.metadata["kind"] is bool:
            yield (flag_of(field.name) if value else flag_of(f"no_{field.name}"),)
        else:
            yield flag_of(field.name), str(value)


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Give a parser a flag for every field of a config; flags not given stay out of the result."""
    for field in dataclasses.fields(cls):
        meta = field.metadata
        text = meta["help"] + (f" ({', '.join(meta['choices'])})" if meta["choices"] else "")
        text += "" if field.default is None else f" [default: {field.default}]"
        arguments: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if meta["kind"] is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["metavar"] = meta["metavar"] or field.name.upper()
        parser.add_argument(flag_of(field.name), **arguments)


def _convert(value: Any, kind: type) -> Any:
    """Read a value from the command line (text) or YAML (typed) as one of the option kinds."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("must be true or false")
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError("must be a whole number")
        return int(str(value).replace("_", "")) if isinstance(value, str) else int(value)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError("must be a number")
        return float(value)
    if isinstance(value, (dict, list)):
        raise ValueError("must be a single value")
    return str(value)


def _problem_with(field: dataclasses.Field[Any], value: Any) -> tuple[Any, str | None]:
    """Convert and check one value; gives the value and what is wrong with it, if anything."""
    meta, kind = field.metadata, field.metadata["kind"]
    if value is None:
        return None, None if field.default is None else "must have a value"
    try:
        value = _convert(value, kind)
    except (ValueError, TypeError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        return value, f"must be {wanted}, got {value!r}"
    if isinstance(value, str) and secret_in(value):  # options are kept in the run's records, and sent to trackers
        return MASK, "has a login or key in it, which would be kept on record: give that by the environment"
    if meta["choices"] and value not in meta["choices"]:
        return value, f"'{value}' is not one of them: {nearest(value, meta['choices'])}"
    return value, meta["check"](value) if meta["check"] else None


def build_config(cls: type[T], given: Mapping[str, Any], *, source: str = "options") -> T:
    """Make a config from given values over its defaults, finding every mistake at once.

    Args:
        cls: The config dataclass.
        given: Field name to value.
        source: What to call the place the values came from.

    Raises:
        ConfigError: A field does not exist, or a value breaks its rule; all of them are listed.
    """
    if issubclass(cls, base.Config):
        return base.build_config(cls, given, source=source)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems, values = [], {}
    for name, raw in given.items():
        if name not in fields:
            problems.append(f"{name}: no such option; {nearest(name, fields)}")
            continue
        values[name], problem = _problem_with(fields[name], raw)
        if problem:
            problems.append(f"{flag_of(name)}: {problem}")
    if problems:
        raise ConfigError(source, problems)
    return cls(**values)


def add_command_flags(parser: argparse.ArgumentParser, cls: type, *, dry_run: str) -> None:
    """Give a parser what every command on a config has: its flags, ``--config``, ``--dry-run`` and ``--debug``.

    Args:
        parser: The parser.
        cls: The config.
        dry_run: The help of ``--dry-run``; empty for a command without one.
    """
    parser.add_argument("--config", type=Path, default=None, help="YAML file of options; flags come over it")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_flags(parser, cls)


def refuse_changes(given: Mapping[str, Any], config_file: Path | None, may_change: Sequence[str], what: str) -> None:
    """Make sure that a resume changes nothing that decides the result.

    Args:
        given: The options given beside ``--resume``.
        config_file: The one of ``--config``, if given.
        may_change: The options that may be given.
        what: What is resumed, such as ``run``.

    Raises:
        UserError: Another one is given.
    """
    fixed = sorted(set(given) - set(may_change))
    if config_file is not None or fixed:
        changed = "--config" if config_file is not None else flag_of(fixed[0])
        allowed = ", ".join(map(flag_of, may_change))
        raise UserError(
            f"{changed} cannot be changed when a {what} is resumed (only {allowed} can): start a new {what} for that"
        )


def load_config(cls: type[T], config_file: Path | None, flags: Mapping[str, Any]) -> T:
    """Make a config from a YAML file, if given, and the flags over it.

    Raises:
        ConfigError: Any field or value is wrong; all mistakes are listed.
    """
    given: dict[str, Any] = {}
    if config_file is not None:
        loaded = read_yaml(config_file)
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{config_file} must hold a mapping of option names to values, got {type(loaded).__name__}")
        given.update({str(key).replace("-", "_"): value for key, value in (loaded or {}).items()})
    given.update(flags)
    return build_config(cls, given, source=str(config_file) if config_file else "options")


# Of both kinds of configs, until every stage has the nested one of slm_ray.config.base.


def defaults_of(cls: Any) -> dict[str, Any]:
    """Every option's default by name."""
    if issubclass(cls, base.Config):
        return {name: option.field.get_default() for name, option in base.options_of(cls).items()}
    return {field.name: field.default for field in dataclasses.fields(cls)}


def values_of(config: Any) -> dict[str, Any]:
    """Every option's value by name, as records hold them."""
    return base.flatten(config) if isinstance(config, base.Config) else dataclasses.asdict(config)


def replaced(config: Any, **changes: Any) -> Any:
    """A config in which options have other values."""
    if isinstance(config, base.Config):
        return config.replace(**changes)
    return dataclasses.replace(config, **changes)


def check_config(config: Any, *action: str) -> None:
    """Check a config's options against each other; a nested one did so when it was made.

    Raises:
        UserError: Some do not go together.
    """
    if not isinstance(config, base.Config):
        config.check(*action)
    elif check := getattr(config, "check_given", None):
        check()


def names_in(value: Any) -> list[str]:
    """The names in an option's value: a list, or text with commas between them."""
    parts = value if isinstance(value, (list, tuple)) else str(value or "").split(",")
    return [part.strip() for part in map(str, parts) if part.strip()]
