"""The page that raters open: one HTML file without a network, in which no model is named."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from slm_ray.report.payload import script_json


def _template(name: str) -> str:
    return resources.files("slm_ray.evaluate.rating").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def rating_page(data: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        data: What :meth:`Pairs.page_data` gives.
    """
    style, script = _template("rating.css"), _template("rating.js")
    # Only this script and this style are let in, whatever a model wrote.
    filled = {
        "style": style, "script": script, "style_digest": _digest(style), "script_digest": _digest(script),
        "data": script_json(dict(data)),
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match.group(1)], _template("rating.html"))
