"""Scales and settings: what comes over what in a sweep file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.yaml_files import plain_yaml
from slm_ray.studies.stages import STAGES, normal_name

_MERGED = ("base", "grid", "vars", "machine", "required")
DEFAULT_SCALE = "tiny"


def choose_scale(loaded: Mapping[str, Any], scale: str | None) -> str:
    """The scale to use: the one asked for, else ``tiny`` where there is one, else none.

    Raises:
        UserError: There is no such scale.
    """
    scales = loaded.get("scales") or {}
    if scale is None:
        return DEFAULT_SCALE if DEFAULT_SCALE in scales else ""
    if scale not in scales:
        if not scales:
            raise UserError(f"--scale {scale}: this sweep has no scales; leave it out")
        raise UserError(f"--scale {scale}: no such scale; {nearest(scale, scales)}")
    return scale


def _normal(values: Any) -> dict[str, Any]:
    return {normal_name(str(key)): value for key, value in (values or {}).items()}


def _over(below: Any, above: Any) -> dict[str, Any]:
    """One mapping over another; null takes an entry away."""
    merged = _normal(below) | _normal(above)
    return {key: value for key, value in merged.items() if value is not None or key not in _normal(above)}


def apply_scale(loaded: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """A file's content with one of its scales over it; null in a scale takes an entry away.

    ``base``, ``grid``, ``vars``, ``machine``, ``stages`` and ``groups`` are put over the file's entry by entry;
    everything else is replaced whole.
    """
    top = copy.deepcopy({key: value for key, value in loaded.items() if key != "scales"})
    over = _normal((loaded.get("scales") or {}).get(scale)) if scale else {}
    for key, value in over.items():
        if key in _MERGED and value is not None:
            top[key] = _over(top.get(key), value)
        elif key == "stages":
            below = dict(top.get(key) or {})
            left_out = [step for step, options in (value or {}).items() if options is None]
            over_steps = {step: _over(below.get(step), options) for step, options in (value or {}).items()}
            top[key] = {step: options for step, options in (below | over_steps).items() if step not in left_out}
        elif key == "groups":
            top[key] = {**(top.get(key) or {}), **(value or {})}
        else:
            top[key] = value
    # A scale without a grid, say, takes it away with null.
    return {key: value for key, value in top.items() if value is not None or key not in over}


def apply_settings(top: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``field=value`` over everything: over the base of every step that has the option, and instead of its grid.

    Raises:
        UserError: No step has such an option.
    """
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {text} must be like --set data=FILE or --set pretrain.tokens=20k")
        try:
            _set(top, name.strip(), plain_yaml(value))
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: the value is not valid YAML") from error
    return top


def _set(top: dict[str, Any], name: str, value: Any) -> None:
    if name in (top.get("vars") or {}):
        top["vars"][name] = value
        _drop(top, {name})
        return
    section, _, rest = name.partition(".")
    if section in ("grid", "search", "machine") and rest:
        top[section] = {**(top.get(section) or {}), rest: value}
        return
    stages = top.get("stages")
    if stages is None:
        top["base"] = {**_normal(top.get("base")), normal_name(name): value}
        _drop(top, {normal_name(name)})
        return
    steps, field = ([section], rest) if rest and section in stages else (list(stages), name)
    field, found = normal_name(field), []
    for step in steps:
        stage = STAGES.get(str((stages[step] or {}).get("stage", step)))
        if stage is not None and field in stage.field_names():
            stages[step] = {**_normal(stages[step]), field: value}
            found.append(f"{step}.{field}")
    if not found:
        raise UserError(f"--set {name}: no step has this option; the steps are {', '.join(stages)}")
    _drop(top, set(found))


def _drop(top: dict[str, Any], names: set[str]) -> None:
    """A value that is set is varied no more."""
    for section in (top, *(group for group in (top.get("groups") or {}).values() if group)):
        for key in ("grid", "zip"):
            if isinstance(section.get(key), Mapping):
                kept = {name: value for name, value in section[key].items() if normal_name(str(name)) not in names}
                if len(kept) < len(section[key]):
                    section[key] = kept
                    if not kept:
                        del section[key]
