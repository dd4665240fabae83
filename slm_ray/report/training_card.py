"""The model card of a trained model, made from the lineage that lies beside it (``slm_ray.json``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml

from slm_ray.config.redact import redact
from slm_ray.config.units import format_count, format_seconds
from slm_ray.config.version import VERSION
from slm_ray.report.markdown import code_block, markdown_table, plain
from slm_ray.report.matching import format_flops
from slm_ray.report.public_name import public_name
from slm_ray.report.records import mapping, number
from slm_ray.report.steps import load_code
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING, NORMAL_95, count_text, perplexity_text

# How a model loads that needs its modelling file, or does not.
KINDS = {
    True: "Its layers are not those of the plain model class. The folder holds a small modelling file, so "
    "`trust_remote_code=True` loads it anywhere; after `import slm_ray` it loads without that flag.",
    False: "It is saved as its family's own model class and loads anywhere, without extra code.",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ["slm_ray", "text-generation"]
_STARTS = {
    "student": "the student's own weights", "random": "random weights, in the student's sizes",
    "scratch": "random weights",
    "first-n": "the teacher's first layers", "random-subnet": "a random sub-network of the teacher",
    "grown": "the stage before it, with the next layers of its source on top",
}  # fmt: skip


def _teacher(lineage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whose licence applies: the one it was cut from, else the one it was distilled from."""
    training = mapping(lineage.get("training"))
    return mapping(lineage.get("teacher")) or mapping(training.get("distilled_from"))


def card_front_matter(teacher: Mapping[str, Any], tags: Sequence[str]) -> str:
    """The metadata of a card.

    Args:
        teacher: Whose licence applies; empty where nobody is known.
        tags: Words to find the model by.
    """
    licence = str(teacher.get("licence") or "")
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(tags)}
    # Hugging Face shows "other" for a licence it has no name for; none at all would read as permission.
    fields["license"] = " ".join(licence.split()) if licence and licence != "unknown" else "other"
    if _HUB_ID.fullmatch(str(teacher.get("name"))):
        fields["base_model"] = str(teacher["name"])
    return f"---\n{yaml.safe_dump(fields, sort_keys=True, allow_unicode=True)}---\n"


def facts(title: str, rows: Sequence[tuple[str, Any]]) -> Table:
    """A table of what is known; the rest is left out."""
    kept = tuple((name, str(value)) for name, value in rows if value not in (None, ""))
    return Table(title, ("what", "which"), kept)


def _named(who: Mapping[str, Any]) -> str | None:
    if not who:
        return None
    family = f" ({who['family']})" if who.get("family") else ""
    return f"{public_name(who.get('name'))}{family}, digest {who.get('digest')}"


def _vocabulary(found: Mapping[str, Any]) -> str | None:
    return f"{found.get('new_tokens')} tokens added, of {public_name(found.get('corpus'))}" if found else None


def _lineage_table(lineage: Mapping[str, Any]) -> Table:
    training, space = mapping(lineage.get("training")), lineage.get("space")
    data, teacher = mapping(training.get("data")), _teacher(lineage)
    named = mapping(space).get("name") or space
    searched = f"trial {lineage['trial']}{f', space {named}' if named else ''}" if "trial" in lineage else None
    corpus = f"{public_name(data.get('corpus'))}, digest {data.get('corpus_digest') or 'not known'}" if data else None
    return facts("Lineage", (
        ("student", training.get("student")),
        ("started from", _STARTS.get(str(training.get("start")), training.get("start"))),
        ("vocabulary", _vocabulary(mapping(lineage.get("vocabulary")))),
        ("grown from", training.get("grown_from")),
        ("found by a search", searched),
        ("cut from", _named(mapping(lineage.get("teacher")))),
        ("distilled from", _named(mapping(training.get("distilled_from"))) or "no teacher"),
        ("teacher's licence", (teacher.get("licence") or "not recorded") if teacher else None),
        ("text", corpus),
        ("training tokens, digest", data.get("training_tokens")),
        ("held-out tokens, digest", data.get("held_out_tokens")),
        ("tokenizer, digest", data.get("tokenizer")),
        ("logit store, digest", data.get("logit_store")),
    ))  # fmt: skip


def _budget_table(lineage: Mapping[str, Any]) -> Table:
    training = mapping(lineage.get("training"))
    flops, data = mapping(training.get("flops")), mapping(training.get("data"))
    seconds, tokens, joules = (number(training.get(name)) for name in ("seconds", "tokens", "joules"))
    search, different = number(training.get("search_flops")), number(data.get("different_tokens"))
    parts = [number(flops.get(name)) for name in ("own", "teacher", "capture")]
    earlier = mapping(training.get("earlier"))
    before = number(earlier.get("flops"))
    whole = sum(part or 0.0 for part in (*parts, search, before))
    return facts("Budget", (
        ("parameters", count_text(number(training.get("params")))),
        ("training tokens", f"{tokens:,.0f}" if tokens is not None else None),
        ("of them different", format_count(different) if different is not None else None),
        ("optimiser steps", training.get("step")),
        *((f"FLOPs, {name}", format_flops(value)) for name, value in
          zip(("its own", "the teacher's", "capture of logits"), parts, strict=True) if value),
        ("trained before, as", ", ".join(map(str, earlier.get("names") or ()))),
        ("tokens of that", format_count(earlier["tokens"]) if earlier.get("tokens") else None),
        ("FLOPs of that", format_flops(before) if before else None),
        ("FLOPs, the search's", "not known" if search is None else format_flops(search) if search else None),
        ("FLOPs in all", format_flops(whole) if whole else None),
        ("energy", f"{joules / 3.6e6:.3g} kWh" if joules is not None else None),
        ("time in steps", format_seconds(seconds) if seconds is not None else None),
    ))  # fmt: skip


