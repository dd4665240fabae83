"""Scaling laws of a sweep's table: the fits, what they say, and their plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.studies.plot_data import Findings, PlotData, as_number, column
from slm_ray.studies.scaling import RESAMPLES, Fit, describe_fit, fit_curve, fit_law, middle, to_json
from slm_ray.studies.table import Row

_POINTS = 60  # of a drawn curve
_CURVE_RESAMPLES = 50


def add_scaling(findings: Findings, name: str, spec: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Fit L(N, D) over all rows and L(D) of every size, and add plots and sentences."""
    if not rows:
        raise UserError("there are no finished points to fit")
    names = [column(str(spec.get(key) or key), rows) for key in ("params", "tokens", "loss")]
    found = [[as_number(row.get(one)) for one in names] for row in rows]
    numbers = [(n, d, loss) for n, d, loss in found if n is not None and d is not None and loss is not None]
    n, d, loss = (np.array(one) for one in zip(*numbers, strict=True)) if numbers else (np.array([]),) * 3
    resamples = int(spec.get("resamples") or RESAMPLES)
    fit = fit_law(n.tolist(), d.tolist(), loss.tolist(), resamples=resamples)
    computes = [value for one in spec.get("flops") or _computes(n, d) if (value := as_number(one)) is not None]
    findings.lines += describe_fit(fit, computes)
    findings.figures[name] = to_json(fit) | {
        "splits": [
            {"flops": one, "params": params, "tokens": tokens}
            for one in ([] if fit.undetermined() else computes)
            for params, tokens in [fit.law.best_split(one)]
        ]
    }  # fmt: skip
    findings.plots.append(_by_tokens(name, fit, n, d, loss))
    if not fit.undetermined():
        findings.plots.append(_best_split(name, fit, n, d))
    findings.lines += _curves(n, d, loss, resamples)


def _computes(n: Any, d: Any) -> list[float]:
    """The computes of the runs themselves, the least and the greatest, and ten times that."""
    spent = 6 * n * d
    return [float(spent.min()), float(spent.max()), float(10 * spent.max())]


def _rows(series: str, style: str, **columns: Any) -> list[Row]:
    """Rows of a plot from columns of equal length."""
    return [{"series": series, "style": style, **dict(zip(columns, map(float, values), strict=True))}
            for values in zip(*columns.values(), strict=True)]  # fmt: skip


def _by_tokens(name: str, fit: Fit, n: Any, d: Any, loss: Any) -> PlotData:
    rows, law = list[Row](), fit.law
    places = np.geomspace(d.min() / 1.5, d.max() * 3, _POINTS)
    for size in np.unique(n):
        label, at = format_count(float(size)), n == size
        order = np.argsort(d[at])
        low, high = fit.band(np.full_like(places, size), places)
        rows += _rows(label, "marks", x=d[at][order], y=loss[at][order])
        rows += _rows(label, "fit", x=places, y=law.loss(size, places), low=low, high=high)
    title = f"L(N, D) = {law.e:.3g} + {law.a:.3g}/N^{law.alpha:.3g} + {law.b:.3g}/D^{law.beta:.3g}, 95% bands"
    return PlotData(f"{name}-loss", title, "tokens trained on (D)", "held-out loss (nats per token)", True, True,
                    tuple(rows))  # fmt: skip


def _best_split(name: str, fit: Fit, n: Any, d: Any) -> PlotData:
    spent = 6 * n * d
    computes = np.geomspace(spent.min(), spent.max() * 100, _POINTS)
    low, high = zip(*(fit.split_interval(float(one))[0] for one in computes), strict=True)
    best = [fit.law.best_split(float(one))[0] for one in computes]
    rows = _rows("best size, 95% band", "fit", x=computes, y=best, low=low, high=high)
    rows += _rows("runs", "marks", x=spent, y=n)
    return PlotData(f"{name}-split", "The best split of a compute", "FLOPs of training (6 N D)", "parameters (N)", True,
                    True, tuple(rows))  # fmt: skip


def _curves(n: Any, d: Any, loss: Any, resamples: int) -> list[str]:
    """L(D) of every size that has enough budgets."""
    lines = []
    for size in np.unique(n):
        at, label = n == size, format_count(float(size))
        try:
            law, others = fit_curve(d[at].tolist(), loss[at].tolist(), resamples=min(resamples, _CURVE_RESAMPLES))
        except UserError as error:
            lines.append(f"L(D) of {label}: {error}")
            continue
        e, beta = middle([one.e for one in others]), middle([one.beta for one in others])
        lines.append(
            f"L(D) of {label} = {law.e:.4g} + {law.b:.4g} / D^{law.beta:.4g}; 95%: E {e[0]:.4g} to {e[1]:.4g}, "
            f"beta {beta[0]:.4g} to {beta[1]:.4g}"
        )
    return lines
