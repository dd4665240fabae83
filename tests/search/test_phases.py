"""Time and once-paid costs of a run that several processes worked on."""

import json

import pytest
from transformers import AutoModelForCausalLM

from slm_ray.config.errors import UserError
from slm_ray.records.search import Paid
from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main
from slm_ray.search.spending import PhaseRecord
from tests.search.tiny_run import trials_of
from tests.search.without_ray import run_without_ray


class Clock:
    """Goes forward when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


def test_the_time_of_all_processes_adds_up_also_of_one_that_was_killed_in_a_phase(tmp_path):
    path, clock = tmp_path, Clock()
    first = PhaseRecord(path, clock)
    with first.phase("inputs"):
        clock.now += 3
    killed = first.phase("search")
    killed.__enter__()
    clock.now += 5
    assert first.generation_seconds(0) == 5
    clock.now += 2
    first.note()
    clock.now += 1.5  # not noted: a kill here loses it
    first.note()
    clock = Clock()
    second = PhaseRecord(path, clock)
    assert second.processes == 2 and second.seconds() == {"inputs": 3, "search": 7}
    with second.phase("search"):
        clock.now += 4
        assert second.generation_seconds(0) == 5  # replayed: as it was
        assert second.generation_seconds(1) == 7 + 4
        assert second.seconds()["search"] == 11
    assert PhaseRecord(path, clock).seconds() == {"inputs": 3, "search": 11}


def test_costs_of_one_name_add_up_and_nothing_is_no_cost(tmp_path):
    record = PhaseRecord(tmp_path)
    record.pay("unit scores", 0, 0.0)
    assert record.paid() == {}
    record.pay("unit scores", 100, 2e6)
    later = PhaseRecord(tmp_path)
    later.pay("unit scores", 10, 1e6)
    assert later.paid() == {"unit scores": Paid(tokens=110, flops=3e6)}


@pytest.mark.parametrize("text", ["{", "[1]", '{"seconds": 3}', '{"paid": {"x": {"tokens": 1}}}'])
def test_a_damaged_record_is_one_sentence(text, tmp_path):
    (tmp_path / "phases.json").write_text(text)
    with pytest.raises(UserError, match=r"phases\.json"):
        PhaseRecord(tmp_path)


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    run_without_ray(monkeypatch)
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))  # of its own: what is kept there was not paid for
    return lambda arguments: run_command(main, [str(argument) for argument in arguments])


def test_a_killed_search_counts_what_all_its_processes_spent(command, tiny, tmp_path, monkeypatch):
    from slm_ray.search import run as search_run

    options = ("--algorithm", "nsga2", "--reconstruct", "none", "--trials", "8")
    run_plan, write_cards = search_run.run_plan_here, search_run.write_cards

    def killed_run_plan(plan, *others):
        def on_record(record, before=plan.on_record):
            before(record)
            if len(plan.journal) == 7:
                raise KeyboardInterrupt

        plan.on_record = on_record
        run_plan(plan, *others)

    def killed_report(*arguments):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    monkeypatch.setattr(search_run, "run_plan_here", killed_run_plan)
    assert command(tiny.arguments(run, *options)) == 130
    first = json.loads((run / "phases.json").read_text())
    AutoModelForCausalLM.from_pretrained(run / "winners/0")  # the best so far, by unit scores alone
    assert (run / "report.html").exists()
    stopped = (run / "run.log").read_text().splitlines()[-1]
    assert stopped.endswith("as pruned; left out: search, winners, held-out text, report")
    monkeypatch.setattr(search_run, "run_plan_here", run_plan)
    monkeypatch.setattr(search_run, "write_cards", killed_report)  # killed once more, all measured by then
    assert command(["--resume", run]) == 130
    second = json.loads((run / "phases.json").read_text())
    monkeypatch.setattr(search_run, "write_cards", write_cards)
    assert command(["--resume", run]) == 0

    result = json.loads((run / "result.json").read_text())
    spent, last = result["spent"], json.loads((run / "phases.json").read_text())
    assert [record["processes"] for record in (first, second, last)] == [1, 2, 3] == [1, 2, spent["processes"]]
    for name in ("inputs", "importance", "search"):
        assert 0 < first["seconds"][name] <= second["seconds"][name] <= last["seconds"][name]
        assert spent["seconds"][name] == last["seconds"][name]
    # Scores are paid for once, the held-out text by each of the two processes that measured on it.
    assert set(first["paid"]) == {"unit scores"}
    assert spent["paid"] == last["paid"] == first["paid"] | {"held-out text": last["paid"]["held-out text"]}
    assert last["paid"]["held-out text"]["tokens"] == 2 * second["paid"]["held-out text"]["tokens"] > 0
    measured = [max(entry["tokens"] for entry in record["measurements"].values()) for record in trials_of(run)]
    assert spent["forward_tokens"] == sum(measured) + sum(cost["tokens"] for cost in last["paid"].values())
    flops = sum(tokens * record["cost"]["flops"] for tokens, record in zip(measured, trials_of(run), strict=True))
    assert spent["flops"] == pytest.approx(flops + sum(cost["flops"] for cost in last["paid"].values()))
    # Generations keep the seconds at which they were closed first, and those of all processes count.
    seconds = [step["seconds"] for step in result["hypervolume"]]
    assert seconds == sorted(seconds) and len(seconds) >= 2
    assert seconds[0] == first["generations"]["0"] == last["generations"]["0"]
    assert seconds[-1] > first["seconds"]["search"] > 0
    assert len(trials_of(run)) == 8
