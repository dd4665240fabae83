"""Scaling laws: known coefficients are found again, intervals hold them, and the best split is a minimum."""

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.studies.finish import find_all
from slm_ray.studies.scaling import ScalingLaw, fit_curve, fit_law

# Close to what Hoffmann et al. report.
LAW = ScalingLaw(e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28)
SIZES, TOKENS = (2e7, 4e7, 7e7, 1.1e8, 1.6e8), (4e8, 1e9, 2e9, 4e9)


def runs(noise: float = 0.0, seed: int = 0):
    n, d = (one.ravel() for one in np.meshgrid(SIZES, TOKENS))
    loss = LAW.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, n.size))
    return n.tolist(), d.tolist(), loss.tolist()


def test_known_coefficients_are_found_again():
    fit = fit_law(*runs(), resamples=5)
    for name in ("e", "a", "b", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(LAW, name), rel=1e-4)
    assert fit.residual < 1e-8


def test_intervals_of_noisy_runs_hold_the_truth_and_an_outlier_hardly_matters():
    n, d, loss = runs(noise=0.003, seed=1)
    fit = fit_law(n, d, loss, resamples=20)
    for name in ("e", "alpha", "beta"):
        low, high = fit.interval(name)
        assert low < getattr(LAW, name) < high
    low, high = fit.band(1e8, 3e9)
    assert low < high < 1.01 * low
    assert fit.law.loss(1e8, 3e9) == pytest.approx(LAW.loss(1e8, 3e9), rel=0.003)
    clean = [*runs()[2]]
    clean[7] *= 1.2  # a run that went wrong: Huber's loss gives it little weight
    spoilt = fit_law(n, d, clean, resamples=2)
    assert spoilt.law.loss(7e7, 2e9) == pytest.approx(LAW.loss(7e7, 2e9), rel=0.01)


@pytest.mark.parametrize("flops", [1e17, 1e19, 1e22])
def test_the_best_split_is_a_minimum_and_spends_the_compute(flops):
    params, tokens = LAW.best_split(flops)
    assert 6 * params * tokens == pytest.approx(flops, rel=1e-9)
    around = params * np.geomspace(0.2, 5, 2001)
    losses = LAW.loss(around, flops / 6 / around)
    assert around[np.argmin(losses)] == pytest.approx(params, rel=0.002)


def test_a_curve_of_one_size_is_found_again():
    tokens = np.array([1e8, 3e8, 1e9, 3e9, 1e10])
    fit, _ = fit_curve(tokens.tolist(), (2.5 + 300 / tokens**0.3).tolist(), resamples=3)
    assert (fit.e, fit.b, fit.beta) == pytest.approx((2.5, 300, 0.3), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([1e7] * 6, [1e8, 2e8, 3e8] * 2, [3.0] * 6), "got 6 runs of 1 sizes and 3 budgets"),
        (([1e7, 2e7], [1e8, 2e8], [3.0, 2.0]), "at least 6 finished runs of 3 sizes"),
        (([1e7] * 6, [1e8] * 6, [float("nan")] * 6), "needs losses that are numbers above 0"),
        (([], [], []), "got 0 runs"),
    ],
)
def test_too_little_gets_one_sentence(given, says):
    with pytest.raises(UserError, match=says):
        fit_law(*given)
    with pytest.raises(UserError, match="at least 4 different token budgets, got 1"):
        fit_curve([1e8], [3.0])


def test_the_analysis_of_a_table_has_plots_and_says_the_split():
    rows = [{"status": "done", "params": int(n), "tokens": d, "loss": loss} for n, d, loss in zip(*runs(), strict=True)]
    found = find_all([{"name": "law", "analysis": "scaling", "flops": ["1e18"], "resamples": 4}], rows, [])
    assert [plot.name for plot in found.plots] == ["law-loss", "law-split"]
    assert found.figures["law"]["alpha"]["value"] == pytest.approx(0.34, rel=1e-3)
    assert any("1e+18 FLOPs are best spent on 80.6M parameters" in line for line in found.lines)
    assert any(line.startswith("L(D) of 20.0M") or line.startswith("L(D) of 20M") for line in found.lines)
    few = find_all([{"name": "law", "analysis": "scaling"}], rows[:3], [])
    assert few.lines[0].startswith("law: L(N, D) has five coefficients")


def test_runs_that_say_nothing_of_an_exponent_give_no_split():
    n, d, _ = runs()
    loss = (3 + 300 / np.array(d) ** 0.3 + np.random.default_rng(0).normal(0, 0.05, len(d))).tolist()
    found = find_all(
        [{"name": "law", "analysis": "scaling", "resamples": 4}],
        [{"status": "done", "params": a, "tokens": b, "loss": c} for a, b, c in zip(n, d, loss, strict=True)],
        [],
    )
    assert any("do not determine alpha" in line for line in found.lines)
    assert not any("best spent" in line for line in found.lines)
    assert [plot.name for plot in found.plots] == ["law-loss"]
