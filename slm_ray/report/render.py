"""Writes reports as an offline page and as Markdown, and cards, from jinja2 templates that escape what they show."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.records.files import cache_folder, write_bytes, write_text
from slm_ray.report.charts import CONFIG, PALETTES, draw_png
from slm_ray.report.content import Report, Table
from slm_ray.report.text import MISSING, script_json

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")
# Figures with their units, errors and ranges: columns of such cells are set right and never broken.
_FIGURE = r"[+−-]?[\d.,]+(?:e[+-]?\d+)?[%×KMGTPE]?"
_NUMERIC = re.compile(rf"{_FIGURE}(?:(?: of | to | ± |–){_FIGURE})*(?: ≈)?(?: (?:B|[KMGT]iB|m?s|kWh|mJ|J))?")
# Names up to this length are not broken, at a hyphen or anywhere; sentences get some width on a narrow screen.
_SHORT, _LONG = 22, 60


def plain(value: object) -> Markup:
    """Text that Markdown shows as it is; what is marked as safe stays."""
    return value if isinstance(value, Markup) else Markup(_SPECIAL.sub(r"\\\1", " ".join(str(value).split())))


def code_block(code: str, language: str = "") -> Markup:
    """A fenced block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{code}\n{fence}")


def _heading(level: int, title: str) -> Markup:
    return Markup("#" * level) + Markup(" ") + plain(title)


def column_classes(table: Table) -> list[str]:
    """How each column is set: ``n`` figures, ``k`` names that are kept whole, ``w`` sentences, or empty."""
    found = []
    for column in range(len(table.header)):
        cells = [row[column] for row in table.rows]
        known, longest = set(cells) - {MISSING}, max(map(len, cells), default=0)
        if known and all(_NUMERIC.fullmatch(cell) for cell in known):
            found.append("n")
        elif longest <= _SHORT and not any("(" in cell for cell in cells):
            found.append("k")
        else:
            found.append("w" if longest > _LONG else "")
    return found


@functools.cache
def _environment(kind: str) -> Environment:
    made = Environment(
        loader=PackageLoader("slm_ray.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=True, finalize=plain if kind == "md" else None,
    )  # fmt: skip
    made.globals |= {"column_classes": column_classes, "code_block": code_block, "heading": _heading, "as_is": Markup}
    return made


def _file(name: str) -> str:
    return resources.files("slm_ray.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def drawing_library() -> str:
    """Vega's JavaScript, which the page carries with it; kept in the cache, as making it takes a second."""
    import vl_convert

    version = metadata.version("vl-convert-python")
    kept = cache_folder() / "report" / f"vega-{vl_convert.get_vega_version()}-{version}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        made = str(vl_convert.javascript_bundle())  # type: ignore[call-arg]
    try:
        write_text(kept, made)
    except UserError:
        pass  # a cache that cannot be written costs a second every time
    return made


def _allowed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def page_of(report: Report) -> str:
    """The report as one HTML file that opens without a network: no outside scripts, styles, fonts or pictures."""
    figures = {one.key: one.picture.page_data() for one in report.figures if one.picture and one.on_page}
    # Only these scripts may run, whatever else ends up in the page.
    scripts = [drawing_library(), _file("page.js")] if figures else [_file("page.js")]
    # Keys are masked in the parts and not in the page as a whole: a changed script would no longer match its digest.
    html = _environment("html").get_template("page.html").render(
        report=report, style=Markup(_file("page.css")), allowed=Markup(" ".join(map(_allowed, scripts))),
    )  # fmt: skip
    data = redact(script_json({"pictures": figures, "palettes": PALETTES, "config": CONFIG}))
    tags = "".join(f"<script>{script}</script>\n" for script in scripts)
    head, tail = redact(html).split("<!--scripts-->")
    return f'{head}<script type="application/json" id="data">{data}</script>\n{tags}{tail}'


def markdown_of(report: Report) -> str:
    """The report as Markdown; its pictures are expected beside it."""
    return redact(render_markdown("report.md", report=report))


def render_markdown(template: str, **fields: Any) -> str:
    """A Markdown template, with no more than one empty line between its parts and every value escaped."""
    text = _environment("md").get_template(template).render(fields)
    parts = re.split(r"(^(`{3,})[^\n]*\n.*?^\2$)", text, flags=re.DOTALL | re.MULTILINE)
    # Code stays as it is: every third part from the second on is a block, and the next one its fence.
    kept = [part if at % 3 == 1 else re.sub(r"\n{3,}", "\n\n", part) for at, part in enumerate(parts) if at % 3 != 2]
    return "".join(kept).strip() + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the report's files, PNGs, ``report.md`` and ``report.html`` into a folder, and return their paths."""
    found: dict[str, str | bytes] = dict(report.files)
    for figure in report.figures:
        if figure.file and figure.picture:
            found[figure.file] = draw_png(figure.picture, figure.title, figure.columns)
    found |= {"report.md": markdown_of(report), "report.html": page_of(report)}
    for name, content in found.items():
        write_bytes(folder / name, content.encode() if isinstance(content, str) else content)
    return [folder / name for name in found]


def model_card(template: str, metadata: Mapping[str, Any], **fields: Any) -> str:
    """A model card: Hugging Face's metadata, and a Markdown template below it."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(**metadata)
    return redact(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{render_markdown(template, **fields)}")))
