"""What a search sends to its tracker, without a search."""

import types

from slm_ray.records import metric_names as names
from slm_ray.records.search import HypervolumePoint, Measurement, ModelCost, ModelShape, Trial
from slm_ray.runtime.trackers import NoTracker
from slm_ray.search.tracking import SearchTracking

SHAPE = ModelShape(
    hidden_size=8, source_layers=(), num_attention_heads=(), num_key_value_heads=(), intermediate_size=(), vocab_size=1
)


class Seen(NoTracker):
    def __init__(self, wants_earlier=True):
        self.wants_earlier, self.rows = wants_earlier, []

    def log(self, metrics, *, step):
        assert all(names.is_tracked(name) for name in metrics)
        assert not self.rows or step > self.rows[-1][0], "a tracker drops a row whose step is not above the last one"
        self.rows.append((step, dict(metrics)))


def record(trial, perplexity, decided="full"):
    failed = perplexity is None
    measured = Measurement(value=perplexity or 0.0, stderr=None, tokens=512, seconds=0.1)
    return Trial(
        trial=trial, generation=trial // 2, seconds=0.5, status="failed" if failed else "done", origin="nsga2",
        digest="", genes=str(trial), architecture=SHAPE, cost=ModelCost(params=100 + trial, flops=1, kv_bytes=1),
        decided=None if failed else decided, measurements={} if failed else {"perplexity": measured},
        objectives=None if failed else {"perplexity": perplexity, "params": 100 + trial}, finished_at="",
    )  # fmt: skip


class Trials(list):
    resumed = 0


def plan_of(records, history, resumed=0):
    journal = Trials(records)
    journal.resumed = resumed
    return types.SimpleNamespace(
        objectives=("perplexity", "params"), history=history, journal=journal,
        values_of=lambda trial: [trial.objectives["perplexity"]],
    )  # fmt: skip


def follow(records, history, tracker, resumed=0):
    """Records arrive one by one, and a generation's hypervolume before the next record after it."""
    plan = plan_of(records[:resumed], [], resumed)
    tracking = SearchTracking(plan, tracker)
    for number in range(resumed, len(records)):
        plan.history[:] = [entry for entry in history if entry.evaluations <= number]
        plan.journal.append(records[number])
        tracking.update()
    plan.history[:] = history
    tracking.update()
    return tracker.rows


# Candidates finish in another order than they were asked for; the third fails, the fourth was given up early.
RECORDS = [
    record(1, 50.0), record(0, 40.0), record(3, None), record(2, 10.0, "dominated"), record(5, 30.0), record(4, 35.0),
]  # fmt: skip
HISTORY = [HypervolumePoint(evaluations=count, seconds=1.0 * count, value=0.1 * count) for count in (2, 4, 6)]


def test_every_candidate_and_every_generation_is_a_row_of_growing_step():
    rows = follow(RECORDS, HISTORY, Seen())
    assert [step for step, _ in rows] == [2, 4, 5, 6, 8, 9, 10, 12, 13]
    trials = [row for _, row in rows if names.TRIAL in row]
    assert [row[names.TRIAL] for row in trials] == [1, 0, 3, 2, 5, 4]
    assert [row[names.EVALUATIONS] for row in trials] == [1, 2, 3, 4, 5, 6]
    assert [row[names.BEST + "perplexity"] for row in trials] == [50.0, 40.0, 40.0, 40.0, 30.0, 30.0]
    assert trials[2][names.FAILED] == 1 and names.OBJECTIVE + "perplexity" not in trials[2]
    fronts = [row for _, row in rows if names.HYPERVOLUME in row]
    assert [(row[names.EVALUATIONS], row[names.SECONDS]) for row in fronts] == [(2, 2.0), (4, 4.0), (6, 6.0)]


def test_a_resumed_search_sends_what_is_new_or_all_where_it_is_wanted():
    whole = follow(RECORDS, HISTORY, Seen())
    assert follow(RECORDS, HISTORY, Seen(wants_earlier=True), resumed=3) == whole
    new = follow(RECORDS, HISTORY, Seen(wants_earlier=False), resumed=3)
    assert new == [row for row in whole if row[0] > 6]
