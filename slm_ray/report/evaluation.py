"""The records of an evaluation and its tables, but for tasks (``evaluation_tasks``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.records.evaluation import (
    MODEL,
    Difference,
    EvaluationResult,
    ModelFigures,
    read_evaluation,
    unfinished_evaluation,
)
from slm_ray.records.measurement import Figure, Interval, TextFigures
from slm_ray.report.content import Table
from slm_ray.report.reading import RunRecords
from slm_ray.report.text import (
    MISSING,
    NORMAL_95,
    bytes_text,
    count_text,
    fixed,
    perplexity_text,
    range_text,
)

EVALUATION_PICTURE = "evaluation.png"
ROLES = {"teacher": "teacher", "random": "random-init twin", "first-n": "first-n layers", "published": "published peer"}
DIFFERENCE_KINDS = {"text": "Text", "task": "Tasks", "generation": "Generation"}
_STAGES = ("search", "pretrain", "evaluate")  # folders inside a pipeline's
_EXPORTED = "model"  # the folder of every trained model
_DIGITS = {"bleu": 2, "chrf": 2, "chrf++": 2}


@dataclass(frozen=True)
class EvaluationRun(RunRecords):
    """An evaluation's result, or what there is of one that has not finished."""

    result: EvaluationResult
    names: Mapping[str, str]  # what each model is called, by its name in the result

    @property
    def models(self) -> tuple[ModelFigures, ...]:
        """All models; the first is the one that the others are compared with."""
        return self.result.models

    @property
    def measured(self) -> list[ModelFigures]:
        """The models of which anything is known."""
        return [model for model in self.models if model.measured]

    @property
    def domains(self) -> list[str]:
        """The domains of text, in the order measured."""
        return list(dict.fromkeys(text.domain for model in self.models for text in model.text))

    @property
    def differences(self) -> list[Difference]:
        """Those of text, of generation, and of the metric that stands for a task."""
        main = {task.task: task.main for model in self.models for task in model.tasks}
        return [d for d in self.result.differences if d.kind != "task" or d.quantity == main.get(d.of, d.quantity)]

    def difference(self, model: ModelFigures, kind: str, of: str) -> Difference | None:
        """The model against the first one, where that was compared."""
        wanted = (model.name, self.models[0].name, kind, of)
        return next((d for d in self.differences if (d.model, d.to, d.kind, d.of) == wanted), None)

    def called(self, name: str) -> str:
        """A model's short name."""
        return self.names.get(name, name)

    def full_name(self, model: ModelFigures) -> str:
        """A model's short name, with its role where the name does not say it."""
        short, of = self.called(model.name), self.called(model.of or "")
        if model.role == MODEL or (model.of and of in short):
            return short
        return f"{short} ({ROLES[model.role]})"


def of_result(result: EvaluationResult, notes: Sequence[str] = (), folder: Path | None = None) -> EvaluationRun:
    """A result as the report takes it, with a note for each model that was not measured whole."""
    names = names_of(result.models)
    failed = [f"{names[m.name]} was not measured whole: {m.error}" for m in result.models if m.error]
    noted = (*notes, *result.notes, *failed)
    return EvaluationRun(
        folder or Path(), noted, result.config, result.environment, result.command, result, names
    )  # fmt: skip


def load_evaluation(folder: Path) -> EvaluationRun:
    """Read an evaluation's folder as far as it goes."""
    notes: list[str] = []
    try:
        result = read_evaluation(folder)
    except UserError as error:
        result = unfinished_evaluation(folder)
        notes.append(str(error))
    return of_result(result, notes, folder)


def _parts(name: str) -> tuple[str, ...]:
    """A path's parts without the folder name that all trained models share; a name that is no path whole."""
    parts = PurePath(name).parts
    if len(parts) < 3 and not name.startswith(("/", "./", "../", "~")):
        return (name,)
    return parts[:-1] if parts[-1] == _EXPORTED and len(parts) > 1 else parts


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of folders by as few of their last parts as tell them apart: ``winner-0.student``, ``winners/0``."""
    parts = {name: _parts(name) for name in names}
    generic = {name: found[-1].isdigit() or found[-1] in _STAGES for name, found in parts.items()}
    counts = {name: min(1 + generic[name], len(found)) for name, found in parts.items()}
    while True:
        short = {name: "/".join(found[-counts[name] :]) for name, found in parts.items()}
        values = list(short.values())
        again = [n for n in parts if values.count(short[n]) > 1 and counts[n] < len(parts[n])]
        if not again:
            break
        for name in again:
            counts[name] += 1
    # Two names that are the same in all their parts but the generic one are shown as they are.
    return {name: name if values.count(found) > 1 else found for name, found in short.items()}


def names_of(models: Sequence[ModelFigures]) -> dict[str, str]:
    """The short names of an evaluation's models; a peer's name has its model's short name in it."""
    of = {model.name: model.of for model in models if model.of}
    inside = {name for name, other in of.items() if other in name and other != name}
    short = short_names([model.name for model in models if model.name not in inside])
    return short | {name: name.replace(of[name], short.get(of[name], of[name])) for name in inside}


