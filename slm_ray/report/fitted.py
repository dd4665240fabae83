"""Models whose weights were fitted to the teacher's layers after the search: what that gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm_ray.report.model import Model
from slm_ray.report.records import mapping, number


def reconstruction_of(model: Model) -> Mapping[str, Any]:
    """What the result says of a model's reconstruction; empty where its weights are the teacher's own."""
    found = mapping(model.detail("reconstruction"))
    return found if found.get("kept") else {}


def fitted_perplexity(model: Model) -> tuple[float | None, float | None]:
    """Perplexity on held-out text with fitted weights, and its standard error; None where nothing was fitted."""
    after = mapping(reconstruction_of(model).get("after"))
    value = number(after.get("held_out_perplexity"))
    return value, number(after.get("held_out_stderr")) if value is not None else None


def fitted_tokens(model: Model) -> str:
    """How many tokens its weights were fitted on, in words; empty where they were not."""
    found = reconstruction_of(model)
    tokens, written = number(found.get("tokens")), number(found.get("written_tokens"))
    if tokens is None:
        return ""
    own = f"{written:,.0f} tokens that the teacher wrote and " if written else ""
    return f"{own}{tokens - (written or 0):,.0f} train tokens"
