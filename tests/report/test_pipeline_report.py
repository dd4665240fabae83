import json
import shutil

import pytest
from made_evaluation import MODELS, evaluation_run, make_result
from synthetic_run import finished_run
from synthetic_training import training_run
from test_report_page import outline, page_json

from slm_ray.report.command import main
from slm_ray.report.costs import whole_cost_table
from slm_ray.report.page import page_of
from slm_ray.report.pipeline import load_pipeline, pipeline_costs, pipeline_report
from slm_ray.runtime.commands import run_command

FILES = ["training.png", "evaluation.png", "front.png", "report.md", "report.html"]


def pipeline_folder(folder, *, digest="tokens-python-docs"):
    finished_run(folder / "search", 30)
    training_run(folder / "pretrain")
    (folder / "pretrain/inputs.json").write_text(json.dumps({"held_out_tokens": digest}))
    evaluation_run(folder / "evaluate")
    (folder / "logits").mkdir()
    (folder / "logits/manifest.json").write_text(json.dumps({"seconds": 90.0, "flops": 5e12}))
    stages = {"search": {"seconds": 3.0, "command": "python -m slm_ray.search"}, "pretrain": {"command": "x"}}
    state = {"command": "python -m slm_ray.pipeline --tokens 100k", "teacher": "smollm2-135m", "stages": stages}
    (folder / "pipeline.json").write_text(json.dumps(state))
    return folder


def test_one_page_has_training_evaluation_the_front_and_the_winners_shape(tmp_path, capsys):
    folder = pipeline_folder(tmp_path)
    assert run_command(main, [str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in FILES]
    page = (folder / "report.html").read_text()
    outline(page)
    assert "Pipeline of smollm2-135m" in page and "slm_ray.pipeline --tokens 100k" in page and "slm_ray.search" in page
    data = page_json(page)
    assert {"training", "text", "tasks", "scatter", "front", "front-shape", "progress"} <= set(data)
    assert data["training"]["levels"][0]["name"] == "teacher smollm2-135m"
    assert data["training"]["levels"][0]["label"] == "14.9"
    text = (folder / "report.md").read_text()
    assert all(f"({name})" in text for name in FILES[:3])


def test_the_teachers_level_on_other_tokens_is_not_drawn(tmp_path):
    assert load_pipeline(pipeline_folder(tmp_path, digest="d2")).training.level is None


def test_every_cost_is_in_one_table_once(tmp_path):
    table = whole_cost_table(pipeline_costs(load_pipeline(pipeline_folder(tmp_path))))
    shown = {row[0]: row[1:] for row in table.rows}
    assert shown["search"] == ("3 min 22 s", "12T", "not known")
    assert shown["capture of logits"][1] == "5T" and shown["evaluation"][0] == "6 min 52 s"
    assert shown["training of winner-0.student"] == ("1 min 40 s", "50T", "2 kWh")
    assert shown["teacher beside winner-0.student"] == ("counted above", "30T", "counted above")
    assert shown["in all"] == ("16 min 44 s", "at least 257T", "at least 6 kWh")


@pytest.mark.parametrize("gone", ["search", "evaluate", "pretrain", "logits", "pretrain/inputs.json"])
def test_what_is_not_there_yet_is_said_and_the_rest_shown(tmp_path, gone):
    folder = pipeline_folder(tmp_path)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = load_pipeline(folder)
    assert any("not come to its pretraining" in note for note in run.notes) == (gone == "pretrain")
    outline(page_of(pipeline_report(run)))


@pytest.mark.parametrize(
    "part", ["pipeline.json", "evaluate/evaluate.json", "search/result.json", "logits/manifest.json"]
)
def test_damage_in_any_stage_is_a_note(tmp_path, part):
    folder = pipeline_folder(tmp_path)
    (folder / part).write_text("{")
    run = load_pipeline(folder)
    assert any(part.split("/")[-1] in note for note in run.notes)
    outline(page_of(pipeline_report(run)))


def test_the_teacher_is_found_by_the_name_it_was_given(tmp_path):
    folder = pipeline_folder(tmp_path)
    result = make_result()
    result["models"][2]["name"] = "/models/teacher"
    for difference in result["differences"]:
        difference["model"] = "/models/teacher" if difference["model"] == MODELS[2][0] else difference["model"]
    (folder / "evaluate/evaluate.json").write_text(json.dumps(result))
    state = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline.json").write_text(json.dumps(state | {"teacher": "/models/teacher"}))
    assert load_pipeline(folder).training.level.loss == pytest.approx(2.7)
