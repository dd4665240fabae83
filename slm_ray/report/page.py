"""A report as one HTML file that opens without a network: no outside scripts, styles, fonts or pictures."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from slm_ray.config.redact import redact
from slm_ray.report.blocks import Chapter, Report, Section
from slm_ray.report.html import escape
from slm_ray.report.markdown import plain
from slm_ray.report.payload import script_json

# One script for every kind of page: a picture is drawn by the function of its kind.
SCRIPTS = (
    "base.js", "points.js", "front.js", "shape.js", "progress.js", "curves.js", "intervals.js", "scatter.js", "main.js",
)  # fmt: skip


def _template(name: str) -> str:
    return resources.files("slm_ray.report").joinpath("templates", name).read_text(encoding="utf-8")


def render_page(template: str, scripts: Sequence[str], fields: Mapping[str, str], data: Any) -> str:
    """Fill a page's template.

    Args:
        template: Its file.
        scripts: Files of the one script that may run in it.
        fields: Placeholder to HTML.
        data: What the script draws, JSON-like.
    """
    script = "\n".join(_template(name) for name in scripts)
    # Only this script may run, whatever else ends up in the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Keys are masked in the parts and not in the page as a whole: a changed script would no longer match its digest.
    filled = {name: redact(text) for name, text in fields.items()}
    filled |= {"style": _template("page.css"), "script": script, "script_digest": digest}
    filled["data"] = redact(script_json(data))
    # One pass, so that a field's text is never taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match.group(1)], _template(template))


def _section_html(section: Section, heading: int) -> str:
    body = "".join(block.html(heading + 1) for block in section.blocks)
    if not body:
        return ""
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    return f"<section><h{heading}>{escape(section.title)}</h{heading}>{lead}{body}</section>"


def _chapter_html(chapter: Chapter) -> str:
    heading = 3 if chapter.title else 2
    notes = "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in chapter.notes)
    facts = f'<p class="facts">{escape(chapter.facts)}</p>' if chapter.facts and chapter.title else ""
    headline = f'<p class="headline">{escape(chapter.headline)}</p>' if chapter.headline else ""
    sections = "".join(_section_html(section, heading) for section in chapter.sections)
    body = f"{facts}{notes}{headline}{chapter.tiles}"
    if not chapter.title:
        return body + sections
    title, at = f"<h2>{escape(chapter.title)}</h2>", escape(chapter.anchor)
    if chapter.folded:
        return f'<details class="chapter" id="{at}"><summary>{title}</summary>{body}{sections}</details>'
    return f'<div class="chapter" id="{at}">{title}{body}{sections}</div>'


def _contents(report: Report) -> str:
    items = [
        f'<li><a href="#{escape(chapter.anchor)}">{escape(chapter.title)}</a></li>'
        for chapter in report.chapters
        if chapter.title
    ]
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>' if items else ""


def page_of(report: Report) -> str:
    """The whole report as the text of a page."""
    first = report.chapters[0]
    figures = {
        key: value
        for chapter in report.chapters
        for section in chapter.sections
        for block in section.blocks
        for key, value in block.figures().items()
    }
    picture = f", and {report.picture} shows what they show" if report.picture else ""
    fields = {
        "title": escape(report.title), "kind": escape(report.kind), "picture": escape(picture),
        "facts": escape("" if first.title else first.facts), "contents": _contents(report),
        "body": "".join(map(_chapter_html, report.chapters)),
    }  # fmt: skip
    return render_page("page.html", SCRIPTS, fields, figures)


def _chapter_markdown(chapter: Chapter) -> list[str]:
    heading = 3 if chapter.title else 2
    parts = [f"## {plain(chapter.title)}"] if chapter.title else []
    parts += [plain(chapter.facts)] if chapter.facts and chapter.title else []
    parts += [f"> **Note:** {plain(note)}" for note in chapter.notes]
    parts += [plain(chapter.headline)] if chapter.headline else []
    for section in chapter.sections:
        inner = [text for block in section.blocks if (text := block.markdown(heading + 1))]
        if inner:
            lead = [plain(section.lead)] if section.lead else []
            parts += [f"{'#' * heading} {plain(section.title)}", *lead, *inner]
    return parts


def markdown_of(report: Report) -> str:
    """The whole report as Markdown; its pictures are expected beside it."""
    parts = [f"# {plain(report.title)}"]
    for chapter in report.chapters:
        parts += _chapter_markdown(chapter)
    return redact("\n\n".join(parts) + "\n")
