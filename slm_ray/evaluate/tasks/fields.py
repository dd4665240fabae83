"""Which fields a task reads from its documents, as far as its templates and functions show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description")
_FUNCTIONS = ("process_docs", "doc_to_text", "doc_to_target", "doc_to_choice", "process_results")
_READ = re.compile(r"""\b(?:doc|x|example|row|line)\[["'](\w+)["']\]""")
_MADE = re.compile(r"""["'](\w+)["']\s*:|\b\w+\[["'](\w+)["']\]\s*=[^=]""")
_NAME = re.compile(r"[A-Za-z_]\w*")


def template_fields(template: Any, fields: frozenset[str] = frozenset()) -> set[str]:
    """The fields that a jinja template uses; a template that is the name of a field stands for that field.

    Args:
        template: Anything; only text is looked into.
        fields: The fields that there are, if known.
    """
    from jinja2 import meta
    from lm_eval.utils import env

    if not isinstance(template, str):
        return set()
    if template in fields or (not fields and _NAME.fullmatch(template)):
        return {template}
    return meta.find_undeclared_variables(env.parse(template))


def expected_fields(config: Mapping[str, Any]) -> list[str]:
    """The fields that a task's documents should have.

    Args:
        config: The task's config, its functions imported.
    """
    used, made = set[str](), set[str]()
    for key in _TEMPLATES:
        used |= template_fields(config.get(key))
    for key in _FUNCTIONS:
        function = config.get(key)
        source = _source(function) if callable(function) else ""
        used |= set(_READ.findall(source))
        if key == "process_docs":
            made = {name for pair in _MADE.findall(source) for name in pair if name} - set(_READ.findall(source))
    return sorted(used - made)


def _source(function: Any) -> str:
    try:
        return inspect.getsource(getattr(function, "func", function))
    except (OSError, TypeError):  # made at run time
        return ""
