"""The tables of an evaluation but for its tasks: models, text, differences, generation, efficiency, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.report.evaluation_records import (
    MODEL,
    ROLES,
    DifferenceRow,
    EvaluatedModel,
    EvaluationRecords,
    Score,
)
from slm_ray.report.records import interval_of, items, mapping, number
from slm_ray.report.tables import Table, without_empty_columns
from slm_ray.report.wording import MISSING, NORMAL_95, count_text, perplexity_text

# Metrics that are shares of documents, written in per cent as papers write them, and others with their own digits.
_DIGITS = {"bleu": 2, "chrf": 2, "chrf++": 2}
DIFFERENCE_KINDS = {"text": "Text", "task": "Tasks", "generation": "Generation"}


def role_text(model: EvaluatedModel) -> str:
    """What a model is: ``teacher of half``, or a dash for one that was asked for."""
    if model.role == MODEL:
        return MISSING
    name = ROLES.get(model.role, model.role)
    return f"{name} of {model.of}" if model.of else name


def full_name(model: EvaluatedModel) -> str:
    """A model's short name, with its role where the name does not say it."""
    if model.role == MODEL or (model.of and model.of in model.short):
        return model.short
    return f"{model.short} ({ROLES.get(model.role, model.role)})"


def models_table(run: EvaluationRecords) -> Table:
    """Who was measured."""
    rows = tuple(
        (m.short, role_text(m), count_text(m.params), m.error or MISSING, str(m.facts.get("digest") or MISSING))
        for m in run.models
    )
    return without_empty_columns(Table("The models", ("model", "is the", "parameters", "error", "digest"), rows))


def domains_of(run: EvaluationRecords) -> list[str]:
    """The domains of text, in the order measured."""
    return list(dict.fromkeys(score.domain for model in run.models for score in model.texts))


