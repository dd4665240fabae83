"""The plan over made-up measurements: budgets, repeats, failures, replay, and independence of who finishes first."""

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.search import Trial
from slm_ray.search.algorithms import make_algorithm
from slm_ray.search.journal import Journal
from slm_ray.search.plan import RESTS_SECONDS, SearchPlan
from slm_ray.search.registry import ALGORITHMS
from slm_ray.search.stack import GenomeStack
from slm_ray.search.tasks import Idle, Task
from tests.conftest import limited as file_size_limit
from tests.search.genome_cases import LENGTH, TEACHERS, budget_of, genome_of, space_of
from tests.search.without_ray import drive, made_up

NAMES = sorted(ALGORITHMS)
TRIALS = 40


SPACE = space_of(
    layers={"select": "subset"},
    heads={"per": "layer", "select": "subset"},
    neurons={"per": "layer", "select": "subset", "step": 4},
)


def stack_of(space=SPACE, teacher="tiny-gqa", low=0.3, high=0.8, seeds=(0, 1), quantity="params") -> GenomeStack:
    genomes = [genome_of(space, TEACHERS[teacher], seed) for seed in seeds]
    return GenomeStack(genomes, budget_of(genomes[0], quantity, low, high), LENGTH)


def plan_in(folder, name="nsga2", *, trials=TRIALS, seed=0, stack=None, objectives=None, population=8, **more):
    names = objectives or (("perplexity",) if name == "ga" else ("perplexity", "params"))
    stack = stack or stack_of()
    algorithm = make_algorithm(name, stack, names, population, seed)
    return SearchPlan(stack, algorithm, names, Journal(folder / "trials.jsonl"), trials, **more)


def records_of(plan: SearchPlan) -> list[Trial]:
    """By trial, without the clock."""
    records = [record.model_copy(update={"finished_at": ""}) for record in plan.journal]
    return sorted(records, key=lambda record: record.trial)


def state_of(plan: SearchPlan):
    history = [[step.evaluations, step.value] for step in plan.history]
    return records_of(plan), [record.trial for record in plan.measured_front()], history, plan.repeats


@pytest.fixture
def folders(tmp_path):
    """Any number of new folders."""
    made = []

    def new():
        made.append(tmp_path / str(len(made)))
        made[-1].mkdir()
        return made[-1]

    return new


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_new_and_in_the_budget_and_neither_order_nor_a_kill_changes_them(name, folders):
    alone = plan_in(folders(), name)
    tasks = drive(alone, made_up(alone))
    assert [task.index for task in tasks] == list(range(TRIALS)) and len({task.genes for task in tasks}) == TRIALS
    for record in alone.journal:
        assert alone.stack.budget.holds(record.cost.params)
        assert record.cost.params == alone.stack.cost(alone.stack.from_text(record.genes))
        assert name == "ga" or record.objectives["params"] == record.cost.params
    for at_once, seed in ((3, 1), (8, 2)):
        folder = folders()
        together = plan_in(folder, name)
        tasks = drive(together, made_up(together), at_once, seed)
        assert [task.index for task in tasks] != sorted(task.index for task in tasks)  # they did finish out of order
        assert state_of(together) == state_of(alone)
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    for kept in (1, 20, TRIALS - 1):
        folder = folders()
        (folder / "trials.jsonl").write_text("".join(lines[:kept]) + lines[kept][: kept % 7])  # a kill may tear a line
        replayed = plan_in(folder, name)
        assert len(drive(replayed, made_up(replayed))) == TRIALS - kept
        assert state_of(replayed) == state_of(alone)
    other = plan_in(folders(), name, seed=1)
    same = [task.genes for task in drive(other, made_up(other))] == [record.genes for record in alone.journal]
    assert same == (name == "importance")  # which has nothing random in it


def test_failed_candidates_are_recorded_and_never_on_the_front(tmp_path):
    plan = plan_in(tmp_path)
    good = made_up(plan)
    drive(plan, lambda task: (None, "RuntimeError: out of luck") if task.index % 3 == 1 else good(task))
    failed = [record for record in records_of(plan) if record.status == "failed"]
    assert [record.trial for record in failed] == list(range(1, TRIALS, 3))
    assert all(record.error == "RuntimeError: out of luck" and record.objectives is None for record in failed)
    front = plan.measured_front()
    assert front and all(record.trial % 3 != 1 for record in front)


def test_a_first_generation_that_fails_whole_ends_the_search(tmp_path):
    plan = plan_in(tmp_path)
    with pytest.raises(UserError, match="every candidate of the first generation failed, the first with: no memory"):
        drive(plan, lambda task: (None, "no memory"))
    assert len(plan.journal) < TRIALS


@pytest.mark.parametrize("name", NAMES)
def test_a_search_ends_at_its_number_of_trials_and_where_a_space_has_no_more(name, folders):
    for trials in (1, 2, 23):
        plan = plan_in(folders(), name, trials=trials)
        assert len(drive(plan, made_up(plan), at_once=5, seed=0)) == trials
        assert plan.next() is Idle.DONE and plan.is_finished
    for low, most in ((0, TEACHERS["tiny-gqa"].num_hidden_layers), (1, 1)):
        plan = plan_in(folders(), name, stack=stack_of("depth", low=low, high=1, seeds=(0,)))
        assert 1 <= len(drive(plan, made_up(plan))) <= most and plan.measured_front()


