"""Plans as Ray Tune trials: few actors, all kept, and nothing kept of trials that have ended."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune
from ray.exceptions import ActorDiedError

from slm_ray.runtime.session import ray_session
from slm_ray.search import tuning
from slm_ray.search.tasks import Outcome
from tests.search.test_plan import plan_in, records_of, state_of
from tests.search.without_ray import drive

WORKERS, TRIALS = 2, 24
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def session():
    with ray_session(None, WORKERS):
        yield


def _answer_of():
    def answer_of(genes: str, pid: int) -> dict:
        """A measurement made up from genes; its seconds are the number of the process that made it."""
        value = 1.0 + sum(genes.encode()) % 97
        entry = {"value": value, "stderr": 0.1, "tokens": 64, "seconds": 0.0, "blocks": [value] * 4}
        found = {"measurements": {"perplexity": entry}, "values": {"perplexity": value}, "decided": "full"}
        return found | {"seconds": float(pid)}

    return answer_of  # local, so that workers are sent it and need not import this file


answer_of = _answer_of()


def candidate_trial(folder: Path, dies: tuple[str, ...]) -> type:
    """What measures, light and without a teacher; the first process that is set up, or reset, may die of it."""
    answers, processes = answer_of, WORKERS + len(dies)

    def come_to(what: str) -> None:
        if what in dies:
            try:
                os.close(os.open(folder / what, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    class Light(tune.Trainable):
        def setup(self, config, settings=None, stack=None):
            (folder / f"process-{os.getpid()}").touch()
            come_to("setup")
            self.job = json.loads(config["job"])

        def reset_config(self, new_config):
            come_to("reset")
            self.job = json.loads(new_config["job"])
            return True

        def step(self):
            while len(list(folder.glob("process-*"))) < processes:  # which all come, if they start side by side
                time.sleep(0.01)
            found = answers(self.job["genes"], os.getpid())
            return {"answer": json.dumps({"outcome": found, "error": None}), "done": True}

        def save_checkpoint(self, checkpoint_dir):
            pass

        def load_checkpoint(self, checkpoint):
            pass

    return Light


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a plan of 24 trials; gives it, the folder its processes leave names in, and how many trials Tune held."""

    def run(dies: tuple[str, ...] = ()):
        folder, held = tmp_path / "run", []
        folder.mkdir()

        class Watched(tuning._ActorsToKeep):
            def place(self):
                super().place()
                held.append(len(self._controller._trials) + len(self._controller._trial_metadata))

        monkeypatch.setattr(tuning, "CandidateTrial", candidate_trial(folder, dies))
        monkeypatch.setattr(tuning, "_ActorsToKeep", Watched)
        plan = plan_in(folder, trials=TRIALS, population=6)
        settings = SimpleNamespace(device="cpu", threads=1)  # all that is asked of them; real ones bring torch along
        tuning.run_plan(plan, settings, WORKERS, folder / "scratch")
        plan.journal.close()
        return plan, sorted(folder.glob("process-*")), held

    return run


def without_clock(plan):
    records, *rest = state_of(plan)
    return [record.model_copy(update={"seconds": 0.0}) for record in records], rest


def test_as_many_processes_as_workers_are_started_and_no_trial_is_kept(run, tmp_path):
    plan, processes, held = run()
    assert len(processes) == WORKERS
    assert {f"process-{record.seconds:.0f}" for record in records_of(plan)} <= {path.name for path in processes}
    assert max(held) <= 3 * WORKERS  # as many wait as run, and those that have just ended
    alone = plan_in(tmp_path, trials=TRIALS, population=6)
    drive(alone, lambda task: (Outcome.model_validate(answer_of(task.genes, 0)), None))
    assert without_clock(plan) == without_clock(alone)


def test_processes_that_die_before_their_candidate_are_replaced(run):
    """One while it starts, one while it is idle."""
    plan, processes, _ = run(dies=("setup", "reset"))
    assert len(processes) == WORKERS + 2
    assert [record.status for record in records_of(plan)] == ["done"] * TRIALS


@pytest.mark.parametrize(("error", "times"), [(ActorDiedError(), 4 * WORKERS + 8), (RuntimeError("no room"), 0)])
def test_what_cannot_be_started_is_a_trials_failure_and_a_death_is_not_at_first(error, times):
    """Nobody waits for ever for workers that die of what they are."""
    failed = []
    controller = SimpleNamespace(
        _pending_trials_list=["trial"], _pending_trials={"trial"}, _trial_to_actor={}, _actor_to_trial={},
        _actor_failed=lambda actor, error: failed.append(actor),
    )  # fmt: skip
    scheduler = tuning._ActorsToKeep(None, lambda: WORKERS)
    scheduler._controller, scheduler._most, scheduler._stage = controller, WORKERS, lambda trial: None
    for number in range(times + 1):
        assert failed == []
        scheduler._never_started(number, error)
    assert failed == [times] and controller._trial_to_actor == {"trial": times}
