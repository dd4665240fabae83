"""The report of an evaluation: text, tasks, differences, generation, efficiency."""

from __future__ import annotations

from slm_ray.config.units import format_count, format_seconds
from slm_ray.report.blocks import Block, Chapter, Drawing, Fold, Markup, Picture, Report, Rows, Section, Words
from slm_ray.report.evaluation_chart import (
    Intervals,
    difference_intervals,
    intervals_data,
    looks,
    scatter_data,
    task_intervals,
    text_intervals,
)
from slm_ray.report.evaluation_records import EvaluationRecords
from slm_ray.report.evaluation_tables import (
    DIFFERENCE_KINDS,
    differences_lead,
    differences_table,
    efficiency_lead,
    efficiency_notes,
    efficiency_table,
    full_name,
    generation_lead,
    generation_samples,
    generation_table,
    models_table,
    speed_table,
    spent_table,
    text_lead,
    text_table,
)
from slm_ray.report.evaluation_tasks import task_rows, tasks_lead, tasks_table
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.html import escape, tile
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.records import number
from slm_ray.report.wording import count_text, perplexity_text

EVALUATION_PICTURE = "evaluation.png"
_ALT = "Bits per byte, scores of tasks, and efficiency against quality, by model"
_SCATTER_LEAD = "What a model costs against what it can do; the vertical line is a 95% interval."


def _drawing(run: EvaluationRecords, picture: Intervals, key: str) -> Block:
    look = looks(run)
    models = [(full_name(model), look[model.short]) for model in run.models]
    return Drawing(key, "intervals", intervals_data(picture, models))


def text_section(run: EvaluationRecords, prefix: str = "") -> Section:
    """Perplexity and bits per byte by domain."""
    picture = text_intervals(run)
    drawn = [_drawing(run, picture, f"{prefix}text")] if picture.groups else []
    return Section("Held-out text", [*drawn, Rows(text_table(run))], text_lead(run))


def tasks_section(run: EvaluationRecords, prefix: str = "") -> Section:
    """Scores of tasks: a picture and a table."""
    picture = task_intervals(run)
    drawn = [_drawing(run, picture, f"{prefix}tasks")] if picture.groups else []
    table, strong = tasks_table(run)
    members, strong_members = tasks_table(run, members=True)
    inside = [Fold(members.title, [Rows(members, strong=strong_members)])] if members.rows else []
    lead = f"{tasks_lead(run)} The best of a row is bold."
    return Section("Tasks", [*drawn, Rows(table, strong=strong), *inside], lead)


def differences_section(run: EvaluationRecords, prefix: str = "") -> Section:
    """Every model against the first."""
    blocks: list[Block] = []
    for place, picture in enumerate(difference_intervals(run)):
        blocks.append(_drawing(run, picture, f"{prefix}differences-{place}"))
    tables = [table for kind in DIFFERENCE_KINDS if (table := differences_table(run, kind)).rows]
    blocks += [Fold(f"Differences as a table: {table.title.lower()}", [Rows(table)]) for table in tables]
    first = run.models[0].short if run.models else "the first model"
    return Section(f"Against {first}" if blocks else "Differences", blocks, differences_lead(run))


def _samples_html(run: EvaluationRecords) -> str:
    parts = []
    for sample in generation_samples(run):
        answers = [*([("reference", str(sample["reference"]))] if sample["reference"] else []), *sample["answers"]]
        cells = [(escape(name), escape(text) or "(nothing)") for name, text in answers]
        shown = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in cells)
        parts.append(f'<div class="prompt"><p>{escape(sample["prompt"])}</p><dl class="answers">{shown}</dl></div>')
    return "".join(parts)


class _Samples(Block):
    """Every model's continuation of the first prompts, side by side."""

    def __init__(self, run: EvaluationRecords) -> None:
        self.run = run

    def html(self, heading: int) -> str:
        """A grid of texts for each prompt."""
        return _samples_html(self.run)

    def markdown(self, heading: int) -> str:
        """A list for each prompt."""
        from slm_ray.report.markdown import plain

        lines = []
        for sample in generation_samples(self.run):
            answers = [*([("reference", str(sample["reference"]))] if sample["reference"] else []), *sample["answers"]]
            listed = "\n".join(f"- *{plain(name)}:* {plain(text)}" for name, text in answers)
            lines.append(f"**{plain(sample['prompt'])}**\n\n{listed}")
        return "\n\n".join(lines)


def generation_section(run: EvaluationRecords) -> Section:
    """Metrics of generated texts, and samples side by side."""
    if not any(model.generation for model in run.models):
        return Section("Generation", [])
    samples = generation_samples(run)
    shown = [Fold(f"The first {len(samples)} prompts, side by side", [_Samples(run)])] if samples else []
    return Section("Generation", [Rows(generation_table(run)), *shown], generation_lead(run))


