"""Every algorithm, objective and space through the whole command on a tiny teacher, measured in one process."""

import json

import pytest

from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main
from slm_ray.search.registry import ALGORITHMS
from slm_ray.search.space import space_names, spaces_folder
from tests.search.tiny_run import trials_of
from tests.search.without_ray import run_without_ray


@pytest.fixture
def found(tiny, tmp_path, monkeypatch, capsys):
    """Run the command; gives the trials and the result."""
    run_without_ray(monkeypatch)
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))

    def run(*arguments: str):
        out = tmp_path / "run"
        status = run_command(main, tiny.arguments(out, "--trials", "14", "--winners", "1", *arguments))
        assert status == 0, capsys.readouterr().err
        return trials_of(out), json.loads((out / "result.json").read_text())

    return run


def check(trials, result, most=14):
    """What holds for every search: budget, no repeats, a front of whole measurements that nothing dominates."""
    budget = result["budget"]
    assert 0 < len(trials) <= most
    assert len({record["genes"] for record in trials}) == len(trials)
    assert all(record["status"] == "done" for record in trials)
    assert all(budget["low"] <= record["cost"][budget["quantity"]] <= budget["high"] for record in trials)
    by_trial = {record["trial"]: record for record in trials}
    assert result["front"] and result["winners"][0]["folder"] == "winners/0"
    for entry in result["front"]:
        assert by_trial[entry["trial"]]["decided"] == "full"


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"ga"}))
def test_every_algorithm(name, found):
    trials, result = found("--algorithm", name)
    check(trials, result)
    assert len(trials) == 14
    assert {record["origin"] for record in trials} <= {name, "seed"}


def test_one_objective_at_a_size(found):
    trials, result = found("--algorithm", "ga", "--objectives", "perplexity", "--params", "0.6..0.65")
    check(trials, result)
    assert len(result["front"]) == 1
    whole = [record for record in trials if record["decided"] == "full"]
    assert result["front"][0]["trial"] == min(whole, key=lambda record: record["objectives"]["perplexity"])["trial"]


@pytest.mark.parametrize(
    "objectives", ["kl,params", "importance,params", "magnitude,params", "block_influence,params", "perplexity,flops",
                   "perplexity,kv_bytes", "perplexity,latency", "importance,kv_bytes"],
)  # fmt: skip
def test_every_pair_of_objectives(objectives, found):
    trials, result = found("--objectives", objectives)
    check(trials, result)
    first, second = objectives.split(",")
    assert all(set(record["objectives"]) == {first, second} for record in trials)
    assert result["objectives"] == [first, second]
    for record in trials:
        assert record["objectives"][second] == record["cost"].get(second, record["objectives"][second])
        assert first not in ("kl", "importance") or record["objectives"][first] > -1e-3


@pytest.mark.parametrize("quantity", ["flops", "kv_bytes"])
def test_other_budgets(quantity, found):
    trials, result = found("--" + quantity.replace("_", "-"), "0.3..0.8")
    check(trials, result)
    assert result["budget"]["quantity"] == quantity


@pytest.mark.parametrize("name", space_names())
def test_every_space_file(name, found, tmp_path):
    """With blocks of 8 where the file says 64: the tiny teacher has 48 channels and 64 neurons."""
    text = (spaces_folder() / f"{name}.yaml").read_text()
    space = tmp_path / "small.yaml"
    space.write_text(text.replace("64", "8"))
    check(*found("--space", str(space), "--params", "0.2..0.9"))


@pytest.mark.parametrize("order", ["natural", "magnitude", "activation"])
def test_every_order(order, found):
    trials, result = found("--order", order)
    check(trials, result)
    assert [baseline["name"] for baseline in result["baselines"]] == ["first-n", "random"]


def test_a_corpus_of_one_sequence_per_part(found):
    check(*found("--calibration-tokens", "32", "--held-out-tokens", "32", "--stages", "none"))
