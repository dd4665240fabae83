"""What the whole command on a tiny teacher leaves behind."""

import csv
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.search.tiny_run import LENGTH, TRIALS, trials_of


def result_of(run):
    return json.loads((run / "result.json").read_text())


def test_every_file_of_the_run_folder_is_there(finished):
    for name in ("config.json", "environment.json", "inputs.json", "result.json", "front.csv", "run.log", "report.md"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "front.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page  # opens without a network
    config = json.loads((finished / "config.json").read_text())
    assert config["options"]["trials"] == TRIALS and config["command"].startswith("python -m slm_ray.search --teacher ")
    assert not [path for path in finished.rglob("*") if path.name.endswith(".tmp")]


def test_one_line_per_trial_inside_the_budget(finished):
    records, budget = trials_of(finished), result_of(finished)["budget"]
    assert sorted(record["trial"] for record in records) == list(range(TRIALS))
    assert len({record["genes"] for record in records}) == TRIALS
    for record in records:
        assert record["status"] == "done" and record["error"] is None
        assert budget["low"] <= record["cost"]["params"] <= budget["high"]
        measured = record["measurements"]["perplexity"]
        assert measured["tokens"] in ((512,) if record["decided"] == "full" else (224, 384))
        assert len(measured["blocks"]) == measured["tokens"] // LENGTH


def test_the_front_and_its_baselines_are_measured_on_held_out_text(finished):
    result = result_of(finished)
    assert [baseline["name"] for baseline in result["baselines"]] == ["first-n", "random", "importance"]
    winner = next(entry for entry in result["front"] if entry["winner"] == 0)
    assert all(baseline["cost"]["params"] <= winner["cost"]["params"] for baseline in result["baselines"])
    for entry in (result["teacher"], *result["front"], *result["baselines"]):
        assert entry["held_out_perplexity"] > 1 and entry["held_out_stderr"] > 0
    sizes = [entry["cost"]["params"] for entry in result["front"]]
    assert len(set(sizes)) == len(sizes)
    rows = list(csv.DictReader((finished / "front.csv").open()))
    assert {row["trial"] for row in rows} >= {str(entry["trial"]) for entry in result["front"]}
    assert result["spent"]["candidates"] == TRIALS and result["spent"]["flops"] > 0


def test_winners_load_and_generate(finished):
    result = result_of(finished)
    assert [winner["folder"] for winner in result["winners"]] == ["winners/0", "winners/1"]
    records = {record["trial"]: record for record in trials_of(finished)}
    for winner in result["winners"]:
        folder = finished / winner["folder"]
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        assert sum(parameter.numel() for parameter in model.parameters()) == records[winner["trial"]]["cost"]["params"]
        ids = AutoTokenizer.from_pretrained(folder)("The teacher", return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=6, do_sample=False)
        again = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
        assert made.shape[1] > ids.shape[1] and torch.equal(made, again)
        assert "license" in (folder / "README.md").read_text()
        assert json.loads((folder / "slm_ray.json").read_text())["genes"] == records[winner["trial"]]["genes"]


def test_a_winner_has_the_perplexity_that_was_reported(finished, tiny, monkeypatch):
    """Measured once more, by Hugging Face, on the very tokens of the run."""
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    from slm_ray.runtime.progress import Console
    from slm_ray.search.candidates import FinishedSearch
    from slm_ray.search.inputs import prepare_inputs

    inputs = prepare_inputs(FinishedSearch.open(finished).config, Console())
    result = result_of(finished)
    fitted = next(entry for entry in result["front"] if entry["winner"] == 0)["reconstruction"]
    assert fitted["kept"] and fitted["after"]["calibration_perplexity"] < fitted["before"]["calibration_perplexity"]
    model = AutoModelForCausalLM.from_pretrained(finished / "winners/0", trust_remote_code=True).eval()
    for tokens, reported in (
        (inputs.calibration, "calibration_perplexity"), (inputs.held_out, "held_out_perplexity")
    ):  # fmt: skip
        ids = torch.from_numpy(tokens.ids.copy()).long()
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert float(loss.exp()) == pytest.approx(fitted["after"][reported], rel=1e-4)
