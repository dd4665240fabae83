"""The report on proxies: each against the loss after training, from a correlation run's records alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.records.files import write_bytes, write_text
from slm_ray.report.blocks import Block, Chapter, Drawing, Picture, Report, Rows, Section
from slm_ray.report.costs import Cost
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.matching import format_flops
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.panels import Panel, PanelPoint, draw_panels, panels_data
from slm_ray.report.records import items, mapping, number, read_lines, read_part
from slm_ray.report.tables import Table, without_empty_columns
from slm_ray.report.wording import MISSING, count_text
from slm_ray.runtime.runfolder import CONFIG_FILE, ENVIRONMENT_FILE

CANDIDATES_FILE, CORRELATIONS_FILE = "candidates.jsonl", "correlations.json"
PROXIES_PICTURE = "proxies.png"
_SIZES = ("params", "flops", "kv_bytes")
_LEAD = (
    "Each point is a trained candidate: what a proxy said of it, against its held-out loss after training. Kendall's "
    "tau and Spearman's rho are turned so that 1 means that the proxy ranks as training does; the ranges are 95% "
    "intervals from resampling candidates. Compare proxies only where these do not overlap."
)


@dataclass(frozen=True)
class ProxyRecords:
    """Everything that a correlation run's folder says.

    Attributes:
        candidates: The last record of each candidate, trained or failed.
        correlations: ``correlations.json``; empty where the run has not finished.
    """

    folder: Path
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    candidates: tuple[Mapping[str, Any], ...]
    correlations: Mapping[str, Any]

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """The candidates whose training is done and whose loss is a number."""
        return [c for c in self.candidates if c.get("status") == "done" and number(c.get("loss")) is not None]

    @property
    def names(self) -> list[str]:
        """The proxies, in the order reported."""
        listed = [str(entry.get("name")) for entry in items(self.correlations.get("proxies"))]
        return list(dict.fromkeys([*listed, *(name for c in self.trained for name in mapping(c.get("proxies")))]))


def is_proxies_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder holds a correlation run, finished or not."""
    return (folder / CORRELATIONS_FILE).is_file() or {"proxies", "candidates", "run"} <= set(config)


def load_proxies(folder: Path) -> ProxyRecords:
    """Read a correlation run's folder as far as it goes.

    Args:
        folder: What ``slm_ray.proxies`` was given as ``--out``.

    Raises:
        UserError: The folder holds no such run.
    """
    notes: list[str] = []
    config = read_part(folder / CONFIG_FILE, notes) or {}
    if not is_proxies_run(folder, config):
        raise UserError(f"{folder} holds no report on proxies: give the folder that slm_ray.proxies wrote")
    correlations = read_part(folder / CORRELATIONS_FILE, notes)
    last = {record.get("trial"): record for record in read_lines(folder / CANDIDATES_FILE, notes)}
    if correlations is None:
        notes.append(
            f"This run has not finished ({CORRELATIONS_FILE} is missing or damaged): its {len(last)} trained "
            "candidates are shown, without correlations; continue it with --resume"
        )
    return ProxyRecords(
        folder, tuple(notes), {k: v for k, v in config.items() if k != "command"},
        read_part(folder / ENVIRONMENT_FILE, notes) or {}, tuple(last.values()), correlations or {},
    )  # fmt: skip


def _entry(run: ProxyRecords, name: str) -> Mapping[str, Any]:
    return next((e for e in items(run.correlations.get("proxies")) if e.get("name") == name), {})


def _correlation(entry: Mapping[str, Any], statistic: str, target: str = "after") -> str:
    found = mapping(mapping(entry.get(target)).get(statistic))
    value, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return "undefined" if found else MISSING
    return f"{value:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if low is not None and high is not None else "")


def _panel(run: ProxyRecords, name: str) -> Panel:
    entry, points = _entry(run, name), []
    for candidate in run.trained:
        measured = mapping(mapping(candidate.get("proxies")).get(name))
        value, loss = number(measured.get("value")), number(candidate.get("loss"))
        if value is not None and loss is not None:
            shown = count_text(value) if name in _SIZES else f"{value:.5g}"
            params = count_text(number(mapping(candidate.get("cost")).get("params")))
            facts = (f"{name} {shown}", f"loss {loss:.4f}", f"{params} parameters")
            points.append(PanelPoint(value, loss, f"trial {candidate.get('trial')}", facts))
    note = "no correlation yet"
    if entry:
        note = f"tau {_correlation(entry, 'kendall')}, rho {_correlation(entry, 'spearman')}"
    return Panel(name, note, name, "Loss after training", tuple(points))


def proxy_panels(run: ProxyRecords) -> list[Panel]:
    """A small picture per proxy, those without points left out."""
    return [panel for name in run.names if (panel := _panel(run, name)).points]


