"""Every algorithm, objective, budget, order and space through the whole command, measured in one process."""

import json

import pytest

from slm_ray.records.budget import QUANTITIES
from slm_ray.search.registry import ALGORITHMS, PROXIES
from slm_ray.search.space import space_names, spaces_folder
from tests.search.tiny_run import trials_of

RUNS = [
    ("nsga2", "kl,params", "fine", "--params 0.2..0.9"),
    ("random", "importance,kv_bytes", "coarse", "--params 0.2..0.9"),
    ("importance", "magnitude,params", "coarse_layerwise", "--flops 0.3..0.8"),
    ("nsga2", "block_influence,latency", "fine_uniform", "--kv-bytes 0.3..0.8 --order magnitude"),
    ("nsga2", "perplexity,flops", "depth", "--params 0.2..0.9 --order activation"),
    ("ga", "perplexity", "fine", "--params 0.6..0.65 --order natural"),
    ("nsga2", "perplexity,params", "fine", "--calibration-tokens 32 --held-out-tokens 32 --stages none"),
]


def test_the_runs_name_everything_there_is():
    assert {run[0] for run in RUNS} == set(ALGORITHMS) and {run[2] for run in RUNS} == set(space_names())
    assert {name for run in RUNS for name in run[1].split(",")} == {*PROXIES, *QUANTITIES}


@pytest.mark.parametrize(("algorithm", "objectives", "space", "more"), RUNS)
def test_every_search_stays_in_its_budget_and_finds_a_front(
    algorithm, objectives, space, more, command, tiny, tmp_path
):
    """Spaces with blocks of 8 where their files say 64: the tiny teacher has 48 channels and 64 neurons."""
    small, run = tmp_path / "small.yaml", tmp_path / "run"
    small.write_text((spaces_folder() / f"{space}.yaml").read_text().replace("64", "8"))
    given = ("--algorithm", algorithm, "--objectives", objectives, "--space", small, *more.split())
    assert command(tiny.arguments(run, "--trials", "14", "--winners", "1", *given)) == 0
    trials, result = trials_of(run), json.loads((run / "result.json").read_text())
    budget, names = result["budget"], objectives.split(",")
    assert 0 < len(trials) <= 14 and len({record["genes"] for record in trials}) == len(trials)
    for record in trials:
        assert record["status"] == "done" and record["origin"] in (algorithm, "seed")
        assert budget["low"] <= record["cost"][budget["quantity"]] <= budget["high"]
        assert list(record["objectives"]) == names == result["objectives"]
        assert record["objectives"][names[-1]] == record["cost"].get(names[-1], record["objectives"][names[-1]])
        assert names[0] not in ("kl", "importance") or record["objectives"][names[0]] > -1e-3
    whole = {record["trial"]: record for record in trials if record["decided"] == "full"}
    assert result["front"] and result["winners"][0]["folder"] == "winners/0"
    assert {entry["trial"] for entry in result["front"]} <= set(whole)
    if len(names) == 1:
        assert result["front"][0]["trial"] == min(whole, key=lambda trial: whole[trial]["objectives"][names[0]])
    expected = ["first-n", "random"] if "--order" in more else ["first-n", "random", "importance"]
    assert [baseline["name"] for baseline in result["baselines"]] == expected
