"""The dashboard in W&B's own types: a saved view of a project's workspace, or a report; checked without a network."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.redact import redact
from slm_ray.report import dashboard as spec

NAME = "slm_ray"
WORKSPACE, REPORT = "workspace", "report"
_WIDE, _HALF, _HIGH = 24, 12, 8  # of the 24 columns of a report's grid


def _wandb_workspaces() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'slm-ray[wandb]'") from error
    return reports, workspaces


def build(kind: str, entity: str, project: str, sections: Sequence[spec.Section] = spec.SECTIONS) -> Any:
    """A workspace or a report; nothing is sent.

    Args:
        kind: ``workspace`` or ``report``.
        entity: The W&B user or team; empty where nothing is to be saved (a report then asks nobody for its project).
        project: The W&B project.
        sections: What it shows.

    Raises:
        UserError: wandb-workspaces is missing.
    """
    reports, workspaces = _wandb_workspaces()
    if kind == REPORT:
        return _report(reports, entity, project, sections)
    found = [
        workspaces.Section(name=section.name, panels=[_panel(reports, panel) for panel in section.panels], is_open=True)
        for section in sections
    ]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=found)


def _report(reports: Any, entity: str, project: str, sections: Sequence[spec.Section]) -> Any:
    blocks = [reports.TableOfContents()]
    for section in sections:
        kinds = ", ".join(f"'{kind}'" for kind in section.job_types)
        runs = reports.Runset(
            entity=entity, project=project, name=section.name, filters=f"Metric('JobType') in [{kinds}]"
        )
        panels = [_panel(reports, panel) for panel in section.panels]
        _lay_out(reports, panels, section.panels)
        grid = reports.PanelGrid(runsets=[runs], panels=panels)
        blocks += [reports.H2(text=section.name), reports.P(text=section.text), grid]
    return reports.Report(
        entity=entity, project=project, title=NAME, blocks=blocks, width="fluid",
        description="Searches, trainings, evaluations and sweeps of slm_ray.",
    )  # fmt: skip


def _lay_out(reports: Any, panels: Sequence[Any], described: Sequence[spec.Panel]) -> None:
    """Two panels in a row; tables take a whole one."""
    x = y = 0
    for panel, one in zip(panels, described, strict=True):
        width = _WIDE if one.kind in (spec.TABLE, spec.PARALLEL, spec.COMPARER) else _HALF
        if x + width > _WIDE:
            x, y = 0, y + _HIGH
        panel.layout = reports.Layout(x=x, y=y, w=width, h=_HIGH)
        x += width


def _figure(reports: Any, key: str) -> Any:
    """A figure of a run as a whole: one of its options, or the last value of what it logged."""
    if key.startswith(spec.CONFIG):
        return reports.Config(key.removeprefix(spec.CONFIG))
    return reports.SummaryMetric(key)


def _panel(reports: Any, panel: spec.Panel) -> Any:
    log = {"log_x": panel.log_x or None, "log_y": panel.log_y or None}
    if panel.kind == spec.LINE:
        return reports.LinePlot(title=panel.title, x=panel.x, y=list(panel.y), **log)
    if panel.kind == spec.SCATTER:
        x, y = _figure(reports, str(panel.x)), _figure(reports, panel.y[0])
        return reports.ScatterPlot(title=panel.title, x=x, y=y, **log)
    if panel.kind == spec.BARS:
        return reports.BarPlot(title=panel.title, metrics=list(panel.y))
    if panel.kind == spec.PARALLEL:
        columns = [reports.ParallelCoordinatesPlotColumn(metric=_figure(reports, key)) for key in panel.y]
        return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    if panel.kind == spec.COMPARER:
        return reports.RunComparer(diff_only=True)
    if panel.kind == spec.TABLE:
        return reports.WeavePanelSummaryTable(table_name=panel.y[0])
    if panel.kind == spec.PICTURES:
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.y))
    raise ValueError(f"a panel of kind {panel.kind} cannot be drawn")


def specification(built: Any) -> dict[str, Any]:
    """What W&B would be sent, checked against wandb-workspaces' own models.

    Args:
        built: Of :func:`build`.

    Raises:
        UserError: A panel would not come back as what it is.
    """
    kind = WORKSPACE if hasattr(built, "sections") else REPORT
    model = built._to_model()
    text = model.spec.model_dump_json(by_alias=True, exclude_none=True)
    type(model.spec).model_validate_json(text)
    again = type(built)._from_model(type(model).model_validate(model.model_dump(by_alias=True, exclude_none=True)))
    before, after = _kinds(built), _kinds(again)
    if before != after:
        raise UserError(f"wandb-workspaces does not give back what it took ({before} became {after}): update it")
    return {"kind": kind, "name": NAME, "entity": built.entity or None, "project": built.project,
            "spec": json.loads(text)}  # fmt: skip


def _kinds(built: Any) -> list[str]:
    """The types of all panels, in order; a table's is that of any panel with an expression."""
    if hasattr(built, "sections"):
        groups = [section.panels for section in built.sections]
    else:
        groups = [block.panels for block in built.blocks if type(block).__name__ == "PanelGrid"]
    return [type(panel).__name__.replace("WeavePanelSummaryTable", "WeavePanel") for group in groups for panel in group]


def save(built: Any) -> str:
    """Save a workspace or a report, and give its address.

    Raises:
        UserError: W&B does not take it.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            built.save()
            return str(built.url)
    except Exception as error:  # wandb raises many types: no network, no such entity, no permission
        reason = redact(f"{type(error).__name__}: {first_line(error, 160)}")
        raise UserError(
            f"W&B did not take the dashboard ({reason}): check the network, --entity and --project; --spec FILE writes "
            "it to a file"
        ) from error


def default_entity() -> str:
    """The user's or the team's name that W&B knows the key by.

    Raises:
        UserError: W&B does not say.
    """
    try:
        import wandb

        name = wandb.Api().default_entity
    except Exception as error:  # as in save
        raise UserError(f"W&B cannot be asked who you are ({type(error).__name__}): give --entity NAME") from error
    if not name:
        raise UserError("W&B does not say who you are: give --entity NAME")
    return str(name)
