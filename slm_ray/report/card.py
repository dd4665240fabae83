"""The model card of a winner: where it comes from, what it scores, how to load it, and its limits."""

from __future__ import annotations

from datetime import UTC, datetime

import yaml

from slm_ray.config.redact import redact
from slm_ray.config.units import format_bytes, format_count
from slm_ray.config.version import VERSION
from slm_ray.records.budget import QUANTITIES
from slm_ray.report.fitted import fitted_perplexity, fitted_tokens, reconstruction_of
from slm_ray.report.markdown import code_block, markdown_table, plain
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.public_name import public_name
from slm_ray.report.records import number
from slm_ray.report.steps import load_code, needs_remote_code
from slm_ray.report.tables import Table, beside, budget_text
from slm_ray.report.wording import (
    MISSING,
    count_text,
    interval_text,
    perplexity_text,
    ratio_text,
    shape_text,
    share_text,
)

_TAGS = ("slm_ray", "pruned", "sub-network", "text-generation")


def _one_line(text: str) -> str:
    """Text without line breaks: a line of dashes would end the front matter."""
    return " ".join(text.split())


def _front_matter(run: RunRecords, base_model: str | None) -> str:
    teacher = run.teacher
    licence = teacher.detail("licence") if teacher else None
    fields: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(_TAGS)}
    # Hugging Face shows "other" for a licence it has no name for; none at all would read as permission.
    fields["license"] = _one_line(str(licence)) if licence else "other"
    name = base_model or (teacher.name if teacher else None)
    if name and not name.startswith(("/", "~", ".")):  # a folder of this machine is no model that others can find
        fields["base_model"] = _one_line(name)
    return f"---\n{yaml.safe_dump(fields, sort_keys=True, allow_unicode=True)}---\n"


def _named(teacher: Model) -> str:
    return f"{public_name(teacher.name)} ({teacher.detail('family')}), digest {teacher.detail('digest')}"


def _lineage(run: RunRecords, model: Model, tokens_digest: str | None) -> Table:
    teacher, corpus = run.teacher, run.corpus
    named = f"{public_name(corpus.get('name'))}, digest {corpus.get('digest')}" if corpus else None
    tokens = [(name, number(corpus.get(f"{name}_tokens"))) for name in ("calibration", "held_out")]
    counted = [f"{count:,.0f} {name.replace('_', '-')}" for name, count in tokens if count is not None]
    facts = [
        ("teacher", _named(teacher) if teacher else None),
        ("teacher's licence", teacher.detail("licence") or "not recorded" if teacher else None),
        ("search space", run.config.get("space")),
        ("budget", budget_text(run)),
        ("candidate", f"trial {model.trial}, digest {model.detail('digest')}"),
        ("text", named),
        ("tokens", ", ".join(counted) or None),
        ("digest of the tokens", tokens_digest),
    ]
    return Table("Lineage", ("what", "which"), tuple((name, str(value)) for name, value in facts if value))


def _sizes(run: RunRecords, model: Model) -> Table:
    teacher = run.teacher
    rows = []
    for quantity, label in QUANTITIES.items():
        mine, whole = model.cost_of(quantity), teacher.cost_of(quantity) if teacher else None
        if mine is not None:
            write = format_bytes if quantity == "kv_bytes" else format_count
            rows.append((label, write(mine), MISSING if whole is None else write(whole), share_text(mine, whole)))
    if model.shape:
        rows.append(("shape", shape_text(model.shape), shape_text(teacher.shape) if teacher else MISSING, MISSING))
    return Table("Sizes", ("quantity", "this model", "teacher", "share"), tuple(rows))


def _perplexities(run: RunRecords, model: Model) -> Table:
    reference = run.teacher.held_out_perplexity if run.teacher else None
    # The baselines are of winner 0's size: beside another winner they would compare unlike things.
    baselines = run.baselines if model is run.best or model.winner == 0 else ()
    fitted = reconstruction_of(model)
    named = [("its sub-network, as it was cut out" if fitted else "this model", model)]
    named += [(f"teacher ({public_name(run.teacher.name)})", run.teacher)] if run.teacher else []
    named += [(beside(run, other), other) for other in baselines]
    rows = []
    if fitted:
        value, stderr = fitted_perplexity(model)
        cells = (perplexity_text(value), interval_text(value, stderr), ratio_text(value, reference))
        rows.append(("this model", count_text(model.params), *cells))
    for name, other in named:
        value, stderr = other.held_out_perplexity, other.held_out_stderr
        ratio = ratio_text(value, reference)
        rows.append((name, count_text(other.params), perplexity_text(value), interval_text(value, stderr), ratio))
    header = ("model", "parameters", "perplexity", "95% interval", "× teacher")
    return Table("Perplexity on held-out text, before any training", header, tuple(rows))