def figure_of(text: TextFigures, quantity: str) -> Figure:
    """The loss, perplexity or bits per byte of a text, with its noise."""
    stderr, interval = getattr(text, f"{quantity}_stderr"), getattr(text, f"{quantity}_interval")
    return Figure(value=getattr(text, quantity), stderr=stderr, interval=interval, better="less")


def text_of(model: ModelFigures, domain: str) -> TextFigures | None:
    """A model on a domain."""
    return next((text for text in model.text if text.domain == domain), None)


def ends_of(figure: Figure) -> Interval:
    """The ends of a figure's interval, of 1.96 standard errors, or its value twice where its noise is not known."""
    if figure.interval is not None:
        return figure.interval
    value, reach = figure.value or 0.0, NORMAL_95 * (figure.stderr or 0.0)
    return value - reach, value + reach


def role_text(run: EvaluationRun, model: ModelFigures) -> str:
    """What a model is: ``teacher of half``, or a dash for one that was given."""
    if model.role == MODEL:
        return MISSING
    return f"{ROLES[model.role]} of {run.called(model.of)}" if model.of else ROLES[model.role]


def models_table(run: EvaluationRun) -> Table:
    """Who was measured."""
    rows = tuple(
        (run.called(m.name), role_text(run, m), count_text(m.params), m.error or MISSING, m.digest or MISSING)
        for m in run.models
    )
    return Table("The models", ("model", "is the", "parameters", "error", "digest"), rows).compact()


def _perplexities(interval: Interval | None) -> str:
    return MISSING if interval is None else f"{perplexity_text(interval[0])} to {perplexity_text(interval[1])}"


def text_table(run: EvaluationRun) -> Table:
    """A row per domain and model, with 95% intervals."""
    header = (
        "text", "model", "perplexity", "95% interval", "bits per byte", "95% interval ", "loss", "tokens",
        "against the first",
    )  # fmt: skip
    rows = []
    for domain in run.domains:
        for model in run.models:
            if text := text_of(model, domain):
                difference = run.difference(model, "text", domain)
                rows.append((
                    domain, run.called(model.name), perplexity_text(text.perplexity),
                    _perplexities(text.perplexity_interval), fixed(text.bits_per_byte),
                    range_text(text.bits_per_byte_interval), fixed(text.loss), count_text(text.tokens),
                    difference.verdict if difference else MISSING,
                ))  # fmt: skip
    table = Table("Held-out text", header, tuple(rows)).compact()
    if len(run.domains) == 1:  # a single domain needs no column of its own
        return Table(table.title, table.header[1:], tuple(row[1:] for row in table.rows))
    return table


def text_lead(run: EvaluationRun) -> str:
    """What was measured, in a few sentences."""
    texts = [text for model in run.models for text in model.text]
    if not texts:
        return ""
    windows = {
        f"a window of {text.sequence_length} tokens that moves by {text.stride}" if text.window == "sliding"
        else f"{text.sequence_length} tokens a sequence, documents {text.documents}"
        for text in texts
    }  # fmt: skip
    said = (
        f"{', '.join(dict.fromkeys(text.corpus for text in texts))}: {' or '.join(sorted(windows))}, "
        f"{run.result.precision or 'precision not recorded'}. Intervals are 95% bootstrap intervals over "
        f"{texts[0].unit}s."
    )
    if len({model.tokenizer for model in run.models if model.text}) > 1:
        said += " The tokenizers differ: perplexities are per token of each, and only bits per byte can be compared."
    return said


def _signed(value: float, stderr: float | None) -> str:
    digits = max(4, 1 - math.floor(math.log10(stderr))) if stderr else 4
    return f"{value:+.{min(digits, 8)}f}"


def difference_cells(found: Difference) -> tuple[str, str, str]:
    """The difference, its 95% interval, and the verdict."""
    interval = MISSING
    if found.low is not None and found.high is not None:
        interval = f"{_signed(found.low, found.stderr)} to {_signed(found.high, found.stderr)}"
    return _signed(found.difference, found.stderr), interval, found.verdict


def differences_table(run: EvaluationRun, kind: str, without: Iterable[str] = ()) -> Table:
    """Every comparison of one kind of measurement (``text``, ``task`` or ``generation``), some tasks left out."""
    titles = {task.task: task.title for model in run.models for task in model.tasks}
    left_out = set(without)
    rows = tuple(
        (
            titles.get(d.of, d.of), d.quantity.replace("_", " "), run.called(d.model), run.called(d.to),
            *difference_cells(d), MISSING if d.paired else "not paired",
        )
        for d in run.differences
        if d.kind == kind and d.of not in left_out
    )  # fmt: skip
    header = (kind, "quantity", "model", "less", "difference", "95% interval", "verdict", "remark")
    return Table(DIFFERENCE_KINDS[kind], header, rows).compact()


