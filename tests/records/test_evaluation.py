"""An evaluation's records: what they hold comes back, and an unfinished one is put together from its measurements."""

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.base import write_record
from slm_ray.records.evaluation import EvaluationResult, ModelFigures, is_evaluation, read_evaluation, with_measurement
from slm_ray.records.files import write_json
from slm_ray.records.measurement import Figure, TaskFigures, TaskRecord, read_measurement
from slm_ray.records.run import RunRecord


def task(name, members=None):
    return TaskFigures(
        task=name, title=name, version="1", shots=0, limit=None, documents=2, main="acc", chance=0.5, source="hub",
        metrics={"acc": Figure(value=0.5, interval=(0.1, 0.9), better="more")}, members=members,
    )  # fmt: skip


def record(name, *tasks, model="m"):
    return TaskRecord(
        name=name, key=name, settings={"model": "d"}, model=model, params=7, seconds=1, tasks=tasks, values={},
        cut_requests=0,
    )  # fmt: skip


@pytest.fixture
def unfinished(tmp_path):
    """A folder of two models, one measurement each, and one that was cut short."""
    write_record(tmp_path, RunRecord(stage="evaluate", command="slm-ray evaluate", options={"model": ["m", "n"]}))
    for number, model in enumerate("mn"):
        one = record("arc", task("arc"), model=model)
        write_json(tmp_path / f"models/{model}-{number}/task-arc-0.json", one.to_json())
    (tmp_path / "models/m-0/text-x-0.json").write_text('{"losses": [1')
    return tmp_path


def test_an_unfinished_evaluation_is_read_from_its_measurements(unfinished):
    assert is_evaluation(unfinished)
    found = read_evaluation(unfinished)
    assert not found.finished and [(model.name, model.params) for model in found.models] == [("m", 7), ("n", 7)]
    assert found.models[0].tasks == (task("arc"),) and found.config == {"model": ["m", "n"]}
    assert "text-x-0.json is not valid JSON" in found.notes[0] and "its 2 measurements" in found.notes[1]


def test_a_finished_one_comes_back_as_it_was_written(unfinished):
    whole = EvaluationResult(command="c", models=(ModelFigures(name="m", tasks=(task("arc"),)),))
    write_record(unfinished, whole)
    assert read_evaluation(unfinished) == whole


def test_groups_stand_behind_tasks_and_no_task_twice():
    model = with_measurement(ModelFigures(name="m"), record("g", task("a"), task("g", ("a",))))
    model = with_measurement(model, record("h", task("a"), task("b")))
    assert [row.task for row in model.tasks] == ["a", "b", "g"] and model.measured


def test_other_folders_and_versions_get_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not hold an evaluation"):
        read_evaluation(tmp_path)
    write_record(tmp_path, RunRecord(stage="search", command="slm-ray search", options={}))
    assert not is_evaluation(tmp_path)
    write_json(tmp_path / "old.json", record("a").to_json() | {"version": 1})
    with pytest.raises(UserError, match=r"schema version 1 .*: measure again with --fresh"):
        read_measurement(tmp_path / "old.json")
    write_json(tmp_path / "new.json", record("a").to_json() | {"params": "many"})
    with pytest.raises(UserError, match=r"new\.json is damaged \(params"):
        read_measurement(tmp_path / "new.json")
