"""What a training sends to its tracker, from its records alone."""

import pytest

from slm_ray.config.base import build_config
from slm_ray.pretrain import tracking
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.tracking import ModelTracking, track_results
from slm_ray.records import metric_names as names
from slm_ray.records.base import RecordFile, write_record
from slm_ray.records.run import RunRecord
from slm_ray.records.training import Origin, SpentFlops, TrainedModel, TrainEvaluation, TrainingData, TrainStep
from slm_ray.runtime.trackers import NoTracker
from tests.report.made_training import training_run


class Seen(NoTracker):
    def __init__(self, wants_earlier=True):
        self.wants_earlier, self.rows, self.values, self.ends, self.tables = wants_earlier, [], {}, 0, []

    def log(self, metrics, *, step):
        assert all(names.is_tracked(name) for name in metrics)
        assert not self.rows or step >= self.rows[-1][0], "a tracker drops a row whose step is below the last one"
        self.rows.append((step, dict(metrics)))

    def table(self, name, columns, rows):
        self.tables.append(name)

    def summary(self, values):
        self.values = dict(values)

    def finish(self):
        self.ends += 1


@pytest.fixture
def seen(monkeypatch):
    """The tracker, and with what it was made."""
    found = Seen()

    def make(kind, folder, **options):
        found.options = options | {"kind": kind, "folder": folder}
        return found

    monkeypatch.setattr(tracking, "make_tracker", make)
    return found


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "run" / "winner-0.student"
    place.mkdir(parents=True)
    origin = Origin(lineage={}, student="x", distilled_from=None, data=TrainingData(
        corpus="c", corpus_digest=None, training_tokens="t", different_tokens=1, held_out_tokens="h", tokenizer="k",
        logit_store=None,
    ))  # fmt: skip
    write_record(place, TrainedModel(start="student", source="x", params=1000, flops_per_token=1.0, flops_exact=True,
                                     architecture=None, origin=origin))  # fmt: skip
    return place


def step(number):
    return TrainStep(
        step=number, tokens=100 * number, loss=5.0 - number, ce=1.0, kd=None, lr=0.1, kd_weight=0.0, grad_norm=1.0,
        seconds=1.0, tokens_per_second=1.0, cpu_percent=1.0, gpu_percent=None, memory_bytes=1, gpu_memory_bytes=None,
        flops=SpentFlops(own=1e3 * number, teacher=1e2 * number, capture=7.0),
    )  # fmt: skip


def evaluation(number):
    return TrainEvaluation(step=number, tokens=100 * number, loss=6.0 - number, stderr=None, bits_per_byte=None,
                           eval_tokens=1, seconds=2.0 * number, flops=SpentFlops(own=1e3 * number))  # fmt: skip


def keep(folder, *records):
    """What an earlier process recorded."""
    for record in records:
        with RecordFile(folder / type(record).FILE) as file:
            file.append(record)


def config(kind):
    return build_config(PretrainConfig, {"student": "x", "tracker": kind})


def track(folder, kind="wandb"):
    from slm_ray.runtime.progress import Console

    return ModelTracking(config(kind), folder, Console())


def merged(rows):
    found = {}
    for number, row in rows:
        found.setdefault(number, {}).update(row)
    return found


def test_an_evaluation_is_sent_with_its_step(folder, seen):
    model = track(folder)
    model.send([evaluation(0)])
    model.send([step(1), step(2), evaluation(2)])
    model.send([step(3)])
    model.send([evaluation(3)])
    model.finish()
    rows = merged(seen.rows)
    assert sorted(rows) == [0, 1, 2, 3] and all(names.EVAL["loss"] in rows[number] for number in (0, 2, 3))
    assert rows[3][names.TRAIN["loss"]] == 2.0 and rows[3][names.EVAL["loss"]] == 3.0
    assert rows[3][names.TOKENS] == 300 and rows[3][names.SECONDS] == 6.0
    assert names.EVAL["bits_per_byte"] not in rows[3]
    assert seen.values[names.RESULT_LOSS] == 3.0 and seen.values[names.RESULT_PARAMS] == 1000 and seen.ends == 1


def test_the_run_is_found_by_group_job_type_tags_and_options(folder, seen):
    track(folder)
    options = seen.options
    assert (options["group"], options["job_type"], options["folder"]) == ("run", "pretrain", folder)
    assert options["tags"] == ["pretrain", "student", "distill-full", "adamw"]
    assert options["config"]["learning_rate"] == 1e-3
    assert options["config"]["params"] == 1000 and options["config"]["start"] == "student"


@pytest.mark.parametrize("wants_earlier, sent", [(True, [1, 2, 2, 3]), (False, [3])])
def test_a_resumed_process_sends_all_only_where_it_is_wanted(wants_earlier, sent, folder, seen):
    keep(folder, step(1), step(2), evaluation(2))
    seen.wants_earlier = wants_earlier
    model = track(folder)
    model.send([step(3)])
    model.finish()
    assert [number for number, _ in seen.rows] == sent


def test_the_models_of_a_run_are_compared_in_a_run_of_their_own(seen, tmp_path):
    from slm_ray.runtime.progress import Console

    run = training_run(tmp_path / "compare")
    given = {"student": "x", "distill": "full"}
    write_record(run, RunRecord(stage="pretrain", command="slm_ray.pretrain", options=given))
    track_results(config("wandb"), run, Console())
    assert (seen.options["group"], seen.options["job_type"]) == ("compare", "comparison")
    assert names.MODELS_TABLE in seen.tables and names.MATCHING_TABLE in seen.tables
