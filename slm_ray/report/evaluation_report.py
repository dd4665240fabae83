"""The page of an evaluation, and its tables for a terminal."""

from __future__ import annotations

from pathlib import Path

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_seconds
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.report.charts import Picture, draw_png
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
from slm_ray.report.evaluation_tasks import task_rows, tasks_by_model, tasks_lead, tasks_table
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.render import write_report
from slm_ray.report.text import count_text, perplexity_text

_ALT = "Bits per byte, scores of tasks, and efficiency against quality, by model"
_SCATTER_LEAD = "What a model costs against what it can do; the vertical line is a 95% interval."


def _drawn(key: str, picture: Picture | None, alt: str, *blocks: Block) -> list[Block]:
    return [Figure(key, picture, "", alt), *blocks] if picture else list(blocks)


def evaluation_sections(run: EvaluationRun, prefix: str = "", file: str = EVALUATION_PICTURE) -> list[Section]:
    """Everything that an evaluation's report shows, but for its cost, environment and command."""
    members, found = tasks_table(run, members=True), samples(run)
    differences: list[Block] = [
        Figure(f"{prefix}differences-{place}", picture, "", "Differences with their 95% intervals")
        for place, picture in enumerate(difference_pictures(run))
    ]
    tables = [table for kind in DIFFERENCE_KINDS if (table := differences_table(run, kind))]
    differences += [Fold(f"Differences as a table: {table.title.lower()}", [table]) for table in tables]
    efficiency = [
        table for table in (efficiency_table(run), speed_table(run, "prefill"), speed_table(run, "decode")) if table
    ]
    notes = [f"{run.called(m.name)}: {note}" for m in run.models if m.efficiency for note in m.efficiency.notes]
    scatter = efficiency_picture(run) if efficiency else None
    first = run.called(run.models[0].name) if run.models else "the first model"
    generation = generation_table(run)
    return [
        Section("The models", [*_summary_picture(run, file), models_table(run)]),
        Section("Held-out text", _drawn(f"{prefix}text", text_picture(run), "Bits per byte by text", text_table(run)),
                text_lead(run)),
        Section("Tasks", _drawn(f"{prefix}tasks", tasks_picture(run), "Scores with their intervals", tasks_table(run),
                                *([Fold(members.title, [members])] if members else [])),
                f"{tasks_lead(run)} The best of a row is bold."),
        Section(f"Against {first}", differences, differences_lead(run)),
        Section("Generation", [generation, *([Fold(f"The first {len(found)} prompts, side by side", [Samples(found)])]
                                            if found else [])] if generation else [], generation_lead(run)),
        Section("Efficiency", [
            *([Text(_SCATTER_LEAD, small=True)] if scatter else []),
            *_drawn(f"{prefix}efficiency", scatter, "A cost against a quality, by model", *efficiency),
            *(Text(note, small=True) for note in notes),
        ] if efficiency else [], efficiency_lead(run)),
    ]  # fmt: skip


def _summary_picture(run: EvaluationRun, file: str) -> list[Block]:
    """The PNG, which only Markdown shows: the page has its parts with their sections."""
    return [Figure("", Picture(()), file, _ALT)] if file and run.measured else []


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


def evaluation_chapter(run: EvaluationRun, prefix: str = "", file: str = EVALUATION_PICTURE) -> Chapter:
    """An evaluation's part of a page."""
    options, result = run.result.config, run.result
    tokens = options.get("eval_tokens")
    facts = [
        str(options.get("data") or ""), f"{tokens} tokens of each text" if tokens and run.domains else "",
        f"tasks {options['tasks']}" if options.get("tasks") else "", result.precision, result.device,
    ]  # fmt: skip
    sections = [
        *evaluation_sections(run, prefix, file), Section("What was spent", [spent_table(run)]),
        reproduce_section(result.command), environment_section(result.environment, options),
    ]  # fmt: skip
    return Chapter(
        sections, facts=" · ".join(fact for fact in facts if fact), headline=evaluation_headline(run), notes=run.notes,
        tiles=evaluation_tiles(run),
    )  # fmt: skip


def evaluation_png(run: EvaluationRun) -> bytes:
    """Bits per byte, scores of tasks, and efficiency against quality, those that there are, as a PNG."""
    found = [picture for picture in (text_picture(run), tasks_picture(run), efficiency_picture(run)) if picture]
    return draw_png(found, _title(run), columns=min(max(len(found), 1), 3))


def _title(run: EvaluationRun) -> str:
    return f"Evaluation of {run.called(run.models[0].name)}" if run.models else "Evaluation"


def write_evaluation(run: EvaluationRun, folder: Path) -> list[Path]:
    """Write ``evaluation.png``, ``report.md`` and ``report.html`` into a folder."""
    pictures = {EVALUATION_PICTURE: evaluation_png(run)}
    return write_report(Report(_title(run), "evaluation report", [evaluation_chapter(run)], pictures), folder)


def write_evaluation_report(folder: Path) -> list[Path]:
    """The same from an evaluation's folder, of one that has finished or not."""
    return write_evaluation(load_evaluation(folder), folder)


def evaluation_text(result: EvaluationResult) -> str:
    """The tables of an evaluation for a terminal."""
    run = of_result(result)
    # Tasks that a group stands for would fill the terminal.
    members = {row.name for row in task_rows(run) if row.kind == "member"}
    parts: list[tuple[str, list[Table]]] = [
        ("", [models_table(run)]),
        (text_lead(run), [text_table(run)]),
        (tasks_lead(run), [tasks_by_model(run)]),
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
