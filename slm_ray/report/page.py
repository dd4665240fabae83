"""The report as one HTML file that opens without a network: no outside scripts, styles, fonts or pictures."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from slm_ray.core.redact import redact
from slm_ray.core.units import format_seconds
from slm_ray.report.html import code, escape, html_table, section, tile
from slm_ray.report.markdown import environment_table, headline, next_steps
from slm_ray.report.model import RunRecords
from slm_ray.report.payload import page_data, script_json
from slm_ray.report.tables import (
    baseline_table,
    best_name,
    budget_text,
    candidates_text,
    comparisons,
    cost_table,
    front_table,
    phases,
    teacher_perplexity,
    verdict,
)
from slm_ray.report.wording import count_text, perplexity_text, ratio_text, share_text

_SCRIPTS = ("base.js", "points.js", "front.js", "shape.js", "progress.js", "main.js")
_PHASE_COLORS = 6


def _template(name: str) -> str:
    return resources.files("slm_ray.report").joinpath("templates", name).read_text(encoding="utf-8")


def _tiles(run: RunRecords) -> str:
    best, teacher = run.best, run.teacher
    if best is None:
        return ""
    share = f", {share_text(best.params, teacher.params)} of {teacher.name}" if teacher and teacher.params else ""
    tiles = [tile("Size", count_text(best.params), f"parameters{share}")]
    text = "calibration" if best.held_out_perplexity is None else "held-out"
    reference = teacher_perplexity(run, best)
    ratio = (
        ""
        if reference is None
        else f", {ratio_text(best.perplexity, reference)} the teacher's {perplexity_text(reference)}"
    )
    tiles.append(
        tile("Perplexity", perplexity_text(best.perplexity, best.stderr), f"{text} text, before training{ratio}")
    )
    nearest = min((item for item in comparisons(run) if item.ratio), key=lambda item: item.ratio or 0, default=None)
    if nearest:
        value = perplexity_text(nearest.model.held_out_perplexity)
        than = "" if nearest.is_clear is False else f" than {best_name(run)}"
        tiles.append(tile("Best baseline", value, f"{nearest.model.name}: {verdict(nearest)}{than}"))
    tiles.append(tile("Front", str(len(run.front)), f"models out of {candidates_text(run).split(' (')[0]}"))
    if seconds := sum(value for _, value in phases(run)):
        tiles.append(tile("Time", format_seconds(seconds), "from the first phase to the last"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _dots(run: RunRecords) -> str:
    """Held-out perplexities on one logarithmic line each, to see at a glance what is close to what."""
    shown = [(best_name(run), "best", run.best), ("teacher", "teacher", run.teacher)]
    shown += [(model.name, "base", model) for model in run.baselines]
    rows = [(name, kind, m.held_out_perplexity) for name, kind, m in shown if m is not None and m.held_out_perplexity]
    if len(rows) < 2:
        return ""
    low = math.log10(min(value for _, _, value in rows if value) * 0.9)
    high = math.log10(max(value for _, _, value in rows if value))
    items = []
    for name, kind, value in sorted(rows, key=lambda row: row[2] or 0):
        at = 100 * (math.log10(value or 1) - low) / (high - low)
        track = f'<span class="track"><i style="width:{at:.2f}%"></i><b style="left:{at:.2f}%"></b></span>'
        figure = f'<span class="value">{perplexity_text(value)}</span>'
        items.append(f'<div class="dot {kind}"><span class="name">{escape(name)}</span>{track}{figure}</div>')
    return f'<div class="dots" aria-hidden="true">{"".join(items)}</div>'


def _time_bar(run: RunRecords) -> str:
    spent = [(name, seconds) for name, seconds in phases(run) if seconds > 0]
    whole = sum(seconds for _, seconds in spent)
    if not whole:
        return ""
    parts = [
        f'<i class="p{index % _PHASE_COLORS}" style="flex-grow:{seconds / whole:.4f}"></i>'
        for index, (_, seconds) in enumerate(spent)
    ]
    keys = [
        f'<li><i class="p{index % _PHASE_COLORS}"></i>{escape(name)} {format_seconds(seconds)}</li>'
        for index, (name, seconds) in enumerate(spent)
    ]
    return f'<div class="bar" aria-hidden="true">{"".join(parts)}</div><ul class="keys">{"".join(keys)}</ul>'


def _reproduce(run: RunRecords) -> str:
    blocks = [code(run.command)] if run.command else ["<p>The command is recorded when a run finishes.</p>"]
    for title, text in next_steps(run):
        blocks.append(f"<h3>{escape(title)}</h3>{code(text)}")
    return "".join(blocks)


def _details(run: RunRecords) -> str:
    config = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    environment = environment_table(run)
    shown = html_table(environment) if environment.rows else "<p>Not recorded.</p>"
    return (
        f"<details><summary>Environment</summary>{shown}</details>"
        f"<details><summary>Config</summary>{code(config)}</details>"
    )


def _parts(run: RunRecords) -> dict[str, str]:
    front = front_table(run)
    winners = [index for index, model in enumerate(reversed(run.front)) if model.winner is not None]
    title = f"Sub-networks of {run.teacher.name}" if run.teacher else "Search for sub-networks"
    facts = [
        f"space {run.config['space']}" if run.config.get("space") else "",
        budget_text(run) or "",
        candidates_text(run),
    ]
    has_others = run.baselines or (run.best and run.teacher)
    comparison = _dots(run) + html_table(baseline_table(run)) if has_others else ""
    return {
        "title": escape(title),
        "facts": escape(" · ".join(fact for fact in facts if fact)),
        "headline": escape(headline(run)),
        "notes": "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in run.notes),
        "tiles": _tiles(run),
        "comparison": section(
            "Against the teacher and the baselines",
            comparison,
            lead="Perplexity on the same held-out text, before any training, on a logarithmic line. ± is one standard "
            "error; a difference smaller than the 95% interval is called noise.",
        ),
        "front_table": section("The front as a table", html_table(front, marked=winners) if front.rows else ""),
        "cost": section("What was spent", _time_bar(run) + html_table(cost_table(run))),
        "reproduce": section("Reproduce it, and what to do next", _reproduce(run)),
        "details": section("What it ran on", _details(run)),
    }


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


def report_page(run: RunRecords) -> str:
    """The whole page as text."""
    return render_page("page.html", _SCRIPTS, _parts(run), page_data(run))
