"""The regression behind ``--screen`` against its definition, what it picks, and that a resume picks the same."""

import numpy as np
import pytest

from slm_ray.search.algorithms import make_algorithm
from slm_ray.search.config import SearchConfig
from slm_ray.search.journal import Journal
from slm_ray.search.plan import FAILED_VALUE, SearchPlan
from slm_ray.search.registry import SCREENED
from slm_ray.search.surrogate import FEWEST_TOLD, PENALTIES, UNSCREENED_SHARE, Screen, fit_ridge
from tests.references import naive_kendall, ridge_by_cross_validation
from tests.search.test_plan import stack_of, state_of
from tests.search.without_ray import drive, made_up

TRIALS = 24


@pytest.mark.parametrize("rows, columns, noise", [(40, 5, 0.3), (12, 30, 0.5), (30, 30, 2.0), (15, 1, 0.1)])
def test_the_regression_is_that_of_the_definition(rows, columns, noise):
    rng = np.random.default_rng(rows)
    features = rng.normal(size=(rows, columns)) * rng.lognormal(size=columns) + 3
    features[:, 0] += 5 * (features[:, -1] if columns > 1 else 0)  # nearly one and the same
    targets = features @ rng.normal(size=columns) + noise * rng.normal(size=rows)
    penalty, predict = ridge_by_cross_validation(features, targets, PENALTIES)
    found = fit_ridge(features, targets)
    new = rng.normal(size=(7, columns)) + 3
    assert found.penalty == pytest.approx(penalty, rel=1e-6)
    assert found.predict(new) == pytest.approx(predict(new), rel=1e-6)


def loss_of(stack, genes):
    """Linear in what is kept of every layer, so that the regression can know it."""
    spec = stack.decode(genes)
    return 6 - sum((0.5 + layer.source) * len(layer.neurons) / 160 + 0.2 * len(layer.kv_heads) for layer in spec.layers)


def taught(stack, count=FEWEST_TOLD + 20, objectives=("perplexity", "params"), seed=0):
    screen, rng = Screen(stack, objectives, 4, seed), np.random.default_rng(5)
    genes = [stack.random(rng) for _ in range(count)]
    screen.learn(genes, np.array([[loss_of(stack, one), stack.cost(one)][: len(objectives)] for one in genes]))
    return screen, genes, rng


def test_the_best_at_their_cost_are_picked_and_some_at_random():
    stack = stack_of()
    screen, _, rng = taught(stack)
    cost = stack.reach()[1]
    children = [stack.random(rng, cost) for _ in range(40)]
    picked = screen.pick(children, 8)
    assert len(set(picked)) == 8 and picked == sorted(picked)
    losses = np.array([loss_of(stack, one) for one in children])
    screened = round((1 - UNSCREENED_SHARE) * 8)
    assert len(set(picked) & set(np.argsort(losses)[:12].tolist())) >= screened - 1
    expected = [screen.predictions[stack.to_text(children[at])] for at in picked]
    assert naive_kendall(expected, losses[picked].tolist()) > 0.6


def test_what_is_on_record_is_picked_last_and_few_results_screen_nothing():
    stack = stack_of()
    screen, known, rng = taught(stack)
    fresh = [stack.random(rng) for _ in range(3)]
    assert screen.pick([known[0], fresh[0], known[1], fresh[1], fresh[1], fresh[2]], 3) == [1, 3, 5]
    assert len(screen.pick([known[0], fresh[0], known[1]], 2)) == 2
    assert screen.pick([], 4) == []
    new, _, _ = taught(stack, FEWEST_TOLD - 1)
    assert new.pick(fresh, 2) == [0, 1] and not new.predictions
    new.learn([fresh[0]], np.array([[FAILED_VALUE, FAILED_VALUE]]))  # a failed candidate says nothing
    assert new.pick(fresh, 2) == [0, 1] and not new.predictions


def plan_in(folder, name, lines=()):
    names = ("perplexity",) if name == "ga" else ("perplexity", "params")
    stack = stack_of()
    algorithm = make_algorithm(name, stack, names, 8, 0, screen_factor=2)
    folder.mkdir()
    (folder / "trials.jsonl").write_text("".join(lines))
    return SearchPlan(stack, algorithm, names, Journal(folder / "trials.jsonl"), TRIALS)


@pytest.mark.parametrize("name", SCREENED)
def test_a_resumed_search_picks_the_same(name, tmp_path):
    whole = plan_in(tmp_path / "whole", name)
    drive(whole, made_up(whole), 4, seed=3)
    assert whole.algorithm.screen.predictions
    lines = (tmp_path / "whole/trials.jsonl").read_text().splitlines(keepends=True)
    resumed = plan_in(tmp_path / "resumed", name, lines[:18])
    assert len(drive(resumed, made_up(resumed))) == TRIALS - 18
    assert state_of(resumed) == state_of(whole)
    assert resumed.algorithm.screen.predictions == whole.algorithm.screen.predictions


@pytest.mark.parametrize(("algorithm", "given", "factor"), [("nsga2", None, 4), ("nsga2", 1, 1), ("ga", None, 1),
                                                            ("ga", 3, 3), ("random", None, 1)])  # fmt: skip
def test_what_is_screened_unless_something_is_asked_for(algorithm, given, factor):
    names = "perplexity" if algorithm == "ga" else "perplexity,params"
    config = SearchConfig().replace(algorithm=algorithm, screen=given, objectives=names)
    assert config.plan.screen_factor == factor