def correlations_table(run: ProxyRecords) -> Table:
    """A row per proxy: correlations with the loss after and before training, and what the proxy costs."""
    header = (
        "proxy", "promises a lower loss", "tau after", "rho after", "tau before", "rho before", "FLOPs/candidate",
        "time/candidate", "FLOPs once",
    )  # fmt: skip
    rows = []
    for name in run.names:
        entry = _entry(run, name)
        cost = mapping(entry.get("cost"))
        flops, seconds, shared = (
            number(cost.get(key)) for key in ("flops_per_candidate", "seconds_per_candidate", "shared_flops")
        )
        texts = [_correlation(entry, s, t) for t in ("after", "before") for s in ("kendall", "spearman")]
        rows.append((
            name, str(entry.get("promises_lower_loss") or MISSING), *texts,
            format_flops(flops) if flops else MISSING, format_seconds(seconds) if seconds else MISSING,
            format_flops(shared) if shared else MISSING,
        ))  # fmt: skip
    training = mapping(run.correlations.get("training_cost"))
    if training:
        flops, seconds = (number(training.get(key)) for key in ("flops_per_candidate", "seconds_per_candidate"))
        rows.append((
            "short training", *[MISSING] * 5, format_flops(flops or 0.0), format_seconds(seconds or 0.0), MISSING,
        ))  # fmt: skip
    return without_empty_columns(Table("Rank correlations", header, tuple(rows)))


def candidates_table(run: ProxyRecords) -> Table:
    """A row per candidate."""
    rows = tuple(
        (
            f"trial {c.get('trial')}", count_text(number(mapping(c.get("cost")).get("params"))),
            _loss(c.get("first_loss")), _loss(c.get("loss")), count_text(number(c.get("tokens"))),
            str(c.get("error") or c.get("status")),
        )
        for c in run.candidates
    )  # fmt: skip
    header = ("candidate", "parameters", "loss before", "loss after", "tokens", "state")
    return Table("The candidates", header, rows)


def _loss(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.4f}"


def proxy_sections(run: ProxyRecords, prefix: str = "", file: str = PROXIES_PICTURE) -> list[Section]:
    """Everything that the report shows, but for its command and environment."""
    panels, table, candidates = proxy_panels(run), correlations_table(run), candidates_table(run)
    figure = Drawing(f"{prefix}proxies", "panels", panels_data(panels))
    drawn: list[Block] = [figure, Picture(file, "Each proxy against the loss after training")]
    return [
        Section("Proxies against trained quality", [*(drawn if panels else []), Rows(table)], _LEAD),
        Section(candidates.title, [Rows(candidates)]),
    ]


def proxy_costs(run: ProxyRecords, name: str = "") -> list[Cost]:
    """What measuring and training the candidates cost."""
    done = [c for c in run.candidates if number(c.get("flops")) is not None]
    if not done:
        return []
    entries = [mapping(e) for c in done for e in mapping(c.get("proxies")).values()]
    costs = [mapping(entry.get("cost")) for entry in items(run.correlations.get("proxies"))]
    shared = sum(number(cost.get("shared_flops")) or 0.0 for cost in costs)
    return [
        Cost("proxies of all candidates", _sum(entries, "seconds"), _sum(entries, "flops") + shared, run=name),
        Cost("short training of all candidates", _sum(done, "seconds"), _sum(done, "flops"), run=name),
    ]


def _sum(records: list[Mapping[str, Any]], name: str) -> float:
    return sum(number(record.get(name)) or 0.0 for record in records)


def proxy_chapter(run: ProxyRecords, prefix: str = "", file: str = PROXIES_PICTURE) -> Chapter:
    """A correlation run's part of a page."""
    command = run.correlations.get("command")
    tokens = number(run.correlations.get("tokens"))
    facts = [
        f"candidates of {run.config['run']}" if run.config.get("run") else "",
        f"{format_count(tokens)} tokens of training each" if tokens else "", f"{len(run.trained)} trained candidates",
    ]  # fmt: skip
    sections = [
        *proxy_sections(run, prefix, file),
        reproduce_section(str(command) if command else None, (), "The command is recorded when a run finishes."),
        environment_section(run.environment, run.config),
    ]
    return Chapter(sections, facts=" · ".join(filter(None, facts)), headline=_headline(run), notes=run.notes)


def _headline(run: ProxyRecords) -> str:
    found = [
        (value, str(entry.get("name")))
        for entry in items(run.correlations.get("proxies"))
        if (value := number(mapping(mapping(entry.get("after")).get("kendall")).get("value"))) is not None
    ]
    if not found:
        return "No correlation is known yet."
    value, name = max(found)
    text = _correlation(_entry(run, name), "kendall")
    return f"{name} ranks most like training: Kendall's tau {text} over {len(run.trained)} candidates."


def proxy_report(run: ProxyRecords) -> Report:
    """The whole report."""
    return Report("Proxies against trained quality", "report on proxies", [proxy_chapter(run)], PROXIES_PICTURE)


def write_proxy_report(run: ProxyRecords) -> list[Path]:
    """Make ``proxies.png``, ``report.md`` and ``report.html`` in the run's folder.

    Raises:
        UserError: They cannot be written.
    """
    paths = [run.folder / name for name in (PROXIES_PICTURE, "report.md", "report.html")]
    write_bytes(paths[0], draw_panels(proxy_panels(run), "Proxies against trained quality"))
    report = proxy_report(run)
    write_text(paths[1], markdown_of(report))
    write_text(paths[2], page_of(report))
    return paths
