"""The equivalent W&B sweep file of one of ours."""

from __future__ import annotations

from typing import Any

import yaml

from slm_ray.config.errors import UserError
from slm_ray.studies.model import Range, SweepFile

_METHODS = {"stratified": "random", "random": "random"}


def wandb_sweep(sweep: SweepFile) -> str:
    """The YAML that ``wandb sweep`` takes: agents then run the stage's own command.

    W&B knows products of values, and ranges to draw from; no steps, no zipped lists and no fixed number of tries.

    Raises:
        UserError: The sweep has more than that.
    """
    if not sweep.is_single:
        raise UserError("a W&B sweep runs one command, and this sweep has several steps: run it with slm-ray sweep")
    if len(sweep.groups) != 1 or any(len(one) > 1 for axis in sweep.groups[0].axes for one in axis):
        raise UserError(
            "a W&B sweep is a product of values, and this one has groups, zip or points: give it a grid only"
        )
    if sweep.search is not None and (sweep.search.algorithm not in _METHODS or sweep.search.by):
        raise UserError("a W&B sweep cannot have nsga2, or ranges that depend on another option: leave them out")
    (step,) = sweep.steps
    variables = sweep.variables
    parameters: dict[str, Any] = {}
    for name, value in step.options.items():
        given = variables.get(str(value)[2:-1], value) if str(value).startswith("${") else value
        parameters[_flag(name)] = {"value": given}
    for axis in sweep.groups[0].axes:
        (name,) = axis[0]
        parameters[_flag(sweep.shown(name))] = {"values": [one[name] for one in axis]}
    method = "grid"
    if sweep.search is not None:
        method = _METHODS[sweep.search.algorithm]
        for name, spans in sweep.search.ranges.items():
            parameters[_flag(sweep.shown(name))] = _distribution(spans[""])
    content = {
        "name": sweep.name, "description": sweep.about or None, "method": method,
        "metric": {"name": "eval/loss", "goal": "minimize"}, "parameters": parameters,
        # Flags without a value for what is true, and nothing for what is false: as our commands take them.
        "command": ["${env}", "python", "-m", f"slm_ray.{step.stage.name}", "--tracker=wandb",
                    "${args_no_boolean_flags}"],
    }  # fmt: skip
    return yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _distribution(span: Range) -> dict[str, Any]:
    if span.choices:
        return {"values": list(span.choices)}
    if span.whole:
        return {"distribution": "int_uniform", "min": int(span.low), "max": int(span.high)}
    return {"distribution": "log_uniform_values" if span.log else "uniform", "min": span.low, "max": span.high}
