"""Proxies against the loss of a search's finalists after their short training."""

from __future__ import annotations

from slm_ray.config.units import format_count
from slm_ray.report.blocks import Block, Drawing, Fold, Rows, Section
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.panels import Panel, PanelPoint, panels_data
from slm_ray.report.records import mapping, number
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING, count_text

_LEAD = (
    "What the search measured of each finalist, against its loss on the calibration text after short training. Few "
    "finalists say little: slm_ray.proxies trains more candidates and gives intervals."
)
_SIZES = ("params", "flops", "kv_bytes")


def _trained(model: Model) -> float | None:
    return number(mapping(model.detail("short_training")).get("loss"))


def _values(run: RunRecords, model: Model) -> dict[str, float]:
    """Every proxy that was measured of a finalist, and its sizes."""
    by_trial = {candidate.trial: candidate for candidate in run.candidates}
    measured = mapping(by_trial[model.trial].detail("measurements")) if model.trial in by_trial else {}
    values = {name: number(mapping(entry).get("value")) for name, entry in measured.items()}
    values |= {"params": model.params}
    return {name: value for name, value in values.items() if value is not None}


def rank_sentence(xs: list[float], ys: list[float]) -> str:
    """Kendall's tau-b and Spearman's rho as scipy gives them; says so where they are undefined."""
    from scipy import stats

    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return "too few different values for a rank correlation"
    tau, rho = stats.kendalltau(xs, ys).statistic, stats.spearmanr(xs, ys).statistic
    return f"tau {tau:+.2f}, rho {rho:+.2f} over {len(xs)} finalists: too few for an interval"


def finalists_section(run: RunRecords, key: str = "finalists") -> Section:
    """A panel per proxy; empty where no finalist was trained."""
    title = "Proxies against the finalists' trained quality"
    trained = [(model, loss) for model in run.front if (loss := _trained(model)) is not None]
    if len(trained) < 2:
        return Section(title, [])
    values = [_values(run, model) for model, _ in trained]
    names = [name for name in values[0] if all(name in other for other in values)]
    panels = []
    for name in names:
        xs, ys = [found[name] for found in values], [loss for _, loss in trained]
        points = [
            PanelPoint(x, y, model.name, (f"{name} {count_text(x) if name in _SIZES else f'{x:.4g}'}", f"loss {y:.4f}"))
            for x, y, (model, _) in zip(xs, ys, trained, strict=True)
        ]
        sign = [-x for x in xs] if name in _SIZES else xs
        panels.append(Panel(name, rank_sentence(sign, ys), name, "Loss after training", tuple(points)))
    rows = tuple(
        (
            model.name, count_text(model.params), f"{loss:.4f}",
            _optional(mapping(model.detail("short_training")).get("first_loss")),
            format_count(number(mapping(model.detail("short_training")).get("tokens")) or 0),
        )
        for model, loss in trained
    )  # fmt: skip
    table = Table("Finalists", ("model", "parameters", "loss after", "loss before", "tokens"), rows)
    blocks: list[Block] = [Drawing(key, "panels", panels_data(panels)), Fold("Finalists as a table", [Rows(table)])]
    return Section(title, blocks, _LEAD)


def _optional(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.4f}"
