"""A sweep file: what it says, and what comes over what in it (scales, settings)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

from slm_ray.config.base import Config, option
from slm_ray.config.errors import UserError, nearest
from slm_ray.config.units import parse_number
from slm_ray.config.yaml_files import plain_yaml
from slm_ray.studies.plan_search import SearchPlan
from slm_ray.studies.stages import STAGES, Stage, normal_name

# A varied thing is written "step.option", or "$name" for a variable.
Values = dict[str, Any]


# NVIDIA's data sheet: 312 TFLOP/s dense bf16, 80 GB. Model FLOPs utilisation of 0.4 is what small models reach with
# data parallelism; 2 dollars an hour is a usual price on demand. A dry run states them all, and they are options.
GPU_NAME, GPU_FLOPS, GPU_MFU, GPU_PRICE, GPU_MEMORY = "A100 80GB (bf16)", 312e12, 0.4, 2.0, 80e9
Number = Annotated[float, BeforeValidator(lambda value: parse_number(str(value)))]


class MachineSection(Config):
    """The machine that costs are stated for."""

    name: str | None = option(None, "what it is called")
    device_flops: Number = option(GPU_FLOPS, "FLOP/s of a device", gt=0)
    mfu: Number = option(GPU_MFU, "the share of them that is reached", gt=0, le=1)
    price_per_hour: Number = option(GPU_PRICE, "dollars an hour of a device", ge=0)
    memory: Number = option(GPU_MEMORY, "bytes of a device", gt=0)


@dataclass(frozen=True)
class Step:
    """One stage of every point."""

    name: str  # What other steps call it in ``${name}``
    stage: Stage  # The stage
    options: Mapping[str, Any]  # Its options, those that nothing varies


@dataclass(frozen=True)
class Group:
    """Points that are made in one way."""

    name: str  # Its name; empty where a file has no groups
    fixed: Values  # What all of its points share
    axes: tuple[tuple[Values, ...], ...]  # Their product gives the points; an axis is a list of alternatives
    without: tuple[str, ...] = ()  # Steps that its points do not have


@dataclass(frozen=True)
class SweepFile:
    """A sweep at one scale."""

    name: str  # Its name
    about: str  # What it is for
    scale: str  # ``tiny``, ``paper``, …; empty where the file has no scales
    steps: tuple[Step, ...]  # The stages of every point, in order
    variables: Mapping[str, Any]  # Names that options refer to as ``${name}``, with their values
    groups: tuple[Group, ...]  # How the points are made
    search: SearchPlan | None  # What is searched besides; None where nothing is
    scheduler: Mapping[str, Any]  # Tune's scheduler and its settings; empty without one
    plots: tuple[Mapping[str, Any], ...]  # What to draw at the end
    machine: Mapping[str, Any]  # The machine that costs are stated for
    is_single: bool  # One step whose options are written without its name

    def shown(self, varied: str) -> str:
        """How a varied thing is called in tables: as the user writes it."""
        if varied.startswith("$"):
            return varied[1:]
        return varied.partition(".")[2] if self.is_single else varied

    def step(self, name: str) -> Step:
        """A step by its name."""
        return next(step for step in self.steps if step.name == name)


_MERGED = ("base", "grid", "vars", "machine", "required")
DEFAULT_SCALE = "tiny"


def choose_scale(loaded: Mapping[str, Any], scale: str | None) -> str:
    """The scale to use: the one asked for, else ``tiny`` where there is one, else none."""
    scales = loaded.get("scales") or {}
    if scale is None:
        return DEFAULT_SCALE if DEFAULT_SCALE in scales else ""
    if scale not in scales:
        if not scales:
            raise UserError(f"--scale {scale}: this sweep has no scales; leave it out")
        raise UserError(f"--scale {scale}: no such scale; {nearest(scale, scales)}")
    return scale


def normal(values: Any) -> dict[str, Any]:
    """A mapping by option name; nothing is an empty one."""
    return {normal_name(str(key)): value for key, value in (values or {}).items()}


def _over(below: Any, above: Any) -> dict[str, Any]:
    """One mapping over another; null takes an entry away."""
    merged = normal(below) | normal(above)
    return {key: value for key, value in merged.items() if value is not None or key not in normal(above)}


def apply_scale(loaded: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """A file's content with one of its scales over it; null in a scale takes an entry away.

    ``base``, ``grid``, ``vars``, ``machine``, ``stages`` and ``groups`` are put over the file's entry by entry;
    everything else is replaced whole.
    """
    top = copy.deepcopy({key: value for key, value in loaded.items() if key != "scales"})
    over = normal((loaded.get("scales") or {}).get(scale)) if scale else {}
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
    """``field=value`` over everything: over the base of every step that has the option, and instead of its grid."""
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
        top["base"] = {**normal(top.get("base")), normal_name(name): value}
        _drop(top, {normal_name(name)})
        return
    steps, field = ([section], rest) if rest and section in stages else (list(stages), name)
    field, found = normal_name(field), []
    for step in steps:
        stage = STAGES.get(str((stages[step] or {}).get("stage", step)))
        if stage is not None and field in stage.names():
            stages[step] = {**normal(stages[step]), field: value}
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