def test_the_front_is_made_of_whole_measurements_that_nothing_dominates(tmp_path):
    plan = plan_in(tmp_path, trials=80)
    drive(plan, made_up(plan))
    records = plan.journal
    assert {record.decided for record in records} == {"full", "dominated"}
    front = plan.measured_front()
    assert all(record.decided == "full" for record in front)
    for record in records:
        for member in front:
            better = np.array(plan.values_of(record)) <= np.array(plan.values_of(member))
            same = plan.values_of(record) == plan.values_of(member)
            assert record.decided == "dominated" or same or not better.all()
    values = [step.value for step in plan.history]
    assert values == sorted(values) and 0 < values[-1] <= 1  # the hypervolume never falls


def test_a_candidate_races_the_best_of_those_that_cost_no_more(tmp_path):
    plan = plan_in(tmp_path)
    measure, seen = made_up(plan), []

    def watch(task: Task):
        if task.rival is not None:
            earlier = [r for r in plan.journal if r.generation < task.generation and r.decided == "full"]
            step = plan.stack.step_of(plan.stack.cost(plan.stack.from_text(task.genes)))
            cheaper = [r for r in earlier if r.status == "done" and plan.values_of(r)[1] <= step]
            best = min(np.mean(r.measurements["perplexity"].blocks) for r in cheaper)
            assert task.rival.mean == pytest.approx(best)
            seen.append(task.index)
        return measure(task)

    drive(plan, watch)
    assert len(seen) > TRIALS / 2


@pytest.mark.parametrize("objectives", [("kl", "params"), ("magnitude", "params"), ("perplexity", "latency"), ("kl",)])
def test_values_are_all_to_be_minimised(objectives, tmp_path):
    plan = plan_in(tmp_path, "random", objectives=objectives)
    good = {"kl": 0.1, "magnitude": 0.9, "perplexity": 5.0, "latency": 0.01, "params": plan.stack.reach()[0]}
    bad = {"kl": 0.2, "magnitude": 0.2, "perplexity": 9.0, "latency": 0.02, "params": plan.stack.reach()[1]}

    def values(given):
        return plan.values({name: given[name] for name in objectives})

    assert all(a < b for a, b in zip(values(good), values(bad), strict=True))
    worst = plan.values(None)
    assert all(a < b for a, b in zip(values(bad), worst, strict=True))


def test_a_full_disk_loses_no_finished_candidate(folders):
    whole = plan_in(folders())
    drive(whole, made_up(whole))
    folder = folders()
    plan = plan_in(folder)
    with file_size_limit(9000), pytest.raises(UserError, match=r"writing .*trials\.jsonl"):
        drive(plan, made_up(plan))
    text = (folder / "trials.jsonl").read_text()
    assert text.endswith("\n") and 0 < len(text.splitlines()) < TRIALS
    plan.journal.close()
    again = plan_in(folder)
    tasks = drive(again, made_up(again))
    assert len(tasks) == TRIALS - len(text.splitlines())
    assert state_of(again) == state_of(whole)


def test_a_task_that_comes_back_rests_and_is_measured_then(folders):
    now = [0.0]
    plan = plan_in(folders(), clock=lambda: now[0])
    measure, first, other = made_up(plan), plan.next(), plan.next()
    assert plan.next() is Idle.WAIT  # for the seeds are two
    for rest in RESTS_SECONDS:
        plan.give_back(first.index, "no disk")
        now[0] += max(0.0, rest - 1)
        assert rest == 0 or plan.next() is Idle.WAIT
        now[0] += 1
        assert plan.next() == first
    plan.finish(first.index, *measure(first))
    plan.finish(other.index, *measure(other))
    assert [record.status for record in records_of(plan)] == ["done", "done"]


def test_one_that_loses_every_worker_fails_alone(folders):
    now = [0.0]
    plan = plan_in(folders(), clock=lambda: now[0])
    measure = made_up(plan)
    while not isinstance(task := plan.next(), Idle) or task is Idle.WAIT:
        if task is Idle.WAIT:
            now[0] += 100
        elif task.index == 6:
            plan.give_back(6, "its worker died")
        else:
            plan.finish(task.index, *measure(task))
    assert [(record.trial, record.error) for record in plan.journal if record.error] == [(6, "its worker died")]
    assert len(plan.journal) == TRIALS


def test_what_comes_late_or_twice_changes_nothing(folders):
    whole, plan = plan_in(folders()), plan_in(folders())
    drive(whole, made_up(whole))
    measure, lost = made_up(plan), plan.next()
    plan.give_back(lost.index, "no answer")
    assert plan.next() == lost
    plan.give_back(lost.index, "no answer")
    plan.finish(lost.index, *measure(lost))  # the worker was there after all
    plan.finish(lost.index, None, "and once more")
    plan.give_back(lost.index, "and away again")
    drive(plan, measure)
    assert state_of(plan) == state_of(whole)
