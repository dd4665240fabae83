"""What tests look for in a page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "input", "link"}


class Outline(HTMLParser):
    """Collects tags and fails on one that is closed without being open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.links: list[Any] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def outline(page: str) -> Outline:
    """The tags of a page that is whole, runs its own scripts only, and asks nothing of a network."""
    parser = Outline()
    parser.feed(re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", page, flags=re.DOTALL))
    assert parser.open == []
    allowed = re.search(r"script-src ([^;]+);", page).group(1)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts(page)]
    assert allowed.split() == [f"'sha256-{digest}'" for digest in digests]
    assert page.count("<script") - sum(text.count("<script") for text in scripts(page)) == len(digests) + 1
    names = [tag for tag, _ in parser.tags]
    assert names.count("caption") == names.count("table") and ("html", {"lang": "en"}) in parser.tags
    assert all("scope" in attrs for tag, attrs in parser.tags if tag == "th")
    assert all(attrs.get("aria-label") for _, attrs in parser.tags if attrs.get("role") in ("region", "group"))
    assert "img" not in names and not any(str(link).startswith(("http", "//")) for link in parser.links)
    return parser


def pictures(page: str) -> dict[str, Any]:
    """The specifications of a page's pictures, by name."""
    found = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))["pictures"]
    for picture in found.values():
        for view in picture["views"]:
            view["datasets"] = {name: picture["rows"][key] for name, key in view["datasets"].items()}
    return {name: picture["views"] for name, picture in found.items()}


def rows_of(spec: dict[str, Any], name: str = "rows") -> list[dict[str, Any]]:
    return spec["datasets"][name]