def fixed(value: float | None, digits: int) -> str:
    """A value with so many decimals, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def range_of(score: Score | None, digits: int) -> str:
    """A 95% interval with so many decimals, or a dash."""
    if score is None or score.low is None or score.high is None:
        return MISSING
    return f"{score.low:.{digits}f} to {score.high:.{digits}f}"


def _perplexity_range(score: Score | None) -> str:
    if score is None or score.low is None or score.high is None:
        return MISSING
    return f"{perplexity_text(score.low)} to {perplexity_text(score.high)}"


def text_table(run: EvaluationRecords) -> Table:
    """A row per domain and model, with 95% intervals."""
    header = (
        "text", "model", "perplexity", "95% interval", "bits per byte", "95% interval ", "loss", "tokens",
        "against the first",
    )  # fmt: skip
    rows = []
    for domain in domains_of(run):
        for model in run.models:
            score = model.text(domain)
            if score is None:
                continue
            difference = run.difference(model, "text", domain)
            rows.append((
                domain, model.short, perplexity_text(score.perplexity.value if score.perplexity else None),
                _perplexity_range(score.perplexity),
                fixed(score.bits_per_byte.value if score.bits_per_byte else None, 4), range_of(score.bits_per_byte, 4),
                fixed(score.loss.value if score.loss else None, 4), count_text(score.tokens),
                difference.verdict if difference else MISSING,
            ))  # fmt: skip
    table = without_empty_columns(Table("Held-out text", header, tuple(rows)))
    return table if len(domains_of(run)) > 1 else _without_first(table)


def _without_first(table: Table) -> Table:
    """A single domain needs no column of its own."""
    return Table(table.title, table.header[1:], tuple(row[1:] for row in table.rows)) if table.rows else table


def text_lead(run: EvaluationRecords) -> str:
    """What was measured, in a few sentences."""
    scores = [score for model in run.models for score in model.texts]
    if not scores:
        return ""
    facts = scores[0].facts
    corpora = ", ".join(dict.fromkeys(str(score.facts.get("corpus") or score.domain) for score in scores))
    if "sequence_length" not in facts:
        return f"{corpora}, from the records of single models: without intervals."
    windows = {
        f"a window of {s.facts.get('sequence_length')} tokens that moves by {s.facts.get('stride')}"
        if s.facts.get("window") == "sliding"
        else f"{s.facts.get('sequence_length')} tokens a sequence, documents {s.facts.get('documents')}"
        for s in scores
    }
    unit = str(facts.get("unit") or "sequence")
    text = (
        f"{corpora}: {' or '.join(sorted(windows))}, {run.precision or 'precision not recorded'}. Intervals are 95% "
        f"bootstrap intervals over {unit}s."
    )
    if len({model.facts.get("tokenizer") for model in run.models if model.texts}) > 1:
        text += " The tokenizers differ: perplexities are per token of each, and only bits per byte can be compared."
    return text


def _signed(value: float, stderr: float | None) -> str:
    digits = max(4, 1 - math.floor(math.log10(stderr))) if stderr else 4
    return f"{value:+.{min(digits, 8)}f}"


def difference_cells(row: DifferenceRow) -> tuple[str, str, str]:
    """The difference, its 95% interval, and what it is called."""
    score = row.score
    low, high = score.low, score.high
    interval = MISSING
    if low is not None and high is not None:
        interval = f"{_signed(low, score.stderr)} to {_signed(high, score.stderr)}"
    return _signed(score.value, score.stderr), interval, row.verdict


def differences_table(run: EvaluationRecords, kind: str) -> Table:
    """Every comparison of one kind of measurement: ``text``, ``task`` or ``generation``."""
    short = {model.name: model.short for model in run.models}
    titles = {score.name: score.title for model in run.models for score in model.tasks}
    rows = tuple(
        (
            titles.get(d.of, d.of), d.quantity.replace("_", " "), short.get(d.model, d.model), short.get(d.to, d.to),
            *difference_cells(d), MISSING if d.paired else "not paired",
        )
        for d in run.main_differences
        if d.kind == kind
    )  # fmt: skip
    header = (kind, "quantity", "model", "less", "difference", "95% interval", "so it is", "remark")
    return without_empty_columns(Table(DIFFERENCE_KINDS.get(kind, kind), header, rows))


def differences_lead(run: EvaluationRecords) -> str:
    """What the differences are."""
    first = run.models[0].short if run.models else "the first model"
    peers = ", and peers less the model they are peers of" if len({d.to for d in run.differences}) > 1 else ""
    text = (
        f"Every model less {first}{peers}, on the same sequences, documents or prompts where they are paired, with 95% "
        "bootstrap intervals. A difference whose interval holds 0 is within the noise."
    )
    if any(not d.paired for d in run.differences):
        text += " Unpaired ones take the two errors as independent, which overstates the noise."
    return text


def metric_text(name: str, value: float) -> str:
    """A metric of generation: scores of BLEU and chrF with two decimals, shares with four."""
    return f"{value:.{_DIGITS.get(name.lower(), 2 if abs(value) >= 10 else 4)}f}"


def generation_table(run: EvaluationRecords) -> Table:
    """A row per metric, a column per model, with 95% intervals."""
    models = [model for model in run.models if model.generation]
    names = list(dict.fromkeys(n for m in models for n in mapping(mapping(m.generation).get("metrics"))))
    rows = []
    for name in names:
        entries = [mapping(mapping(mapping(m.generation).get("metrics")).get(name)) for m in models]
        better = next((str(entry["better"]) for entry in entries if entry.get("better")), None)
        cells = []
        for entry in entries:
            value, (low, high) = number(entry.get("value")), interval_of(entry.get("interval"))
            shown = MISSING if value is None else metric_text(name, value)
            if low is not None and high is not None:
                shown += f" ({metric_text(name, low)} to {metric_text(name, high)})"
            cells.append(shown)
        rows.append((name.replace("_", " "), {"more": "more", "less": "less"}.get(better or "", "neither"), *cells))
    return Table("Generation", ("metric", "better is", *(model.short for model in models)), tuple(rows))


def generation_lead(run: EvaluationRecords) -> str:
    """How texts were generated."""
    model = next((m for m in run.models if m.generation), None)
    if model is None:
        return ""
    settings = mapping(mapping(model.generation).get("settings"))
    told = {key: value for key, value in settings.items() if _is_plain(value) and "digest" not in key}
    shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
    count = number(mapping(model.generation).get("prompts"))
    text = f"{count_text(count)} prompts, the same for every model"
    return f"{text}{f': {shown}' if shown else ''}. 95% intervals over prompts."


def _is_plain(value: object) -> bool:
    """A number or a short text; a setting that is off says nothing."""
    return (isinstance(value, (int, float)) and value is not False) or (isinstance(value, str) and len(value) < 40)


def generation_samples(run: EvaluationRecords) -> list[dict[str, Any]]:
    """The first prompts with every model's text: ``prompt``, ``reference``, and ``answers`` of (model, text)."""
    found: dict[str, dict[str, Any]] = {}
    for model in run.models:
        for sample in items(mapping(model.generation).get("samples")):
            prompt, reference = str(sample.get("prompt")), sample.get("reference")
            entry = found.setdefault(prompt, {"prompt": prompt, "reference": reference, "answers": []})
            entry["answers"].append((model.short, str(sample.get("text"))))
    return list(found.values())


def _bytes(value: object) -> str:
    found = number(value)
    return MISSING if found is None else format_bytes(found)