def efficiency_section(run: EvaluationRecords, prefix: str = "") -> Section:
    """What each model takes, and that against its quality."""
    blocks: list[Block] = []
    if data := scatter_data(run):
        lead = Markup(f'<p class="small">{escape(_SCATTER_LEAD)}</p>')
        blocks += [lead, Drawing(f"{prefix}scatter", "scatter", data)]
    tables = [efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode")]
    blocks += [Rows(table, titled=True) for table in tables if table.rows]
    blocks += [Words(note, small=True) for note in efficiency_notes(run)]
    return Section("Efficiency", blocks if any(table.rows for table in tables) else [], efficiency_lead(run))


def evaluation_sections(run: EvaluationRecords, prefix: str = "", file: str = EVALUATION_PICTURE) -> list[Section]:
    """Everything that an evaluation's report shows, but for its cost, environment and command.

    Args:
        run: Its records.
        prefix: Of the names of its pictures, where a page has several runs.
        file: The picture that Markdown shows; empty for none.
    """
    models = models_table(run)
    picture: list[Block] = [Picture(file, _ALT)] if file and run.measured else []
    return [
        Section(models.title, [*picture, Rows(models)]),
        text_section(run, prefix),
        tasks_section(run, prefix),
        differences_section(run, prefix),
        generation_section(run),
        efficiency_section(run, prefix),
    ]


def _listed(counts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(counts[:-1]), counts[-1]]))


def evaluation_headline(run: EvaluationRecords) -> str:
    """The result in a sentence or two."""
    if not run.measured:
        return "Nothing has been measured yet."
    first = run.models[0]
    sentences = []
    if first.texts and (perplexity := first.texts[0].perplexity):
        shown = perplexity_text(perplexity.value)
        sentences.append(f"{first.short} has perplexity {shown} on {first.texts[0].domain}.")
    members = {row.name for row in task_rows(run) if row.kind == "member"}
    counted = [d for d in run.main_differences if d.to == first.name and d.kind != "generation" and d.of not in members]
    counts = {words: sum(d.verdict == words for d in counted) for words in ("better", "worse", "within the noise")}
    said = [f"{count} {words}" for words, count in counts.items() if count]
    if said:
        sentences.append(f"{len(counted)} comparisons of other models with it: {_listed(said)}.")
    return " ".join(sentences) or f"{len(run.measured)} models were measured."


def evaluation_tiles(run: EvaluationRecords) -> str:
    """The first model's most important figures, as HTML."""
    if not run.measured:
        return ""
    first = run.models[0]
    tiles = [tile("Model", count_text(first.params), f"parameters, {first.short}")]
    if first.texts:
        score = first.texts[0]
        if score.perplexity:
            tiles.append(tile("Perplexity", perplexity_text(score.perplexity.value), f"on {score.domain}"))
        if score.bits_per_byte:
            tiles.append(tile("Bits per byte", f"{score.bits_per_byte.value:.3f}", "comparable across tokenizers"))
    average = next((row for row in task_rows(run) if row.kind == "average" and row.scores[0]), None)
    if average and first.tasks and average.scores[0]:
        chance = "" if average.chance is None else f"; chance is {100 * average.chance:.1f}"
        tiles.append(tile("Tasks", f"{100 * average.scores[0].value:.1f}", f"{average.title}, %{chance}"))
    if (seconds := number(run.spent.get("seconds"))) is not None:
        tiles.append(tile("Time", format_seconds(seconds), f"{len(run.measured)} models, with loading"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _facts(run: EvaluationRecords) -> str:
    tokens = number(run.config.get("eval_tokens"))
    facts = [
        f"{run.config['data']}" if run.config.get("data") else "",
        f"{format_count(tokens)} tokens of each text" if tokens and any(m.texts for m in run.models) else "",
        f"tasks {run.config['tasks']}" if run.config.get("tasks") else "", run.precision, run.device,
    ]  # fmt: skip
    return " · ".join(fact for fact in facts if fact)


def evaluation_chapter(run: EvaluationRecords, prefix: str = "", file: str = EVALUATION_PICTURE) -> Chapter:
    """An evaluation's part of a page."""
    again: list[tuple[str, str]] = [] if run.finished or not run.command else [("Go on with it", run.command)]
    sections = [
        *evaluation_sections(run, prefix, file),
        Section("What was spent", [Rows(spent_table(run))]),
        reproduce_section(run.command, again, "The command is recorded when an evaluation finishes."),
        environment_section(run.environment, run.config),
    ]
    return Chapter(
        sections, facts=_facts(run), headline=evaluation_headline(run), notes=run.notes, tiles=evaluation_tiles(run)
    )  # fmt: skip


def evaluation_report(run: EvaluationRecords) -> Report:
    """The whole report of an evaluation."""
    title = f"Evaluation of {run.models[0].short}" if run.models else "Evaluation"
    return Report(title, "evaluation report", [evaluation_chapter(run)], EVALUATION_PICTURE)


def evaluation_page(run: EvaluationRecords) -> str:
    """The report as a page."""
    return page_of(evaluation_report(run))


def evaluation_markdown(run: EvaluationRecords) -> str:
    """The report as Markdown; ``evaluation.png`` is expected beside it."""
    return markdown_of(evaluation_report(run))
