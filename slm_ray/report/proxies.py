"""The report on proxies: each against the loss after training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.units import format_count, format_seconds
from slm_ray.records.proxies import ProxyCorrelation, ProxyReport, RankCorrelation, TrainedCandidate
from slm_ray.report.charts import Picture, Row, scatter
from slm_ray.report.content import Chapter, Figure, Report, Section, Table
from slm_ray.report.placing import axis_over
from slm_ray.report.reading import RunReader, RunRecords
from slm_ray.report.text import MISSING, count_text, fixed, flops_text

PROXIES_PICTURE = "proxies.png"
TITLE = "Proxies against trained quality"
_SIZES = ("params", "flops", "kv_bytes")
_LEAD = (
    "Each point is a trained candidate: what a proxy said of it, against its held-out loss after training. Kendall's "
    "tau and Spearman's rho are turned so that 1 means that the proxy ranks as training does; the ranges are 95% "
    "intervals from resampling candidates. Compare proxies only where these do not overlap."
)


@dataclass(frozen=True)
class ProxyRun(RunRecords):
    """What a report on proxies has in its folder."""

    candidates: tuple[TrainedCandidate, ...]  # the last record of each, trained or failed
    report: ProxyReport | None  # None for a run that has not finished

    @property
    def trained(self) -> list[TrainedCandidate]:
        """The candidates whose training is done."""
        return [one for one in self.candidates if one.status == "done" and one.loss is not None]

    @property
    def names(self) -> list[str]:
        """The proxies, in the order reported."""
        listed = [one.name for one in self.report.proxies] if self.report else []
        return list(dict.fromkeys([*listed, *(name for one in self.trained for name in one.proxies)]))

    def entry(self, name: str) -> ProxyCorrelation | None:
        """What is reported of a proxy."""
        return next((one for one in self.report.proxies if one.name == name), None) if self.report else None


def load_proxies(folder: Path) -> ProxyRun:
    """Read a report on proxies as far as it goes."""
    reader = RunReader(folder)
    report = reader.record(ProxyReport)
    last = {one.trial: one for one in reader.lines(TrainedCandidate)}
    if report is None:
        reader.notes.append(
            f"This run has not finished: its {len(last)} trained candidates are shown, without correlations; continue "
            "it with --resume"
        )
    return ProxyRun(**reader.common, candidates=tuple(last.values()), report=report)


def _correlation(found: RankCorrelation | None) -> str:
    if found is None:
        return MISSING
    if found.value is None:
        return "undefined"
    between = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"{found.value:+.2f}{between}"


def proxies_picture(run: ProxyRun) -> Picture | None:
    """A small picture per proxy; None where no candidate is trained."""
    views = []
    for name in run.names:
        rows: list[Row] = []
        for candidate in run.trained:
            if name in candidate.proxies:
                value = candidate.proxies[name].value
                shown = count_text(value) if name in _SIZES else f"{value:.5g}"
                facts = (f"trial {candidate.trial}", f"{name} {shown}", f"loss {fixed(candidate.loss)}",
                         f"{count_text(candidate.cost.params)} parameters")  # fmt: skip
                rows.append({"x": value, "y": candidate.loss, "tip": "\n".join(facts)})
        if rows:
            x = axis_over([row["x"] for row in rows], name)
            y = axis_over([row["y"] for row in rows], "Loss after training")
            views.append(scatter(rows, x, y, title=name, note=_note(run.entry(name))))
    return Picture(tuple(views), small=True) if views else None


def _note(entry: ProxyCorrelation | None) -> str:
    if entry is None:
        return "no correlation yet"
    return f"tau {_correlation(entry.after.kendall)}, rho {_correlation(entry.after.spearman)}"


def correlations_table(run: ProxyRun) -> Table:
    """A row per proxy: correlations with the loss after and before training, and what the proxy costs."""
    header = (
        "proxy", "promises a lower loss", "tau after", "rho after", "tau before", "rho before", "FLOPs/candidate",
        "time/candidate", "FLOPs once",
    )  # fmt: skip
    rows = []
    for name in run.names:
        entry = run.entry(name)
        if entry is None:
            rows.append((name, *[MISSING] * 8))
            continue
        found = [getattr(target, statistic) if target else None
                 for target in (entry.after, entry.before) for statistic in ("kendall", "spearman")]  # fmt: skip
        cost = entry.cost
        rows.append((
            name, entry.promises_lower_loss, *map(_correlation, found),
            flops_text(cost.flops_per_candidate) if cost.flops_per_candidate else MISSING,
            format_seconds(cost.seconds_per_candidate) if cost.seconds_per_candidate else MISSING,
            flops_text(cost.shared_flops) if cost.shared_flops else MISSING,
        ))  # fmt: skip
    if run.report:
        cost = run.report.training_cost
        spent = (flops_text(cost.flops_per_candidate), format_seconds(cost.seconds_per_candidate), MISSING)
        rows.append(("short training", *[MISSING] * 5, *spent))
    return Table("Rank correlations", header, tuple(rows)).compact()


def candidates_table(run: ProxyRun) -> Table:
    """A row per candidate."""
    rows = tuple(
        (
            f"trial {one.trial}", count_text(one.cost.params), fixed(one.first_loss), fixed(one.loss),
            count_text(one.tokens), one.error or one.status,
        )
        for one in run.candidates
    )  # fmt: skip
    return Table("The candidates", ("candidate", "parameters", "loss before", "loss after", "tokens", "state"), rows)


def _headline(run: ProxyRun) -> str:
    entries = run.report.proxies if run.report else ()
    known = [(one.after.kendall.value, one) for one in entries if one.after.kendall.value is not None]
    if not known:
        return "No correlation is known yet."
    _, best = max(known, key=lambda pair: (pair[0], pair[1].name))
    shown = _correlation(best.after.kendall)
    return f"{best.name} ranks most like training: Kendall's tau {shown} over {len(run.trained)} candidates."


def proxies_report(run: ProxyRun) -> Report:
    """The page of a report on proxies."""
    tokens = f"{format_count(run.report.tokens)} tokens of training each" if run.report else ""
    facts = [f"candidates of {run.options['run']}" if run.options.get("run") else "", tokens,
             f"{len(run.trained)} trained candidates"]  # fmt: skip
    seen = "Each proxy against the loss after training"
    drawn = Figure("proxies", proxies_picture(run), seen, PROXIES_PICTURE, TITLE, columns=3)
    candidates = candidates_table(run)
    sections = [
        Section(TITLE, [drawn, correlations_table(run)], _LEAD), Section(candidates.title, [candidates]),
        *run.closing_sections(),
    ]  # fmt: skip
    chapter = Chapter(sections, facts=" · ".join(filter(None, facts)), headline=_headline(run), notes=run.notes)
    return Report(TITLE, "report on proxies", [chapter])