def _limits(run: RunRecords, model: Model) -> str:
    corpus = f" on {plain(public_name(run.corpus.get('name')))}" if run.corpus.get("name") else ""
    whose, cut = "the teacher's", "This model was cut out of its teacher and **not trained afterwards**"
    if run.steps:
        tokens = sum(number(step.get("tokens")) or 0 for step in run.steps)
        whose = "that larger cut's"
        cut = (
            f"This model was cut out of its teacher in {len(run.steps) + 1} steps, each larger cut trained with the "
            f"teacher's help before the next ({tokens:,.0f} tokens in all), and **not trained after the last one**"
        )
    weights = f"its weights are {whose} own"
    if reconstruction_of(model):
        weights = (
            f"its projections were fitted to {whose} layers in closed form (ridge regression on "
            f"{fitted_tokens(model)}{corpus.replace(' on ', ' of ')}), and its other weights are {whose} own"
        )
    return (
        f"{cut}: {weights}. It "
        "is meant as a start for pretraining or distillation, not for use as it is, and it writes worse than its "
        f"teacher. Perplexity was measured{corpus} only; it says little about other text, other languages or tasks. "
        "It shares the teacher's biases and limits, and the teacher's licence applies."
    )


def model_card(
    run: RunRecords,
    winner: Model,
    *,
    remote_code: bool | None = None,
    base_model: str | None = None,
    tokens_digest: str | None = None,
    path: str = "path/to/this/folder",
    date: str | None = None,
) -> str:
    """The README.md of an exported winner.

    Args:
        run: The run's records; :func:`slm_ray.report.records.parse_run` makes them before the files are written.
        winner: The member of ``run.front`` that was exported.
        remote_code: It needs ``trust_remote_code=True`` without slm_ray; by default found from its files or sizes.
        base_model: The teacher's hub id, where it has one; its name by default.
        tokens_digest: The digest of the packed tokens that it was measured on.
        path: The path to show in the loading example.
        date: The day it was made, as ``2026-11-21``; today by default.
    """
    remote = needs_remote_code(run, winner) if remote_code is None else remote_code
    teacher = public_name(run.teacher.name) if run.teacher else "its teacher"
    share = share_text(winner.params, run.teacher.params if run.teacher else None)
    shown_share = "" if share == MISSING else f", {share} of its parameters"
    kind = (
        "Its layers differ in size, which the plain model class cannot express. The folder holds a small modelling "
        "file, so `trust_remote_code=True` loads it anywhere; after `import slm_ray` it loads without that flag."
        if remote
        else "It is saved as its family's own model class and loads anywhere, without extra code."
    )
    packages = run.environment.get("packages")
    version = (packages.get("slm-ray") if isinstance(packages, dict) else None) or VERSION
    lineage, sizes, perplexities = _lineage(run, winner, tokens_digest), _sizes(run, winner), _perplexities(run, winner)
    parts = [
        f"# A sub-network of {plain(teacher)} with {count_text(winner.params)} parameters",
        f"Cut out of {plain(teacher)}{shown_share}, by slm_ray's search.",
        "## How to load it",
        kind,
        code_block(load_code(path, remote), "python"),
        f"## {perplexities.title}",
        markdown_table(perplexities),
        "## Limits",
        _limits(run, winner),
        f"## {sizes.title}",
        markdown_table(sizes),
        f"## {lineage.title}",
        markdown_table(lineage),
        "## How it was made",
        code_block(run.command or "(the command was not recorded)", "sh"),
        f"With slm_ray {version}, on {date or datetime.now(UTC).strftime('%Y-%m-%d')} (UTC).",
    ]
    return redact(_front_matter(run, base_model) + "\n" + "\n\n".join(parts) + "\n")
