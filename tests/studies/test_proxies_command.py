"""The command on a tiny finished search: its report, what is measured and trained again, and what bad input gets."""

import csv
import json
import shutil

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.base import write_record
from slm_ray.records.run import RunRecord
from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main as search
from slm_ray.studies.proxies_command import main
from tests.search.tiny_run import Tiny, make_tiny
from tests.search.without_ray import run_without_ray
from tests.studies.short_runs import report_without_ray, train_without_ray

NAMES = ["perplexity", "kl", "importance", "magnitude", "block_influence", "latency", "params"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished search."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run_without_ray(patch)
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert run_command(search, tiny.arguments(run, "--winners", "1")) == 0
    return run


@pytest.fixture
def command(tiny, monkeypatch):
    run_without_ray(monkeypatch)
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    return lambda *arguments: run_command(main, [str(argument) for argument in arguments])


def options(run, out, *more):
    given = {"run": run, "out": out, "tokens": 4096, "candidates": 6, "eval-tokens": 256}
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)] + list(more)


SHORT = ("--tokens", "512", "--batch-size", "4", "--eval-tokens", "64")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_proxy_is_correlated_with_the_loss_after_training(command, finished, tmp_path, monkeypatch, capsys):
    trained, measured = train_without_ray(monkeypatch), report_without_ray(monkeypatch)
    out = tmp_path / "out"
    assert command(*options(finished, out)) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "correlations.json").read_text(), parse_constant=pytest.fail)
    assert [proxy["name"] for proxy in report["proxies"]] == [*NAMES, "held-out loss before"]
    assert report["candidates"] == 6 and report["tokens"] == 4096 and report["failed"] == []
    for proxy in report["proxies"]:
        for entry in proxy["after"].values():
            defined = entry["note"] is None
            assert (-1 <= entry["low"] <= entry["value"] <= entry["high"] <= 1) if defined else entry["value"] is None
        assert f"{proxy['name']} " in printed
    assert printed == (out / "table.txt").read_text()
    assert len(list(csv.DictReader((out / "correlations.csv").open()))) == 2 * (2 * len(NAMES) + 1)
    records = lines_of(out / "candidates.jsonl")
    assert sorted(trained) == sorted(f"trial-{record['trial']}" for record in records)
    assert all(record["status"] == "done" and record["loss"] < record["first_loss"] for record in records)
    assert len(measured) == len({trial for trial, _ in measured}) == 6
    assert not list((out / "training").rglob("checkpoints"))
    by_name = {proxy["name"]: proxy["cost"] for proxy in report["proxies"]}
    assert by_name["kl"]["flops_per_candidate"] > by_name["perplexity"]["flops_per_candidate"] > 0
    assert by_name["kl"]["shared_flops"] > 0 and by_name["importance"]["shared_flops"] > 0
    assert by_name["magnitude"]["shared_flops"] == by_name["magnitude"]["flops_per_candidate"] == 0
    assert report["training_cost"]["flops_per_candidate"] > by_name["kl"]["flops_per_candidate"]


def test_only_what_the_search_did_not_measure_in_full_is_measured(command, finished, tmp_path, monkeypatch):
    train_without_ray(monkeypatch)
    measured = report_without_ray(monkeypatch)
    trials = {record["trial"]: record for record in lines_of(finished / "trials.jsonl")}
    assert command(*options(finished, tmp_path / "out", "--proxies", "perplexity,params", *SHORT)) == 0
    records = lines_of(tmp_path / "out" / "candidates.jsonl")
    raced = {record["trial"] for record in records if record["decided"] != "full"}
    assert 0 < len(raced) < len(records) and {trial for trial, _ in measured} == raced
    for record in records:
        assert record["proxies"]["perplexity"]["tokens"] == 512
        if record["trial"] not in raced:
            before = trials[record["trial"]]["measurements"]["perplexity"]["value"]
            assert record["proxies"]["perplexity"]["value"] == before