def _settings_table(lineage: Mapping[str, Any]) -> Table:
    training = mapping(lineage.get("training"))
    settings = {**mapping(training.get("distillation")), **mapping(training.get("optimisation"))}
    if settings.get("distill") == "none":
        settings = {name: value for name, value in settings.items() if name not in
                    ("loss", "temperature", "kd_weight", "kd_schedule")}  # fmt: skip
    return facts("Settings", [(name.replace("_", " "), value) for name, value in settings.items()])


def _loss_row(when: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    loss, stderr, bits = (number(found.get(name)) for name in ("loss", "stderr", "bits_per_byte"))
    if loss is None:
        return (when, *[MISSING] * 5)
    low, high = (loss - NORMAL_95 * stderr, loss + NORMAL_95 * stderr) if stderr is not None else (None, None)
    known = low is not None and high is not None
    return (
        when, f"{loss:.4f}", f"{low:.4f} to {high:.4f}" if known else MISSING, perplexity_text(_exp(loss)),
        f"{perplexity_text(_exp(low))} to {perplexity_text(_exp(high))}" if known else MISSING,  # type: ignore[arg-type]
        MISSING if bits is None else f"{bits:.3f}",
    )  # fmt: skip


def _exp(loss: float) -> float | None:
    return math.exp(loss) if loss < 300 else None


def _metrics_table(lineage: Mapping[str, Any]) -> Table:
    training = mapping(lineage.get("training"))
    rows = [_loss_row(when, mapping(training.get(key))) for when, key in
            (("before training", "before"), ("after training", "after")) if training.get(key)]  # fmt: skip
    tokens = number(mapping(training.get("after")).get("eval_tokens"))
    title = "On held-out text" + (f" ({tokens:,.0f} tokens)" if tokens else "")
    header = ("when", "loss", "95% interval", "perplexity", "95% interval of it", "bits per byte")
    return Table(title, header, tuple(rows))


def _limits(lineage: Mapping[str, Any]) -> str:
    training, teacher = mapping(lineage.get("training")), _teacher(lineage)
    data = mapping(training.get("data"))
    corpus = f" of {plain(public_name(data['corpus']))}" if data.get("corpus") else ""
    tokens = number(training.get("tokens"))
    read = f"It was trained on {format_count(tokens)} tokens{corpus}, " if tokens else "It was trained, "
    text = (
        f"{read}and measured on held-out text of the same corpus only: the figures say little about other text, other "
        "languages or tasks. It was not aligned or tested for safety; what it writes may be wrong or harmful."
    )
    if teacher:
        text += " It shares the biases and limits of its teacher, and the teacher's licence applies."
    return text


def training_card(
    lineage: Mapping[str, Any], *, remote_code: bool, path: str = "path/to/this/folder", date: str | None = None
) -> str:
    """The README.md of a trained model.

    Args:
        lineage: What ``slm_ray.json`` says, with its ``training``.
        remote_code: It needs ``trust_remote_code=True`` where slm_ray is not installed.
        path: The path to show in the loading example.
        date: The day it was made, as ``2026-11-21``; today by default.
    """
    training = mapping(lineage.get("training"))
    teacher = mapping(training.get("distilled_from"))
    helped = f", with the help of {plain(public_name(teacher['name']))}" if teacher else ""
    size = count_text(number(training.get("params")))
    tables = [_metrics_table(lineage), _budget_table(lineage), _lineage_table(lineage), _settings_table(lineage)]
    shown = [part for table in tables if table.rows for part in (f"## {table.title}", markdown_table(table))]
    parts = [
        f"# {plain(str(training.get('name')))}, {size} parameters",
        f"A language model trained by slm_ray{helped}.",
        "## How to load it",
        KINDS[remote_code],
        code_block(load_code(path, remote_code), "python"),
        *shown,
        "## Limits",
        _limits(lineage),
        "## How it was made",
        code_block(str(training.get("command") or "(the command was not recorded)"), "sh"),
        f"With slm_ray {training.get('slm_ray') or VERSION}, on "
        f"{date or datetime.now(UTC).strftime('%Y-%m-%d')} (UTC).",
    ]
    tags = _TAGS + (["distillation"] if teacher else [])
    return redact(card_front_matter(_teacher(lineage), tags) + "\n" + "\n\n".join(parts) + "\n")
