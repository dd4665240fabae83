"""Searches in steps: sizes, what is refused, and a run of three steps that is killed here and there."""

import json

import pytest
import torch

from slm_ray.models.loading import load_student
from slm_ray.models.teachers import load_teacher
from slm_ray.pretrain import results
from slm_ray.records.budget import measure_cost
from slm_ray.records.jsonl import read_records
from slm_ray.records.lineage import read_lineage
from slm_ray.records.subnet import SubnetSpec
from slm_ray.report import load_run
from slm_ray.report.costs import search_costs
from slm_ray.search.config import SearchConfig
from slm_ray.search.step_plan import step_plans
from tests.search.genome_cases import TEACHERS
from tests.search.test_genome_left import is_within
from tests.search.tiny_run import trials_of
from tests.studies.short_runs import pretrain_without_ray, train_without_ray

STEPS = ("--steps", "3", "--step-tokens", "1024", "--params", "0.3..0.4", "--trials", "5", "--winners", "1",
         "--finalists", "1", "--finalist-tokens", "512", "--held-out-tokens", "64")  # fmt: skip


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("budget", [{"params": "0.45"}, {"flops": "0.5..0.9"}, {"kv_bytes": "0.3"}])
def test_every_step_keeps_the_same_share_of_the_one_before(steps, budget):
    teacher, config = TEACHERS["smollm2-135m"], SearchConfig(steps=steps, **budget)
    final = config.budget(teacher)
    plans = step_plans(config, teacher)
    sizes = [measure_cost(teacher, final.quantity, config.sequence_length), *(plan.budget.high for plan in plans)]
    assert len(plans) == steps - 1
    for before, size, after in zip(sizes, sizes[1:], [*sizes[2:], final.high], strict=False):
        assert size / before == pytest.approx(after / size, rel=1e-3)
    for plan, after in zip(plans, [*sizes[2:], final.high], strict=True):
        assert after <= plan.budget.low <= plan.budget.high  # what is cut next is in what is left
        own = plan.search_config(config)
        assert own.steps == 1 and own.budget(teacher) == plan.budget


def test_one_step_has_none_before():
    assert step_plans(SearchConfig(), TEACHERS["gpt2"]) == []