def differences_lead(run: EvaluationRun) -> str:
    """What the differences are."""
    first = run.called(run.models[0].name) if run.models else "the first model"
    peers = ", and peers less the model they are peers of" if len({d.to for d in run.result.differences}) > 1 else ""
    text = (
        f"Every model less {first}{peers}, on the same sequences, documents or prompts where they are paired, with 95% "
        "bootstrap intervals. A difference whose interval holds 0 is within the noise."
    )
    if any(not d.paired for d in run.result.differences):
        text += " Unpaired ones take the two errors as independent, which overstates the noise."
    return text


def _metric(name: str, value: float) -> str:
    return f"{value:.{_DIGITS.get(name.lower(), 2 if abs(value) >= 10 else 4)}f}"


def _metric_cell(name: str, figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return MISSING
    shown = _metric(name, figure.value)
    ends = figure.interval
    return shown if ends is None else f"{shown} ({_metric(name, ends[0])} to {_metric(name, ends[1])})"


def generation_table(run: EvaluationRun) -> Table:
    """A row per metric of generated texts, a column per model, with 95% intervals."""
    found = [(model, model.generation.metrics) for model in run.models if model.generation]
    names = list(dict.fromkeys(name for _, metrics in found for name in metrics))
    rows = []
    for name in names:
        better = next((m[name].better for _, m in found if name in m and m[name].better), None)
        cells = (_metric_cell(name, metrics.get(name)) for _, metrics in found)
        rows.append((name.replace("_", " "), better or "neither", *cells))
    header = ("metric", "better is", *(run.called(model.name) for model, _ in found))
    return Table("Generation", header, tuple(rows))


def generation_lead(run: EvaluationRun) -> str:
    """How texts were generated."""
    found = next((model.generation for model in run.models if model.generation), None)
    if found is None:
        return ""
    settings = found.settings.to_json()
    shown = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items()
             if "digest" not in name and value is not False]  # fmt: skip
    said = f"{count_text(found.prompts)} prompts, the same for every model: {', '.join(shown)}."
    return f"{said} 95% intervals over prompts."


def samples(run: EvaluationRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """The first prompts, each with its reference and every model's text."""
    found: dict[str, list[tuple[str, str]]] = {}
    for model in run.models:
        for sample in model.generation.samples if model.generation else ():
            answers = found.setdefault(sample.prompt, [("reference", sample.reference)] if sample.reference else [])
            answers.append((run.called(model.name), sample.text))
    return list(found.items())


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _energy(joules: float | None) -> str:
    return "not known" if joules is None else f"{1000 * joules:.3g} mJ" if joules < 1 else f"{joules:.3g} J"


def efficiency_table(run: EvaluationRun) -> Table:
    """What a model costs to run: sizes, memory, energy."""
    rows = tuple(
        (
            run.called(model.name), count_text(found.params), format_count(found.flops_per_token),
            bytes_text(found.weights_bytes), bytes_text(found.kv_bytes_per_token), bytes_text(found.peak_memory_bytes),
            _energy(found.energy.joules_per_token),
        )
        for model in run.models
        if (found := model.efficiency)
    )  # fmt: skip
    header = (
        "model", "parameters", "FLOPs/token", "weights", "KV cache/token", "peak memory", "energy/token",
    )  # fmt: skip
    return Table("Sizes and memory", header, rows, titled=True).compact()


def efficiency_lead(run: EvaluationRun) -> str:
    """Where efficiency was measured."""
    found = next((model.efficiency for model in run.models if model.efficiency), None)
    if found is None:
        return ""
    threads = f", {found.threads} threads" if found.threads and found.device != "cuda" else ""
    return f"On {found.device_name or found.device}{threads}, {found.precision}. Energy: {found.energy.source}."


def speed_table(run: EvaluationRun, kind: str) -> Table:
    """Rates and the distribution of latencies, for ``prefill`` or ``decode``."""
    size, of = ("prompt tokens", "of a prompt") if kind == "prefill" else ("context tokens", "of a token")
    entries = [(model, entry) for model in run.models if model.efficiency for entry in getattr(model.efficiency, kind)]
    rows = []
    for model, entry in sorted(entries, key=lambda one: (one[1].batch, one[1].tokens)):
        latency = entry.latency_ms
        times = (f"{value:.3g} ms" for value in (latency.median, latency.p90, latency.p99, latency.max))
        rows.append((
            count_text(entry.tokens), count_text(entry.batch), run.called(model.name),
            _rate(entry.tokens_per_second), *times,
        ))  # fmt: skip
    header = (size, "batch", "model", "tokens/s", f"latency {of}, median", "90%", "99%", "slowest")
    return Table(kind.capitalize(), header, tuple(rows), titled=True)


def spent_table(run: EvaluationRun) -> Table:
    """What the evaluation took."""
    spent = run.result.spent
    if spent is None:
        return Table("What was spent", ("what", "how much"), ())
    rows = [(name, format_seconds(seconds)) for name, seconds in spent.by_part.items()]
    rows += [("time in all", format_seconds(spent.seconds)), ("models loaded", str(spent.models_loaded))]
    return Table("What was spent", ("what", "how much"), (*rows, ("energy", "not measured as a whole")))
