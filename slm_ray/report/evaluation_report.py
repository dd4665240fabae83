"""The page of an evaluation, and its tables for a terminal."""

from __future__ import annotations

from pathlib import Path

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_seconds
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.report.charts import Picture
from slm_ray.report.content import Block, Chapter, Figure, Fold, Report, Samples, Section, Table, Text, Tile
from slm_ray.report.evaluation import (
    DIFFERENCE_KINDS,
    EVALUATION_PICTURE,
    EvaluationRun,
    differences_lead,
    differences_table,
    efficiency_lead,
    efficiency_table,
    generation_lead,
    generation_table,
    load_evaluation,
    models_table,
    of_result,
    samples,
    speed_table,
    spent_table,
    text_lead,
    text_table,
)
from slm_ray.report.evaluation_charts import difference_pictures, efficiency_picture, tasks_picture, text_picture
from slm_ray.report.evaluation_tasks import task_rows, tasks_lead, tasks_table
from slm_ray.report.render import write_report
from slm_ray.report.text import count_text, perplexity_text

_SCATTER_LEAD = "What a model costs against what it can do; the vertical line is a 95% interval."


def evaluation_sections(run: EvaluationRun) -> list[Section]:
    """Everything that an evaluation's report shows, but for its cost, environment and command."""
    texts, tasks = text_picture(run), tasks_picture(run)
    sizes, prefill, decode = efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode")
    scatter = efficiency_picture(run) if sizes or prefill or decode else None
    drawn = [view for picture in (texts, tasks, scatter) if picture for view in picture.views]
    # Markdown shows one picture of everything; the page has its parts with their sections.
    summary = Figure(
        "", Picture(tuple(drawn)) if drawn else None, "Bits per byte, scores, and efficiency against quality, by model",
        EVALUATION_PICTURE, _title(run), columns=max(len(drawn), 1), on_page=False,
    )  # fmt: skip
    differences: list[Block] = [
        Figure(f"differences-{place}", picture, "Differences with their 95% intervals")
        for place, picture in enumerate(difference_pictures(run))
    ]
    tables = [differences_table(run, kind) for kind in DIFFERENCE_KINDS]
    differences += [Fold(f"Differences as a table: {table.title.lower()}", table) for table in tables]
    notes = [f"{run.called(m.name)}: {note}" for m in run.models if m.efficiency for note in m.efficiency.notes]
    first = run.called(run.models[0].name) if run.models else "the first model"
    members, prompts = tasks_table(run, members=True), samples(run)
    return [
        Section("The models", [summary, models_table(run)]),
        Section("Held-out text", [Figure("text", texts, "Bits per byte by text"), text_table(run)], text_lead(run)),
        Section("Tasks", [Figure("tasks", tasks, "Scores with their intervals"), tasks_table(run),
                          Fold(members.title, members)], f"{tasks_lead(run)} The best of a row is bold."),
        Section(f"Against {first}", differences, differences_lead(run)),
        Section("Generation", [generation_table(run), Fold(f"The first {len(prompts)} prompts, side by side",
                                                           Samples(prompts))], generation_lead(run)),
        Section("Efficiency", [
            Text(_SCATTER_LEAD if scatter else "", small=True),
            Figure("efficiency", scatter, "A cost against a quality, by model"), sizes, prefill, decode,
            *(Text(note, small=True) for note in notes),
        ], efficiency_lead(run)),
    ]  # fmt: skip


