"""How a sweep ends: one table in four forms, its plots and analyses, and the copies that W&B gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.errors import UserError
from slm_ray.records.base import write_record
from slm_ray.records.files import write_text
from slm_ray.records.metric_names import SWEEP_TABLE
from slm_ray.records.sweep import SweepResult
from slm_ray.runtime.progress import Console
from slm_ray.runtime.trackers import make_tracker
from slm_ray.studies.launching import Outcome
from slm_ray.studies.metrics import Row
from slm_ray.studies.plan_search import Range
from slm_ray.studies.plot_data import Findings, best_lines, make_plot
from slm_ray.studies.plots import draw
from slm_ray.studies.points import Point
from slm_ray.studies.scaling_plots import add_scaling
from slm_ray.studies.sweep_file import SweepFile
from slm_ray.studies.table import as_markdown, as_text, columns_of, curve_rows, point_rows, write_table

TABLE, CURVES = "table", "curves"


def table_rows(sweep: SweepFile, points: Sequence[Point], run: Path, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """The table of a sweep."""
    return [row for point in points
            for row in point_rows(sweep.name, point, run, outcomes, is_single=sweep.is_single)]  # fmt: skip


def find_all(specs: Sequence[Mapping[str, Any]], rows: Sequence[Row], curves: Sequence[Row]) -> Findings:
    """Every plot and analysis; one that cannot be made says why and stops no other."""
    findings = Findings()
    done = [row for row in rows if row.get("status") == "done"]
    for number, spec in enumerate(specs):
        name = str(spec.get("name") or f"plot-{number}")
        try:
            if spec.get("analysis") == "scaling":
                add_scaling(findings, name, spec, done)
            elif spec.get("analysis") == "best":
                findings.lines += best_lines(spec, done)
            else:
                findings.plots.append(make_plot(name, spec, curves if spec.get("curves") else done))
        except UserError as error:
            findings.lines.append(f"{name}: {error}")
    return findings


def write_results(
    sweep: SweepFile, points: Sequence[Point], run: Path, outcomes: Mapping[str, Outcome], command: str
) -> tuple[list[Row], Findings, list[Path]]:
    """Write the table, the curves, the plots, the page and ``sweep.json``, the last one last."""
    rows = table_rows(sweep, points, run, outcomes)
    curves = [row for point in points for row in curve_rows(point, run)]
    write_table(run, TABLE, rows)
    if curves:
        write_table(run, CURVES, curves)
    findings = find_all(sweep.plots, rows, curves)
    pictures = [draw(plot, run) for plot in findings.plots]
    write_text(
        run / f"{TABLE}.txt", "\n".join([as_text(rows), *(["", *findings.lines] if findings.lines else [])]) + "\n"
    )
    write_text(run / f"{TABLE}.md", _page(sweep, rows, findings, pictures, command))
    states = [row["status"] for row in rows]
    write_record(run, SweepResult(
        name=sweep.name, scale=sweep.scale or None, command=command, points=len(points), rows=len(rows),
        states={state: states.count(state) for state in dict.fromkeys(states)},
        pictures=tuple(picture.name for picture in pictures), found=tuple(findings.lines), figures=findings.figures,
    ))  # fmt: skip
    return rows, findings, pictures


def _page(sweep: SweepFile, rows: Sequence[Row], findings: Findings, pictures: Sequence[Path], command: str) -> str:
    scale = f", scale {sweep.scale}" if sweep.scale else ""
    lines = [f"# {sweep.name}{scale}", "", *([sweep.about.strip(), ""] if sweep.about else []), f"    {command}", ""]
    lines += [as_markdown(rows), ""]
    lines += [*(f"    {line}" for line in findings.lines), ""] if findings.lines else []
    lines += [text for picture in pictures for text in (f"![{picture.stem}]({picture.name})", "")]
    return "\n".join(lines)


def track(
    sweep: SweepFile, kind: str, run: Path, rows: Sequence[Row], pictures: Sequence[Path], console: Console
) -> None:  # fmt: skip
    """Send the table and the pictures; the points' own runs are in the same group."""
    tracker = make_tracker(
        kind, run, group=sweep.name, job_type="sweep", tags=[sweep.name, *([sweep.scale] if sweep.scale else [])],
        config={"sweep": sweep.name, "scale": sweep.scale}, say=console.line,
    )  # fmt: skip
    for number, row in enumerate(rows):
        numbers: dict[str, float] = {name: float(value) for name, value in row.items()
                                     if isinstance(value, (int, float)) and not isinstance(value, bool)}  # fmt: skip
        tracker.log(numbers, step=number)
    columns = columns_of(rows)
    tracker.table(SWEEP_TABLE, columns, [[_sent(row.get(name)) for name in columns] for row in rows])
    for picture in pictures:
        tracker.image(picture.stem, picture)
    tracker.finish()


def _sent(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def wandb_sweep(sweep: SweepFile) -> str:
    """The YAML that ``wandb sweep`` takes: agents then run the stage's own command.

    W&B knows products of values, and ranges to draw from; no steps, no zipped lists and no fixed number of tries.
    """
    if not sweep.is_single:
        raise UserError("a W&B sweep runs one command, and this sweep has several steps: run it with slm-ray sweep")
    if len(sweep.groups) != 1 or any(len(one) > 1 for axis in sweep.groups[0].axes for one in axis):
        raise UserError(
            "a W&B sweep is a product of values, and this one has groups, zip or points: give it a grid only"
        )
    if sweep.search is not None and sweep.search.by:
        raise UserError("a W&B sweep cannot have ranges that depend on another option: leave them out")
    (step,) = sweep.steps
    variables = sweep.variables
    parameters: dict[str, Any] = {}
    for name, value in step.options.items():
        given = variables.get(str(value)[2:-1], value) if str(value).startswith("${") else value
        parameters[_flag(name)] = {"value": given}
    for axis in sweep.groups[0].axes:
        (name,) = axis[0]
        parameters[_flag(sweep.shown(name))] = {"values": [one[name] for one in axis]}
    method = "grid"
    if sweep.search is not None:
        method = "random"
        for name, spans in sweep.search.ranges.items():
            parameters[_flag(sweep.shown(name))] = _distribution(spans[""])
    content = {
        "name": sweep.name, "description": sweep.about or None, "method": method,
        "metric": {"name": "eval/loss", "goal": "minimize"}, "parameters": parameters,
        # Flags without a value for what is true, and nothing for what is false: as our commands take them.
        "command": ["${env}", "python", "-m", f"slm_ray.{step.stage.name}", "--tracker=wandb",
                    "${args_no_boolean_flags}"],
    }  # fmt: skip
    return yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _distribution(span: Range) -> dict[str, Any]:
    if span.choices:
        return {"values": list(span.choices)}
    if span.whole:
        return {"distribution": "int_uniform", "min": int(span.low), "max": int(span.high)}
    return {"distribution": "log_uniform_values" if span.log else "uniform", "min": span.low, "max": span.high}