@pytest.mark.slow
def test_a_killed_report_goes_on_where_it_was(command, finished, tmp_path, monkeypatch, capsys):
    whole, out, killed = tmp_path / "whole", tmp_path / "out", []

    def kill(job):
        if killed == [] and len(trained) == 8:
            killed.append(job.name)
            raise KeyboardInterrupt

    trained, measured = train_without_ray(monkeypatch, kill), report_without_ray(monkeypatch)
    choice = ("--proxies", "kl,importance,params", *SHORT)
    assert command(*options(finished, whole, *choice)) == 0
    assert len(trained) == 6 and len(measured) == 6
    assert command(*options(finished, out, *choice)) == 130
    assert not (out / "correlations.json").exists() and len(lines_of(out / "candidates.jsonl")) == 2
    capsys.readouterr()
    assert command("--resume", out) == 0
    table = capsys.readouterr().out
    assert len(trained) == 12 and len(measured) == 12
    found = [json.loads((folder / "correlations.json").read_text()) for folder in (whole, out)]
    for target in ("after", "before"):
        assert [proxy[target] for proxy in found[0]["proxies"]] == [proxy[target] for proxy in found[1]["proxies"]]
    assert command("--resume", out) == 0
    assert capsys.readouterr().out == f"{out} is finished already:\n\n{table}" and len(trained) == 12


def test_failed_trainings_are_left_out_and_tried_again(command, finished, tmp_path, monkeypatch, capsys):
    failing = set()

    def fail(job):
        if len(failing) < most:
            failing.add(job.name)
        if job.name in failing:
            raise UserError("the loss is nan")

    most, out = 1, tmp_path / "one"
    train_without_ray(monkeypatch, fail)
    report_without_ray(monkeypatch)
    assert command(*options(finished, out, "--proxies", "params", *SHORT)) == 0
    (bad,) = failing
    report = json.loads((out / "correlations.json").read_text())
    assert report["candidates"] == 5 and report["failed"] == [{"trial": int(bad[6:]), "error": "the loss is nan"}]
    assert f"trial {bad[6:]} is left out, its training failed: the loss is nan" in capsys.readouterr().out
    most, out = 3, tmp_path / "three"
    failing.clear()
    assert command(*options(finished, out, "--proxies", "params", *SHORT)) == 2
    assert "at least 4 trained candidates, and 3 of 6 trainings failed, the first with: the loss is nan" in (
        capsys.readouterr().err
    )
    most = 0
    failing.clear()
    assert command("--resume", out) == 0
    assert json.loads((out / "correlations.json").read_text())["candidates"] == 6


def test_a_dry_run_writes_nothing(command, finished, tmp_path, capsys):
    assert command(*options(finished, tmp_path / "out", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert printed.count("trial ") == 6 and "FLOPs" in printed and not (tmp_path / "out").exists()


def spoiled(finished, folder, remove=(), keep_trials=None):
    """A copy of the finished search without some of its files, or with only its first trials."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("winners", *remove))
    if keep_trials is not None:
        lines = (finished / "trials.jsonl").read_text().splitlines(keepends=True)
        (folder / "trials.jsonl").write_text("".join(lines[:keep_trials]))
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        ({"remove": ("trials.jsonl",)}, "has no trials in trials.jsonl"),
        ({"remove": ("result.json",)}, "is not finished: slm-ray search --resume"),
        ({"keep_trials": 3}, "needs at least 4 candidates, and the run has 3 measured ones"),
    ],
)
def test_a_run_that_is_no_finished_search(change, said, command, finished, tmp_path, capsys):
    run = spoiled(finished, tmp_path / "spoiled", **change)
    assert command(*options(run, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (("--proxies", "perplexty"), "unknown proxy 'perplexty': did you mean 'perplexity'?"),
        (("--proxies", ","), "--proxies: names none"),
        (("--candidates", "3"), "--candidates: must be at least 4, got '3'"),
        (("--tokens", "20"), "--tokens 20 is below one step of 32 tokens"),
    ],
)
def test_bad_options(more, said, command, finished, tmp_path, capsys):
    assert command(*options(finished, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_resume_changes_nothing_that_matters(command, tmp_path, capsys):
    record = RunRecord(stage="proxies", command="", options={})
    write_record(tmp_path / "out", record)
    assert command("--resume", tmp_path / "out", "--tokens", "30k") == 2
    assert "--tokens cannot be changed when" in capsys.readouterr().err
    assert command("--resume", tmp_path) == 2
    assert "holds no run to resume" in capsys.readouterr().err


def test_a_search_whose_text_has_changed(command, tiny, finished, tmp_path, monkeypatch, capsys):
    report_without_ray(monkeypatch)
    run = spoiled(finished, tmp_path / "run")
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps(inputs | {"calibration_tokens": "another"}))
    assert command(*options(run, tmp_path / "out")) == 2
    assert "its calibration tokens was another" in capsys.readouterr().err