def evaluation_headline(run: EvaluationRun) -> str:
    """The result in a sentence or two."""
    if not run.measured:
        return "Nothing has been measured yet."
    first, sentences = run.models[0], []
    if first.text and first.text[0].perplexity is not None:
        shown = perplexity_text(first.text[0].perplexity)
        sentences.append(f"{run.called(first.name)} has perplexity {shown} on {first.text[0].domain}.")
    members = {row.name for row in task_rows(run) if row.kind == "member"}
    counted = [d for d in run.differences if d.to == first.name and d.kind != "generation" and d.of not in members]
    verdicts = {
        verdict: sum(d.verdict == verdict for d in counted) for verdict in ("better", "worse", "within the noise")
    }
    said = [f"{count} {verdict}" for verdict, count in verdicts.items() if count]
    if said:
        listed = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
        sentences.append(f"{len(counted)} comparisons of other models with it: {listed}.")
    return " ".join(sentences) or f"{len(run.measured)} models were measured."


def evaluation_tiles(run: EvaluationRun) -> list[Tile]:
    """The first model's most important figures."""
    if not run.measured:
        return []
    first = run.models[0]
    found = [Tile("Model", count_text(first.params), f"parameters, {run.called(first.name)}")]
    if first.text:
        text = first.text[0]
        found.append(Tile("Perplexity", perplexity_text(text.perplexity), f"on {text.domain}"))
        found.append(Tile("Bits per byte", f"{text.bits_per_byte:.3f}", "comparable across tokenizers"))
    average = next((row for row in task_rows(run) if row.kind == "average"), None)
    if average and first.tasks and average.scores[0] and average.scores[0].value is not None:
        chance = "" if average.chance is None else f"; chance is {100 * average.chance:.1f}"
        found.append(Tile("Tasks", f"{100 * average.scores[0].value:.1f}", f"{average.title}, %{chance}"))
    if spent := run.result.spent:
        found.append(Tile("Time", format_seconds(spent.seconds), f"{len(run.measured)} models, with loading"))
    return found


def _title(run: EvaluationRun) -> str:
    return f"Evaluation of {run.called(run.models[0].name)}" if run.models else "Evaluation"


def evaluation_report(run: EvaluationRun) -> Report:
    """An evaluation's page."""
    options, result = run.options, run.result
    tokens = options.get("eval_tokens")
    facts = [
        str(options.get("data") or ""), f"{tokens} tokens of each text" if tokens and run.domains else "",
        f"tasks {options['tasks']}" if options.get("tasks") else "", result.precision, result.device,
    ]  # fmt: skip
    chapter = Chapter(
        [*evaluation_sections(run), Section("What was spent", [spent_table(run)]), *run.closing_sections()],
        facts=" · ".join(filter(None, facts)), headline=evaluation_headline(run), notes=run.notes,
        tiles=evaluation_tiles(run),
    )  # fmt: skip
    return Report(_title(run), "evaluation report", [chapter])


def write_evaluation_report(folder: Path) -> list[Path]:
    """Write ``evaluation.png``, ``report.md`` and ``report.html`` into an evaluation's folder, finished or not."""
    return write_report(evaluation_report(load_evaluation(folder)), folder)


def evaluation_text(result: EvaluationResult) -> str:
    """The tables of an evaluation for a terminal."""
    run = of_result(result)
    # Tasks that a group stands for would fill the terminal.
    members = {row.name for row in task_rows(run) if row.kind == "member"}
    parts: list[tuple[str, list[Table]]] = [
        ("", [models_table(run)]),
        (text_lead(run), [text_table(run)]),
        (tasks_lead(run), [tasks_table(run)]),
        (generation_lead(run), [generation_table(run)]),
        (efficiency_lead(run), [efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode")]),
        (differences_lead(run), [differences_table(run, kind, members) for kind in DIFFERENCE_KINDS]),
    ]
    lines: list[str] = []
    for lead, tables in parts:
        shown = [table for table in tables if table]
        lines += [lead] if shown and lead else []
        for table in shown:
            columns = range(len(table.header))
            texts = {place for place in columns if any(row[place][:1] not in "0123456789–+-" for row in table.rows)}
            lines += [f"{table.title}:", *aligned([table.header, *table.rows], left=texts), ""]
    lines += [f"note: {note}" for note in run.notes]
    return "\n".join(lines).rstrip() or "Nothing was measured."