@pytest.mark.parametrize(
    "options, said",
    [
        (("--steps", "5"), "--steps: must lie between 1 and 4, got 5"),
        (("--steps", "2", "--step-tokens", "20"), "--step-tokens 20 is below one sequence: give 32 or more"),
        (("--steps", "2", "--step-tokens", "some"), "'some' is not a number"),
        (("--steps", "2", "--space", "{hidden}"), "give --space fine or depth"),
        (("--steps", "4", "--space", "depth"), "or give --steps 1"),
    ],
)
def test_what_has_no_steps_is_said_before_anything_is_done(options, said, command, tiny, tmp_path, capsys):
    hidden = tmp_path / "hidden.yaml"
    hidden.write_text(tiny.space.read_text() + "  hidden: {per: model, select: count, step: 8}\n")
    options = [option.format(hidden=hidden) for option in options]
    assert command(tiny.arguments(tmp_path / "run", *options)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert command(tiny.arguments(None, *options, "--dry-run")) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_shows_the_steps(command, tiny, capsys):
    assert command(tiny.arguments(None, *STEPS, "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert "step 2 of 3: " in shown and "its winner trained on 1024 tokens" in shown
    for row in ("step 1: search", "step 1: training", "step 2: search", "step 2: training"):
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(row)]
        assert len(line.split()) > 6 and "–" not in line


def test_a_search_in_steps_that_is_killed_in_a_training_and_in_its_last_search(command, tiny, tmp_path, monkeypatch):
    from slm_ray.search import run as search_run

    run, kills = tmp_path / "run", [19]

    def watch(job):
        if kills and len(read_records(run / "steps/1/training/winner-0.student/steps.jsonl")) == kills[0]:
            kills.pop()
            raise KeyboardInterrupt

    # The pages of the steps are those of any run, and drawn elsewhere.
    build = search_run.build_report
    monkeypatch.setattr(search_run, "build_report", lambda folder: build(folder) if folder == run else None)
    monkeypatch.setattr(results, "build_training_report", lambda folder: None)
    trained, shortly = pretrain_without_ray(monkeypatch, watch), train_without_ray(monkeypatch)
    assert command(tiny.arguments(run, *STEPS)) == 130
    assert not kills and not trained
    first = (run / "steps/1/search/trials.jsonl").read_bytes()

    run_plan = search_run.run_plan

    def killed_run_plan(plan, *others):
        def on_record(record, before=plan.on_record):
            before(record)
            if plan.stack.budget.low < 0.35 * whole and len(plan.journal.records) == 4:
                raise KeyboardInterrupt

        plan.on_record = on_record
        run_plan(plan, *others)

    given = load_teacher(str(tiny.teacher))
    whole = measure_cost(given.architecture(), "params", 32)
    monkeypatch.setattr(search_run, "run_plan", killed_run_plan)
    assert command(["--resume", run]) == 130
    assert len(trained) == 2 and len(trials_of(run)) == 4
    monkeypatch.setattr(search_run, "run_plan", run_plan)
    assert command(["--resume", run]) == 0

    # Nothing was done twice.
    assert len(trained) == 2 and len(shortly) == 1 and (run / "steps/1/search/trials.jsonl").read_bytes() == first
    for number in (1, 2):
        records = read_records(run / f"steps/{number}/training/winner-0.student/steps.jsonl")
        assert [record["step"] for record in records] == list(range(1, 33))
        assert len(trials_of(run / f"steps/{number}/search")) == 5
        assert not (run / f"steps/{number}/training/winner-0.student/checkpoints").exists()

    # Each step's model is a function of the one that was trained, in the shape of the teacher that was given.
    result, left, ids = json.loads((run / "result.json").read_text()), [], torch.arange(40)[None, :32]
    for number, record in enumerate(result["steps"], start=1):
        folder = run / record["folder"]
        assert record["step"] == number and record["loss_after"] < record["loss_before"]
        student = load_student(folder / "training/winner-0.student/model", "")
        padded = load_student(folder / "teacher", "")
        assert load_teacher(str(folder / "teacher")).architecture() == given.architecture()
        with torch.no_grad():
            torch.testing.assert_close(padded(ids).logits, student(ids).logits, rtol=1e-4, atol=1e-4)
        left.append(SubnetSpec.from_json(read_lineage(folder / "search/winners/0")["spec"]))
    assert is_within(left[1], left[0])
    winner = read_lineage(run / "winners/0")
    assert is_within(SubnetSpec.from_json(winner["spec"]), left[1])
    low, high = result["budget"]["low"], result["budget"]["high"]
    assert (low, high) == (int(0.3 * whole), int(0.4 * whole))  # shares of the teacher that was given
    assert all(low <= record["cost"]["params"] <= high for record in trials_of(run))

    # What is said of the teacher is said of the one that was given.
    for lineage in (winner, read_lineage(run / "steps/2/search/winners/0")):
        assert lineage["teacher"]["digest"] == lineage["inputs"]["teacher"] == given.digest
    assert [step["step"] for step in winner["steps"]] == [1, 2] and len(lineage["steps"]) == 1
    assert result["teacher"]["digest"] == given.digest and result["teacher"]["cost"]["params"] == whole
    alone = json.loads((run / "steps/1/search/result.json").read_text())
    assert result["teacher"] == alone["teacher"]  # with the same held-out figures
    assert [baseline["name"] for baseline in result["baselines"]][-2:] == ["random", "importance"]

    assert "in 3 steps" in (run / "winners/0/README.md").read_text()
    assert "not trained afterwards" in (run / "steps/1/search/winners/0/README.md").read_text()
    earlier = read_lineage(run / "steps/2/training/winner-0.student/model")["training"]["earlier"]
    assert earlier == {"names": ["step 1 of its search"], "tokens": 1024, "flops": 0.0}

    # All that the steps cost is in the totals, once.
    spent, parts = result["spent"], result["spent"]["steps"]
    for number, part in enumerate(parts, start=1):
        own = json.loads((run / f"steps/{number}/search/result.json").read_text())["spent"]
        assert part["search"]["flops"] == own["flops"] and part["search"]["forward_tokens"] == own["forward_tokens"]
        assert part["training"]["tokens"] == 1024 and part["training"]["flops"] > 0
    before = sum(part["search"]["flops"] + part["training"]["flops"] for part in parts)
    tokens = [max(entry["tokens"] for entry in record["measurements"].values()) for record in trials_of(run)]
    flops = sum(count * record["cost"]["flops"] for count, record in zip(tokens, trials_of(run), strict=True))
    flops -= sum(record["reused_flops"] for record in trials_of(run))
    flops += sum(cost["flops"] for cost in spent["paid"].values())
    assert spent["flops"] == pytest.approx(
        before + flops + spent["finalists"]["flops"] + spent["reconstruction"]["flops"]
    )
    assert spent["seconds"]["steps"] >= sum(part["training"]["seconds"] for part in parts) > 0
    assert "of them step 2" in (run / "report.html").read_text()
    costs = {cost.what: cost for cost in search_costs(load_run(run))}
    assert sum(cost.flops for cost in costs.values()) == pytest.approx(spent["flops"])
    assert costs["training between steps"].flops == sum(part["training"]["flops"] for part in parts)
