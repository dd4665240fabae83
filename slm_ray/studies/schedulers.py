"""Ray Tune's own schedulers on training sweeps: which there are, and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.units import parse_number
from slm_ray.studies.model import Step

# Name to class in ray.tune.schedulers and the settings we pass on.
SCHEDULERS = {
    "asha": ("ASHAScheduler", ("max_t", "grace_period", "reduction_factor", "brackets")),
    "median": ("MedianStoppingRule", ("grace_period", "min_samples_required")),
}
_COUNTS = ("max_t", "grace_period")
TIME, METRIC = "tokens", "loss"  # of evals.jsonl


def check_scheduler(given: Any, steps: Sequence[Step], problems: list[str]) -> Mapping[str, Any]:
    """Read the section ``scheduler``; what is wrong goes to ``problems``."""
    if given is None:
        return {}
    section: dict[str, Any] = (
        {"name": given} if isinstance(given, str) else {str(k).replace("-", "_"): v for k, v in given.items()}
    )
    name = section.get("name")
    if name not in SCHEDULERS:
        problems.append(f"scheduler.name: no scheduler '{name}'; {nearest(str(name), SCHEDULERS)}")
        return {}
    allowed = SCHEDULERS[name][1]
    problems += [f"scheduler.{key}: no such setting of {name}; {nearest(key, allowed)}"
                 for key in section if key not in (*allowed, "name")]  # fmt: skip
    for key in set(_COUNTS) & set(section):
        try:
            section[key] = int(parse_number(str(section[key])))
        except UserError as error:
            problems.append(f"scheduler.{key}: {error}")
    if steps and steps[-1].stage.name != "pretrain":
        problems.append("scheduler: it stops trainings, so the last step must be of stage pretrain")
    return section


def make_scheduler(settings: Mapping[str, Any]) -> Any:
    """Tune's scheduler, on the held-out loss against tokens; None without settings.

    Raises:
        UserError: Tune refuses the settings.
    """
    if not settings:
        return None
    from ray.tune import schedulers

    class_name, allowed = SCHEDULERS[settings["name"]]
    given = {key: value for key, value in settings.items() if key in allowed}
    try:
        return getattr(schedulers, class_name)(time_attr=TIME, metric=METRIC, mode="min", **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"scheduler: Tune's {class_name} refuses its settings: {error}") from error