def _rate(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}" if found >= 100 else f"{found:.1f}"


def _percent(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{100 * found:.1f}%"


def _energy(record: Mapping[str, Any]) -> str:
    joules = number(mapping(record.get("energy")).get("joules_per_token"))
    return "not known" if joules is None else f"{1000 * joules:.3g} mJ" if joules < 1 else f"{joules:.3g} J"


def efficiency_table(run: EvaluationRecords) -> Table:
    """What a model takes: sizes, memory, utilisation, energy."""
    rows = []
    for model in run.models:
        record = mapping(model.efficiency)
        if not record:
            continue
        kv = number(record.get("kv_bytes_per_token"))
        flops = number(record.get("flops_per_token"))
        rows.append((
            model.short, count_text(number(record.get("params"))), MISSING if flops is None else format_count(flops),
            _bytes(record.get("weights_bytes")), MISSING if kv is None else format_bytes(kv),
            _bytes(record.get("peak_memory_bytes")), _percent(record.get("mfu_prefill")), _energy(record),
        ))  # fmt: skip
    header = (
        "model", "parameters", "FLOPs/token", "weights", "KV cache/token", "peak memory", "MFU, prefill",
        "energy/token",
    )  # fmt: skip
    return without_empty_columns(Table("Sizes and memory", header, tuple(rows)))


def efficiency_lead(run: EvaluationRecords) -> str:
    """Where efficiency was measured."""
    record = next((mapping(m.efficiency) for m in run.models if m.efficiency), {})
    if not record:
        return ""
    where = record.get("device_name") or record.get("device") or "a device that is not recorded"
    threads = f", {record['threads']} threads" if record.get("threads") and record.get("device") != "cuda" else ""
    text = f"On {where}{threads}, {record.get('precision') or run.precision}."
    peak = number(record.get("matmul_flops_per_second"))
    text = f"{text} MFU is of the {format_count(peak)} FLOP/s that its matrix multiply reaches." if peak else text
    energy = mapping(record.get("energy"))
    return f"{text} Energy: {energy['source']}." if energy.get("source") else text


def efficiency_notes(run: EvaluationRecords) -> list[str]:
    """What could not be measured, a sentence per model and reason."""
    return [
        f"{model.short}: {note}"
        for model in run.models
        for note in mapping(model.efficiency).get("notes") or []
        if isinstance(note, str)
    ]


def speed_table(run: EvaluationRecords, kind: str) -> Table:
    """Rates and the distribution of latencies, for ``prefill`` or ``decode``."""
    size, of = ("prompt_tokens", "of a prompt") if kind == "prefill" else ("context_tokens", "of a token")
    rows = []
    for model in run.models:
        for entry in items(mapping(model.efficiency).get(kind)):
            latency = mapping(entry.get("latency_ms"))
            times = [number(latency.get(name)) for name in ("median", "p90", "p99", "max")]
            rows.append((
                count_text(number(entry.get(size))), count_text(number(entry.get("batch"))), model.short,
                _rate(entry.get("tokens_per_second")), *(MISSING if t is None else f"{t:.3g} ms" for t in times),
            ))  # fmt: skip
    header = (size.replace("_", " "), "batch", "model", "tokens/s", f"latency {of}, median", "90%", "99%", "slowest")
    rows.sort(key=lambda row: (row[1], row[0]))
    return without_empty_columns(Table("Prefill" if kind == "prefill" else "Decode", header, tuple(rows)))


def spent_table(run: EvaluationRecords) -> Table:
    """What the evaluation took."""
    rows = []
    for name, value in mapping(run.spent.get("by_part")).items():
        seconds = number(value)
        if seconds is not None:
            rows.append((str(name), format_seconds(seconds)))
    whole = number(run.spent.get("seconds"))
    if whole is not None:
        rows.append(("time in all", format_seconds(whole)))
    loaded = number(run.spent.get("models_loaded"))
    if loaded is not None:
        rows.append(("models loaded", f"{loaded:.0f}"))
    if rows:
        rows.append(("energy", "not measured as a whole"))
    return Table("What was spent", ("what", "how much"), tuple(rows))


def normal_range(scores: Iterable[Score]) -> tuple[float, float]:
    """The least and the largest end of some intervals (of 1.96 standard errors where only these are known)."""
    ends = [end for score in scores for end in ends_of(score)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def ends_of(score: Score) -> tuple[float, float]:
    """The ends of a score's interval, or its value twice where its noise is not known."""
    if score.low is not None and score.high is not None:
        return score.low, score.high
    reach = NORMAL_95 * (score.stderr or 0.0)
    return score.value - reach, score.value + reach
