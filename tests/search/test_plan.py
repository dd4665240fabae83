"""The plan over made-up measurements: budgets, repeats, failures, replay, and independence of who finishes first."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.budget import Budget
from slm_ray.search.algorithms import ALGORITHMS
from slm_ray.search.journal import Journal
from slm_ray.search.plan import Job, SearchPlan
from slm_ray.search.stack import GenomeStack
from slm_ray.search.trial import PlanSearcher
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


def plan_in(folder, name="nsga2", *, trials=TRIALS, seed=0, stack=None, objectives=None, population=8) -> SearchPlan:
    names = objectives or (("perplexity",) if name == "ga" else ("perplexity", "params"))
    stack = stack or stack_of()
    algorithm = ALGORITHMS[name](stack, seed, population, len(names))
    return SearchPlan(stack, algorithm, names, Journal(folder / "trials.jsonl"), trials)


def records_of(plan: SearchPlan) -> list[dict]:
    """By trial, without the clock."""
    records = [{**record, "finished_at": None} for record in plan.journal.records]
    return sorted(records, key=lambda record: record["trial"])


def state_of(plan: SearchPlan):
    history = [[step["evaluations"], step["value"]] for step in plan.history]
    return records_of(plan), [record["trial"] for record in plan.measured_front()], history, plan.repeats


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
def test_every_candidate_is_new_and_inside_the_budget(name, tmp_path):
    plan = plan_in(tmp_path, name)
    jobs = drive(plan, made_up(plan))
    assert [job.trial for job in jobs] == list(range(TRIALS))
    assert len({job.genes for job in jobs}) == TRIALS
    for record in plan.journal.records:
        assert plan.stack.budget.low <= record["cost"]["params"] <= plan.stack.budget.high
        assert record["cost"]["params"] == plan.stack.cost(plan.stack.from_text(record["genes"]))
        assert record["objectives"]["params"] == record["cost"]["params"] if name != "ga" else True


@pytest.mark.parametrize("name", NAMES)
def test_who_finishes_first_changes_nothing(name, folders):
    alone = plan_in(folders(), name)
    drive(alone, made_up(alone))
    for at_once, seed in ((3, 1), (8, 2)):
        together = plan_in(folders(), name)
        jobs = drive(together, made_up(together), at_once, seed)
        assert [job.trial for job in jobs] != sorted(job.trial for job in jobs)  # they did finish out of order
        assert state_of(together) == state_of(alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [1, 20, TRIALS - 1])
def test_a_replayed_plan_is_where_the_killed_one_was(name, kept, folders):
    whole = plan_in(folders(), name)
    drive(whole, made_up(whole), 4, seed=3)
    folder = folders()
    lines = whole.journal._writer.path.read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:kept]))
    replayed = plan_in(folder, name)
    jobs = drive(replayed, made_up(replayed))
    assert len(jobs) == TRIALS - kept
    assert state_of(replayed) == state_of(whole)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_is_another_search(name, folders):
    genes = []
    for seed in (0, 1):
        plan = plan_in(folders(), name, seed=seed)
        genes.append([job.genes for job in drive(plan, made_up(plan))])
    assert (genes[0] == genes[1]) == (name == "importance")  # which has nothing random in it


@pytest.mark.parametrize("name", NAMES)
def test_failed_candidates_are_recorded_and_never_on_the_front(name, tmp_path):
    plan = plan_in(tmp_path, name)
    good = made_up(plan)
    drive(plan, lambda job: (None, "RuntimeError: out of luck") if job.trial % 3 == 1 else good(job))
    failed = [record for record in records_of(plan) if record["status"] == "failed"]
    assert [record["trial"] for record in failed] == list(range(1, TRIALS, 3))
    assert all(record["error"] == "RuntimeError: out of luck" and record["objectives"] is None for record in failed)
    front = plan.measured_front()
    assert front and all(record["trial"] % 3 != 1 for record in front)


def test_a_measurement_that_is_no_number_is_a_failed_candidate(tmp_path):
    plan = plan_in(tmp_path)
    good = made_up(plan)

    def measure(job: Job):
        answer, error = good(job)
        if job.trial == 5:
            answer["values"]["perplexity"] = answer["measurements"]["perplexity"]["value"] = float("nan")
        return answer, error

    drive(plan, measure)
    assert [record["trial"] for record in records_of(plan) if record["status"] == "failed"] == [5]
    assert "no number" in records_of(plan)[5]["error"]


@pytest.mark.parametrize("name", NAMES)
def test_a_first_generation_that_fails_whole_ends_the_search(name, tmp_path):
    plan = plan_in(tmp_path, name)
    with pytest.raises(UserError, match="every candidate of the first generation failed, the first with: no memory"):
        drive(plan, lambda job: (None, "no memory"))
    assert len(plan.journal.records) < TRIALS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trials", [1, 2, 9, 23])
def test_as_many_trials_as_asked_for(name, trials, tmp_path):
    plan = plan_in(tmp_path, name, trials=trials)
    assert len(drive(plan, made_up(plan), at_once=5, seed=0)) == trials
    assert plan.next_job() is None and plan.is_finished


@pytest.mark.parametrize("name", NAMES)
def test_a_space_with_few_candidates_ends_the_search(name, tmp_path):
    stack = stack_of("depth", low=0, high=1, seeds=(0,))
    plan = plan_in(tmp_path, name, stack=stack)
    assert 1 <= len(drive(plan, made_up(plan))) <= TEACHERS["tiny-gqa"].num_hidden_layers


@pytest.mark.parametrize("name", NAMES)
def test_a_single_candidate(name, tmp_path):
    stack = stack_of("depth", low=1, high=1, seeds=(0,))
    plan = plan_in(tmp_path, name, stack=stack)
    assert len(drive(plan, made_up(plan))) == 1
    assert len(plan.measured_front()) == 1


def test_the_front_is_made_of_whole_measurements_that_nothing_dominates(tmp_path):
    plan = plan_in(tmp_path, trials=80)
    drive(plan, made_up(plan))
    records = plan.journal.records
    assert {record["decided"] for record in records} == {"full", "dominated"}
    front = plan.measured_front()
    assert all(record["decided"] == "full" for record in front)
    for record in records:
        for member in front:
            better = np.array(plan.values_of(record)) <= np.array(plan.values_of(member))
            same = plan.values_of(record) == plan.values_of(member)
            assert record["decided"] == "dominated" or same or not better.all()
    values = [step["value"] for step in plan.history]
    assert values == sorted(values) and 0 < values[-1] <= 1  # the hypervolume never falls


def test_a_candidate_races_the_best_of_those_that_cost_no_more(tmp_path):
    plan = plan_in(tmp_path)
    measure, seen = made_up(plan), []

    def watch(job: Job):
        if job.rival is not None:
            earlier = [r for r in plan.journal.records if r["generation"] < job.generation and r["decided"] == "full"]
            step = plan._step_of(plan.stack.cost(plan.stack.from_text(job.genes)))
            cheaper = [r for r in earlier if r["status"] == "done" and plan.values_of(r)[1] <= step]
            best = min(np.mean(r["measurements"]["perplexity"]["blocks"]) for r in cheaper)
            assert job.rival.mean == pytest.approx(best)
            seen.append(job.trial)
        return measure(job)

    drive(plan, watch)
    assert len(seen) > TRIALS / 2


@pytest.mark.parametrize("objectives", [("kl", "params"), ("magnitude", "params"), ("perplexity", "latency"), ("kl",)])
def test_values_are_all_to_be_minimised(objectives, tmp_path):
    plan = plan_in(tmp_path, "random", objectives=objectives)
    good = {"kl": 0.1, "magnitude": 0.9, "perplexity": 5.0, "latency": 0.01, "params": plan.stack.reach()[0]}
    bad = {"kl": 0.2, "magnitude": 0.2, "perplexity": 9.0, "latency": 0.02, "params": plan.stack.reach()[1]}

    def values(given):
        return plan.values_of({"status": "done", "objectives": {name: given[name] for name in objectives}})

    assert all(a < b for a, b in zip(values(good), values(bad), strict=True))
    worst = plan.values_of({"status": "failed", "objectives": None})
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
    jobs = drive(again, made_up(again))
    assert len(jobs) == TRIALS - len(text.splitlines())
    assert state_of(again) == state_of(whole)


def test_records_of_another_search_are_noticed(folders):
    folder = folders()
    plan = plan_in(folder, trials=6)
    drive(plan, made_up(plan))
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join([*lines, lines[2]]))
    with pytest.raises(UserError, match="two records of the same candidate"):
        plan_in(folder)


class TestThroughTune:
    """What Tune calls, called by hand."""

    @pytest.fixture(autouse=True)
    def no_rest(self, monkeypatch):
        monkeypatch.setattr("slm_ray.search.trial._RESTS_SECONDS", (0.0, 0.0, 0.0))

    def finish(self, searcher: PlanSearcher, trial_id: str, config: dict, measure) -> None:
        given = json.loads(config["job"])
        rival = None if given["rival"] is None else SimpleNamespace(blocks=tuple(given["rival"]))
        if rival is not None:
            rival.mean = float(np.mean(rival.blocks))
        outcome, error = measure(SimpleNamespace(genes=given["genes"], trial=given["trial"], rival=rival))
        searcher.on_trial_complete(trial_id, {"answer": json.dumps({"outcome": outcome, "error": error})})

    def run(self, plan: SearchPlan, dies) -> PlanSearcher:
        searcher, measure = PlanSearcher(plan), made_up(plan)
        for number in range(1000):
            config = searcher.suggest(str(number))
            if config == PlanSearcher.FINISHED:
                return searcher
            if dies(json.loads(config["job"])["trial"], number):
                searcher.on_trial_complete(str(number), error=True)
            else:
                self.finish(searcher, str(number), config, measure)
        raise AssertionError("the search did not end")

    def test_a_candidate_whose_worker_died_is_measured_again(self, folders):
        whole = plan_in(folders())
        drive(whole, made_up(whole))
        plan = plan_in(folders())
        assert self.run(plan, lambda trial, number: number % 2 == 0).fatal is None
        assert state_of(plan) == state_of(whole)

    def test_a_worker_that_died_before_its_candidate_came_is_none_of_its_deaths(self, folders):
        plan = plan_in(folders())
        searcher, measure = PlanSearcher(plan), made_up(plan)
        first = searcher.suggest("0")
        for number in range(1, 9):
            searcher.excuse(str(number - 1))
            searcher.on_trial_complete(str(number - 1), error=True)
            assert searcher.suggest(str(number)) == first
        self.finish(searcher, "8", first, measure)
        assert [record["status"] for record in records_of(plan)] == ["done"]

    def test_one_that_kills_every_worker_fails_alone(self, folders):
        plan = plan_in(folders())
        self.run(plan, lambda trial, number: trial == 6)
        failed = [record for record in records_of(plan) if record["status"] == "failed"]
        assert [record["trial"] for record in failed] == [6]
        assert "again and again" in failed[0]["error"]
        assert len(plan.journal.records) == TRIALS

    def test_a_candidate_whose_files_are_away_for_a_while_rests_and_is_measured_then(self, folders, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("slm_ray.search.trial._RESTS_SECONDS", (0.0, 5.0, 60.0))
        monkeypatch.setattr("slm_ray.search.trial.time.monotonic", lambda: now[0])
        plan = plan_in(folders())
        searcher, measure = PlanSearcher(plan), made_up(plan)
        away = json.dumps({"outcome": None, "error": "OSError: gone", "again": True})
        first, other = searcher.suggest("a"), searcher.suggest("b")
        for name, rest in (("a", 0.0), ("c", 5.0), ("d", 60.0)):
            searcher.on_trial_complete(name, {"answer": away})
            now[0] += max(0.0, rest - 1)
            assert rest == 0 or searcher.suggest("early") is None
            now[0] += 1
            assert searcher.suggest({"a": "c", "c": "d", "d": "e"}[name]) == first
        self.finish(searcher, "e", first, measure)
        self.finish(searcher, "b", other, measure)
        assert [record["status"] for record in records_of(plan)] == ["done", "done"]

    def test_a_generation_is_waited_for(self, folders):
        plan = plan_in(folders())
        searcher, measure = PlanSearcher(plan), made_up(plan)
        first = {}
        while (config := searcher.suggest(str(len(first)))) is not None:
            first[str(len(first))] = config
        assert len(first) == 2  # the seeds; nothing more until both are done
        for number, config in first.items():
            assert searcher.suggest("more") is None
            self.finish(searcher, number, config, measure)
        assert searcher.suggest("more") is not None

    def test_a_record_that_cannot_be_written_ends_the_search(self, folders):
        plan = plan_in(folders())
        with file_size_limit(3000):
            searcher = self.run(plan, lambda trial, number: False)
        assert isinstance(searcher.fatal, UserError) and not plan.is_finished

    def test_a_mistake_of_ours_ends_the_search_and_is_not_lost(self, folders, monkeypatch):
        """Tune logs what goes wrong in a searcher, and goes on."""
        plan = plan_in(folders())
        mistake = KeyError("seconds")

        def append(record):
            raise mistake

        monkeypatch.setattr(plan.journal, "append", append)
        assert self.run(plan, lambda trial, number: False).fatal is mistake


def test_an_impossible_budget_is_refused_when_the_stack_is_made():
    genome = genome_of("fine", TEACHERS["tiny-gqa"])
    with pytest.raises(UserError, match="reach"):
        GenomeStack([genome], Budget("params", 1, 2), LENGTH)
