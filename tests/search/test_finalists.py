"""Finalists: which are trained, how winners are picked from them, what is kept, and what a resume does again."""

import json
import math

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.search import ShortTraining
from slm_ray.search.winners import pick_finalists, pick_trained
from tests.search.tiny_run import trials_of
from tests.studies.short_runs import train_without_ray

# Without a screen the front has the three models that there are to train.
FINALISTS = ("--finalists", "3", "--finalist-tokens", "4096", "--winners", "2", "--trials", "12", "--screen", "1")


def trained(loss, error=None):
    return ShortTraining(tokens=4096, first_loss=5.0, loss=loss, flops=1e9, seconds=1.0, error=error)


@pytest.mark.parametrize(
    "winners, count, picked",
    [(1, 1, [0]), (1, 3, [0, 2, 4]), (2, 3, [0, 4, 2]), (3, 3, [0, 2, 4]), (2, 5, [0, 4, 1, 2, 3]), (1, 9, range(5))],
)
def test_finalists_are_the_winners_and_sizes_between_them(winners, count, picked):
    found = pick_finalists((100, 90, 80, 70, 60), winners, count)
    assert sorted(found) == sorted(picked) and found[: min(winners, 2)] == list(picked)[: min(winners, 2)]


def test_winners_are_those_that_train_best_at_their_size():
    costs = (100, 90, 80, 70)
    losses = {0: trained(3.5), 1: trained(3.0), 2: trained(3.2), 3: trained(3.1)}
    assert pick_trained(costs, losses, 1) == [1]
    assert pick_trained(costs, losses, 2) == [1, 3]
    assert pick_trained(costs, losses, 4) == [1, 3, 2, 0]
    assert pick_trained(costs, losses | {1: trained(None, "no room")}, 1) == [3]
    assert pick_trained(costs, {2: trained(9.0)}, 3) == [2]


def test_no_finalist_trained_is_one_sentence():
    with pytest.raises(UserError, match="every finalist's training failed, the first with: no room"):
        pick_trained((100,), {0: trained(None, "no room")}, 1)


def test_finalists_are_trained_once_whatever_is_killed_and_winners_picked_by_their_loss(
    command, tiny, tmp_path, monkeypatch
):
    run, killed = tmp_path / "run", []

    def kill(job):
        if len(done) == 2 and not killed:  # two fit at once, and are on record by now
            killed.append(job.name)
            raise KeyboardInterrupt

    done = train_without_ray(monkeypatch, kill)
    assert command(tiny.arguments(run, *FINALISTS)) == 130
    assert len(list((run / "finalists").glob("*/result.json"))) == 2 and not (run / "result.json").exists()
    assert command(["--resume", run]) == 0
    assert done[-1:] == killed
    result = json.loads((run / "result.json").read_text())
    entries = {entry["trial"]: entry["short_training"] for entry in result["front"] if entry["short_training"]}
    assert sorted(done) == sorted(f"trial-{trial}" for trial in entries) and len(entries) == 3
    assert all(entry["tokens"] == 4096 and entry["loss"] < entry["first_loss"] for entry in entries.values())
    best = min(entries, key=lambda trial: entries[trial]["loss"])
    assert result["winners"][0]["trial"] == best
    assert next(entry for entry in result["front"] if entry["trial"] == best)["winner"] == 0
    losses = {record["trial"]: math.log(record["measurements"]["perplexity"]["value"]) for record in trials_of(run)}
    for trial, entry in entries.items():  # the loop and the proxy measure the same text, but at documents' edges
        assert entry["first_loss"] == pytest.approx(losses[trial], rel=0.1)
    spent = result["spent"]
    assert spent["finalists"]["models"] == 3 and spent["finalists"]["failed"] == 0
    assert spent["finalists"]["tokens"] == 3 * 4096 and spent["flops"] > spent["finalists"]["flops"] > 0
    assert spent["seconds"]["finalists"] > 0
    for trial in entries:
        folder = run / "finalists" / str(trial)
        assert (folder / "model" / "model.safetensors").exists() and (folder / "steps.jsonl").exists()
        assert not (folder / "checkpoints").exists()
    assert {record["trial"] for record in trials_of(run)} == set(range(12))
    assert (run / "report.html").exists()


def test_one_failed_finalist_does_not_stop_the_others(command, tiny, tmp_path, monkeypatch):
    def fail(job):
        if not failed:
            failed.append(job.name)
        if job.name in failed:
            raise UserError("the GPU's memory is full")

    failed = []
    train_without_ray(monkeypatch, fail)
    run = tmp_path / "run"
    assert command(tiny.arguments(run, *FINALISTS)) == 0
    result = json.loads((run / "result.json").read_text())
    entries = {entry["trial"]: entry["short_training"] for entry in result["front"] if entry["short_training"]}
    (bad,) = [trial for trial, entry in entries.items() if entry["loss"] is None]
    assert entries[bad]["error"] == "the GPU's memory is full" and result["spent"]["finalists"]["failed"] == 1
    assert bad not in [winner["trial"] for winner in result["winners"]] and len(result["winners"]) == 2
