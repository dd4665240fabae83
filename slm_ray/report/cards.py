"""Model cards of what slm_ray exports: winners of a search, trained models, models with new tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.config.version import VERSION
from slm_ray.records.budget import QUANTITIES
from slm_ray.records.data import ExtendedVocabulary
from slm_ray.records.lineage import Lineage
from slm_ray.records.search import RUINED_RATIO, FrontMember, Perplexities
from slm_ray.records.training import TeacherSource, TrainEvaluation, TrainingLineage
from slm_ray.report.content import Table, facts_table
from slm_ray.report.render import model_card
from slm_ray.report.search import SearchRun, beside, budget_text, fitted_on
from slm_ray.report.text import (
    MISSING,
    NORMAL_95,
    count_text,
    energy_text,
    fixed,
    flops_text,
    interval_text,
    load_code,
    perplexity_of,
    perplexity_text,
    public_name,
    ratio_text,
    shape_text,
    share_text,
)

_PLAIN_CLASS = "It is saved as its family's own model class and loads anywhere, without extra code."
_MODELLING_FILE = (
    "The folder holds a small modelling file, so `trust_remote_code=True` loads it anywhere; after `import slm_ray` it "
    "loads without that flag."
)
_LAYERS_DIFFER = (
    "Its layers differ in size, which the plain model class cannot express. {} Sizes that differ from layer to layer "
    "are in `config.per_layer_config`: transformers raises an error where code reads `config.num_attention_heads` and "
    "the like of the model as a whole."
)
_UNEVEN = (
    "Its layers have the same sizes, but its width is not the product of heads and head width that the plain model "
    "class takes for granted. {}"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_STARTS = {
    "student": "the student's own weights", "random": "random weights, in the student's sizes",
    "scratch": "random weights", "first-n": "the teacher's first layers",
    "random-subnet": "a random sub-network of the teacher",
    "grown": "the stage before it, with the next layers of its source on top",
}  # fmt: skip


def kind_text(remote_code: bool, uniform: bool | None = None) -> str:
    """How a model loads, and why it needs a modelling file where it does.

    ``uniform``: Its layers have the same sizes; None where that is not known.
    """
    if not remote_code:
        return _PLAIN_CLASS
    if uniform is None:
        return f"Its sizes are not those of the plain model class. {_MODELLING_FILE}"
    return (_UNEVEN if uniform else _LAYERS_DIFFER).format(_MODELLING_FILE)


def _metadata(licence: str | None, base_model: str | None, *tags: str) -> dict[str, Any]:
    # Hugging Face shows "other" for a licence it has no name for; none at all would read as permission.
    known = " ".join(licence.split()) if licence and licence != "unknown" else "other"
    fields = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": known}
    found: dict[str, Any] = {**fields, "tags": ["slm_ray", "text-generation", *tags]}
    # A folder of this machine is no model that others can find; a line break would end the metadata.
    if base_model and not base_model.startswith(("/", "~", ".")):
        found["base_model"] = " ".join(base_model.split())
    return found


def _day(date: str | None) -> str:
    return date or datetime.now(UTC).strftime("%Y-%m-%d")


def _named(teacher: TeacherSource | None) -> str | None:
    if teacher is None:
        return None
    family = f" ({teacher.family})" if teacher.family else ""
    return f"{public_name(teacher.name)}{family}, digest {teacher.digest}"


def winner_card(
    run: SearchRun, winner: FrontMember, *, remote_code: bool, base_model: str | None = None,
    path: str = "path/to/this/folder", date: str | None = None,
) -> str:  # fmt: skip
    """The README.md of an exported winner.

    ``base_model``: The teacher's hub id, where it has one; its name by default. ``date``: The day it was made, as
    ``2026-11-21``; today by default.
    """
    if run.result is None:
        raise ValueError("a winner's card needs the search's result")
    teacher, corpus, exported = run.result.teacher, run.result.corpus, run.winner_of(winner)
    weights = [("weights", f"{format_bytes(exported.num_bytes)}, {exported.dtype}")] if exported else []
    budget = f"{budget_text(run)}"
    lineage = facts_table("Lineage", [
        ("teacher", f"{public_name(teacher.name)} ({teacher.family}), digest {teacher.digest}"),
        ("teacher's licence", teacher.licence or "not recorded"), ("search space", run.options.get("space")),
        ("budget", budget), ("candidate", f"trial {winner.trial}, digest {winner.digest}"),
        ("text", f"{public_name(corpus.name)}, digest {corpus.digest}"),
        ("tokens", f"{corpus.calibration_tokens:,} calibration, {corpus.held_out_tokens:,} held-out"),
        ("digest of the calibration tokens", corpus.calibration_digest),
        ("FLOPs of the search", flops_text(run.result.spent.flops)),
    ])  # fmt: skip
    return model_card(
        "winner.md", _metadata(teacher.licence, base_model or teacher.name, "pruned", "sub-network"),
        teacher=public_name(teacher.name), params=count_text(winner.params),
        share=share_text(winner.params, teacher.params),
        kind=kind_text(remote_code, winner.architecture.is_uniform), code=load_code(path, remote_code),
        noise=_noise(run, winner), perplexities=_perplexities(run, winner), fitted=fitted_on(winner),
        corpus=public_name(corpus.name), sizes=_sizes(run, winner, weights), lineage=lineage,
        command=run.result.command or "(the command was not recorded)", version=VERSION, day=_day(date),
    )  # fmt: skip


def _noise(run: SearchRun, winner: FrontMember) -> str:
    times = run.ruined(winner)
    if times is None:
        return ""
    return (
        f"Its perplexity is {times:,.0f} times its teacher's (more than {RUINED_RATIO:.0f}): what it writes is noise "
        "until it is trained."
    )


def _sizes(run: SearchRun, winner: FrontMember, weights: Sequence[tuple[str, str]]) -> Table:
    teacher, rows = run.teacher, []
    for quantity, label in QUANTITIES.items():
        mine, whole = winner.cost[quantity], teacher.cost[quantity] if teacher else None
        write = format_bytes if quantity == "kv_bytes" else format_count
        rows.append((label, write(mine), MISSING if whole is None else write(whole), share_text(mine, whole)))
    rows += [(name, value, MISSING, MISSING) for name, value in weights]
    shapes = (shape_text(winner.architecture), shape_text(teacher.architecture) if teacher else MISSING)
    return Table("Sizes", ("quantity", "this model", "teacher", "share"), (*rows, ("shape", *shapes, MISSING)))


def _perplexities(run: SearchRun, winner: FrontMember) -> Table:
    reference = run.teacher.held_out_perplexity if run.teacher else None

    def row(name: str, params: int, on: Perplexities) -> tuple[str, ...]:
        value, stderr = on.held_out_perplexity, on.held_out_stderr
        return (
            name,
            count_text(params),
            perplexity_text(value),
            interval_text(value, stderr),
            ratio_text(value, reference),
        )

    rows = [row("this model", winner.params, winner.final)]
    rows += [row("the same with the teacher's own weights", winner.params, winner)] if winner.fitted else []
    rows += [row(f"teacher ({public_name(run.teacher.name)})", run.teacher.params, run.teacher)] if run.teacher else []
    # The baselines are of winner 0's size: beside another winner they would compare unlike things.
    baselines = run.baselines if winner.winner == 0 else ()
    rows += [row(beside(run, other), other.params, other) for other in baselines]
    header = ("model", "parameters", "perplexity", "95% interval", "× teacher")
    return Table("Perplexity on held-out text, before any training", header, tuple(rows))


def training_card(
    lineage: Lineage,
    *,
    remote_code: bool,
    weights: str = "",
    path: str = "path/to/this/folder",
    date: str | None = None,
) -> str:
    """The README.md of a trained model.

    ``date``: The day it was made, as ``2026-11-21``; today by default.
    """
    training = lineage.training
    if training is None:
        raise ValueError("a trained model's card needs its training")
    teacher, source = training.distilled_from, lineage.licensed_by
    named = source.name if source and _HUB_ID.fullmatch(source.name) else None
    settings = {**training.distillation, **training.optimisation}
    if settings.get("distill") == "none":
        unused = ("loss", "temperature", "kd_weight", "kd_schedule")
        settings = {name: value for name, value in settings.items() if name not in unused}
    metrics = Table(
        f"On held-out text{f' ({training.after.eval_tokens:,} tokens)' if training.after else ''}",
        ("when", "loss", "95% interval", "perplexity", "95% interval of it", "bits per byte"),
        tuple(_loss_row(when, found) for when, found in
              (("before training", training.before), ("after training", training.after)) if found),
    )  # fmt: skip
    tables = [
        metrics, _budget(training, weights), _lineage(lineage, training),
        facts_table("Settings", [(name.replace("_", " "), value) for name, value in settings.items()]),
    ]  # fmt: skip
    return model_card(
        "trained.md", _metadata(source.licence if source else None, named, *(["distillation"] if teacher else [])),
        name=training.name, params=count_text(training.params), teacher=public_name(teacher.name) if teacher else "",
        kind=kind_text(remote_code), code=load_code(path, remote_code), tables=[table for table in tables if table],
        tokens=count_text(training.tokens) if training.tokens else "", corpus=public_name(training.data.corpus),
        licensed=source is not None, command=training.command or "(the command was not recorded)",
        version=training.slm_ray, day=_day(date),
    )  # fmt: skip


def _loss_row(when: str, found: TrainEvaluation) -> tuple[str, ...]:
    if found.loss is None:
        return (when, *[MISSING] * 5)
    shown = [MISSING, MISSING]
    if found.stderr is not None:
        ends = (found.loss - NORMAL_95 * found.stderr, found.loss + NORMAL_95 * found.stderr)
        shown = [f"{ends[0]:.4f} to {ends[1]:.4f}", f"{perplexity_of(ends[0])} to {perplexity_of(ends[1])}"]
    return when, f"{found.loss:.4f}", shown[0], perplexity_of(found.loss), shown[1], fixed(found.bits_per_byte, 3)


def _budget(training: TrainingLineage, weights: str) -> Table:
    flops, earlier, search = training.flops, training.earlier, training.search_flops
    parts = {"its own": flops.own, "the teacher's": flops.teacher, "capture of logits": flops.capture} if flops else {}
    whole = sum(parts.values()) + (search or 0.0) + (earlier.flops if earlier else 0.0)
    return facts_table("Budget", [
        ("parameters", count_text(training.params)), ("weights", weights),
        ("training tokens", f"{training.tokens:,}" if training.tokens is not None else None),
        ("of them different", format_count(training.data.different_tokens)), ("optimiser steps", training.step),
        *((f"FLOPs, {name}", flops_text(value)) for name, value in parts.items() if value),
        ("trained before, as", ", ".join(earlier.names) if earlier else None),
        ("tokens of that", format_count(earlier.tokens) if earlier and earlier.tokens else None),
        ("FLOPs of that", flops_text(earlier.flops) if earlier and earlier.flops else None),
        ("FLOPs, the search's", "not known" if search is None else flops_text(search) if search else None),
        ("FLOPs in all", flops_text(whole) if whole else None),
        ("energy", energy_text(training.joules) if training.joules is not None else None),
        ("time in steps", format_seconds(training.seconds) if training.seconds is not None else None),
    ])  # fmt: skip


def _lineage(lineage: Lineage, training: TrainingLineage) -> Table:
    data, vocabulary, source = training.data, lineage.vocabulary, lineage.licensed_by
    space = f", space {lineage.space_name}" if lineage.space_name else ""
    added = f"{vocabulary.new_tokens} tokens added, of {public_name(vocabulary.corpus)}" if vocabulary else None
    return facts_table("Lineage", [
        ("student", training.student), ("started from", _STARTS.get(training.start, training.start)),
        ("vocabulary", added), ("grown from", training.grown_from),
        ("found by a search", None if lineage.trial is None else f"trial {lineage.trial}{space}"),
        ("pruned from", _named(lineage.teacher)), ("distilled from", _named(training.distilled_from) or "no teacher"),
        ("teacher's licence", (source.licence or "not recorded") if source else None),
        ("text", f"{public_name(data.corpus)}, digest {data.corpus_digest or 'not known'}"),
        ("training tokens, digest", data.training_tokens), ("held-out tokens, digest", data.held_out_tokens),
        ("tokenizer, digest", data.tokenizer), ("logit store, digest", data.logit_store),
    ])  # fmt: skip


def vocabulary_card(
    vocabulary: ExtendedVocabulary, lineage: Lineage, *, remote_code: bool, command: str | None = None,
    path: str = "path/to/this/folder", date: str | None = None,
) -> str:  # fmt: skip
    """The README.md of a model with new tokens that was not trained since.

    ``date``: The day it was made, as ``2026-11-21``; today by default.
    """
    teacher, rates = lineage.teacher, vocabulary.bytes_per_token
    table = facts_table("Lineage", [
        ("model", public_name(vocabulary.model)), ("new tokens", format_count(vocabulary.new_tokens)),
        ("first new token", vocabulary.first_new), ("rows of the embedding", count_text(vocabulary.rows)),
        ("text", f"{public_name(vocabulary.corpus)}, digest {vocabulary.corpus_digest or 'not known'}"),
        ("bytes per token before", None if rates.before is None else f"{rates.before:.2f}"),
        ("bytes per token now", None if rates.after is None else f"{rates.after:.2f}"),
        ("pruned from", _named(teacher)),
        ("teacher's licence", (teacher.licence or "not recorded") if teacher else None),
    ])  # fmt: skip
    named = teacher.name if teacher and _HUB_ID.fullmatch(teacher.name) else None
    return model_card(
        "vocabulary.md", _metadata(teacher.licence if teacher else None, named),
        new_tokens=f"{vocabulary.new_tokens:,}",
        kind=kind_text(remote_code), code=load_code(path, remote_code), table=table,
        command=command or "(the command was not recorded)", version=VERSION, day=_day(date),
    )  # fmt: skip
