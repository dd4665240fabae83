"""Rank correlations against pair-by-pair references and scipy; which candidates are chosen; the report's figures."""

import csv
import io
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from slm_ray.config.errors import UserError
from slm_ray.records.proxies import FailedCandidate, ProxyCost, ProxyReport, ProxyValue, TrainedCandidate
from slm_ray.records.search import ModelCost
from slm_ray.search.candidates import choose_candidates
from slm_ray.studies.proxies_report import BEFORE, as_csv, as_table, correlate
from slm_ray.studies.rank_correlation import kendall, rank_correlations, spearman
from tests.references import naive_kendall, naive_spearman

NAIVE = {"kendall": naive_kendall, "spearman": naive_spearman}
BOTH = {"kendall": kendall, "spearman": spearman}


def samples():
    """Pairs of series: untied, tied in one or both, reversed, of four."""
    rng = np.random.default_rng(0)
    yield rng.normal(size=12), rng.normal(size=12)
    yield rng.integers(0, 4, 15), rng.normal(size=15)
    yield rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    yield np.arange(9), -np.arange(9)
    yield np.array([1, 2, 2, 3]), np.array([10, 10, 11, 12])


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("x, y", samples())
def test_correlations_are_those_of_the_definition_and_of_scipy(name, x, y):
    found = getattr(rank_correlations(x, y, seed=0, resamples=50), name).value
    assert found == pytest.approx(NAIVE[name](list(x), list(y)), abs=1e-12)
    function = stats.kendalltau if name == "kendall" else stats.spearmanr
    assert found == pytest.approx(function(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_resamples_are_correlated_side_by_side(name):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, 9).astype(float), rng.normal(size=9)
    drawn = rng.integers(9, size=(40, 9))
    found = BOTH[name](x[drawn], y[drawn])
    for row, value in zip(drawn, found, strict=True):
        expected = NAIVE[name](list(x[row]), list(y[row]))
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-9)


def test_the_interval_holds_the_middle_of_the_resamples_and_repeats_with_its_seed():
    rng = np.random.default_rng(2)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    first, again, other = (rank_correlations(x, y, seed).kendall for seed in (3, 3, 4))
    assert first == again != other
    assert first.low < first.value < first.high
    exact = rank_correlations(x, 2 * x, seed=3).spearman
    assert (exact.value, exact.low, exact.high) == pytest.approx((1, 1, 1))
    assert rank_correlations(x, x, 3).kendall.low == pytest.approx(1)


def test_equal_values_are_said_and_are_no_nan():
    for x, y, what in (([1, 1, 1, 1], [1, 2, 3, 4], "its values"), ([1, 2, 3, 4], [5, 5, 5, 5], "the losses")):
        both = rank_correlations(x, y, seed=0)
        for found in (both.kendall, both.spearman):
            assert found.value is found.low is found.high is None
            assert found.note == f"undefined: {what} are all equal"
    many_ties = rank_correlations([0, 0, 0, 1], [1, 2, 3, 4], seed=0).kendall
    assert many_ties.value is not None and many_ties.low is not None
    json.dumps(many_ties.to_json(), allow_nan=False)


def trial(number, value, status="done", name="perplexity"):
    objectives = {name: value} if status == "done" else None
    return SimpleNamespace(trial=number, status=status, objectives=objectives, decided="full")


def test_candidates_are_spread_over_the_front_and_the_others():
    records = [trial(number, float(number)) for number in range(40)] + [trial(99, None, "failed")]
    front = range(0, 40, 4)
    chosen = [one.trial for one in choose_candidates(records, front, "perplexity", 10, seed=0)]
    assert len(set(chosen)) == 10 and chosen == sorted(chosen)
    assert sum(number in front for number in chosen) == 5
    assert Counter(number // 8 for number in chosen if number in front) == dict.fromkeys(range(5), 1)
    assert min(chosen) < 10 and max(chosen) >= 30
    assert chosen == [one.trial for one in choose_candidates(records[::-1], front, "perplexity", 10, seed=0)]
    assert chosen != [one.trial for one in choose_candidates(records, front, "perplexity", 10, seed=1)]


@pytest.mark.parametrize("front_size", [0, 2, 9, 10])
def test_a_short_front_or_rest_is_filled_up_from_the_other(front_size):
    records = [trial(number, float(number)) for number in range(10)]
    for count in (4, 7, 10, 30):
        chosen = choose_candidates(records, range(front_size), "perplexity", count, seed=0)
        assert len({one.trial for one in chosen}) == min(count, 10)


def test_too_few_candidates():
    with pytest.raises(UserError, match="at least 4 candidates, and the run has 3"):
        choose_candidates([trial(number, 1.0) for number in range(3)], (), "perplexity", 12, 0)


def report_of(values, losses, first):
    """A report on candidates with these values of perplexity, and with parameters that are all equal."""
    records = [
        TrainedCandidate(
            trial=0, digest="", cost=ModelCost(params=7, flops=1, kv_bytes=1), decided="full", status="done",
            tokens=20_000, flops=1e12, seconds=9.0, loss=loss, first_loss=before,
            proxies={
                "perplexity": ProxyValue(value=value, seconds=0.5, flops=1e9), "params": ProxyValue(value=7),
                BEFORE: ProxyValue(value=before, flops=2e9),
            },
        )
        for value, loss, before in zip(values, losses, first, strict=True)
    ]  # fmt: skip
    return ProxyReport(
        command="", run="run", candidates=len(records), tokens=20_000, eval_tokens=1, seed=0, resamples=2000,
        failed=(FailedCandidate(trial=3, error="no room"),),
        proxies=correlate(records, ("perplexity", "params"), {"perplexity": 5e9}, seed=0),
        training_cost=ProxyCost(flops_per_candidate=1e12, seconds_per_candidate=9.0),
    )  # fmt: skip


def test_the_report_says_the_same_in_json_csv_and_table():
    report = report_of([10.0, 20.0, 30.0, 40.0, 50.0], [1.0, 1.2, 1.1, 1.4, 1.5], [2.0, 2.1, 2.2, 2.3, 2.4])
    perplexity, params, before = report.proxies
    assert perplexity.after.kendall.value == pytest.approx(0.8)
    assert perplexity.before.spearman.value == pytest.approx(1.0)
    assert params.after.kendall.value is None and before.before is None
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert len(rows) == 4 + 4 + 2
    assert float(rows[0]["value"]) == pytest.approx(0.8) and rows[0]["against"] == "loss after training"
    assert rows[4]["value"] == "" and "all equal" in rows[4]["note"]
    lines = as_table(report)
    assert "+0.80" in lines[1] and "1G" in lines[1].replace("1.00G", "1G")
    assert "undefined" in lines[2] and any("params: undefined: its values are all equal" in line for line in lines)
    assert any("trial 3 is left out" in line for line in lines)
