"""Names become tasks and groups by lm-eval's own manager, and settings change when a result could."""

import json
import re
from pathlib import Path

import pytest
from jinja2 import meta
from lm_eval.utils import env

from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.task_plan import plan_tasks, splits_of
from slm_ray.evaluate.tasks import SUITES, catalogue, define, main_metric, task_manager, tasks_root
from tests.evaluate.task_cases import arc, plan_of, rows, write_data, write_lines

FOLDERS = "arc afrixnli benchmarks bhs glue lambada lingoly scrolls truthfulqa xcopa".split()


def settings_of(name, **options):
    [planned] = plan_of(name, **options)
    return planned.settings


def test_every_name_of_lm_eval_is_found_in_its_folder():
    index = task_manager(FOLDERS).task_index  # of all folders it would take ten seconds
    for name, entry in index.items():
        folders = catalogue()[name]
        if entry.yaml_path:
            assert entry.yaml_path.parent.is_relative_to(tasks_root() / folders[0]), name


def test_a_suite_is_its_tasks_with_its_examples():
    tasks, suites = plan_tasks(build_config(TasksConfig, {"tasks": ["pythia", "arc_easy", "mmlu", "inheritune"]}))
    assert suites == {name: tuple(SUITES[name]) for name in ("pythia", "inheritune")}
    shots = {task.name: task.shots for task in tasks}
    assert list(shots)[: len(SUITES["pythia"])] == list(SUITES["pythia"])
    assert shots["mmlu"] == 5 and set(shots.values()) == {0, 5} and len(shots) == len(tasks)
    assert all(set(suite) <= set(catalogue()) for suite in SUITES.values())


@pytest.mark.parametrize(("name", "first", "number"), [
    ("mmlu", "mmlu_abstract_algebra", 57), ("ai2_arc", "arc_challenge", 2), ("openllm", "arc_challenge", 64),
    ("piqa", "piqa", 1),
])  # fmt: skip
def test_groups_and_tags_are_their_tasks(name, first, number):
    tasks = define(name).tasks
    assert tasks[0] == first and len(tasks) == len(set(tasks)) == number


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(UserError, match=r"no task 'helaswag': did you mean 'hellaswag'.*inheritune, pythia, small"):
        plan_of("helaswag")
    with pytest.raises(UserError, match="did you mean 'swahili'"):
        plan_of("swahilli")


def test_tasks_that_run_code_or_need_eyes_are_refused(monkeypatch):
    with pytest.raises(UserError, match="'mbpp' runs programs that the model writes: set HF_ALLOW_CODE_EVAL=1"):
        plan_of("mbpp")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert plan_of("mbpp")[0].name == "mbpp"
    with pytest.raises(UserError, match="sees or hears"):
        plan_of("mmmu_val_biology")


def test_without_hub_and_local_data_there_is_one_sentence():
    with pytest.raises(
        UserError, match=r"'arc_easy' could not be prepared with the dataset allenai/ai2_arc \(ARC-Easy\) .*--task-data"
    ):
        plan_of("arc_easy")[0].load()


def test_settings_are_of_what_decides_a_result(tmp_path):
    first, second = tmp_path / "first", tmp_path / "elsewhere"
    for folder in (first, second):
        write_lines(folder / "arc_easy.jsonl", rows(arc, 7))
        write_lines(folder / "arc_easy.train.jsonl", rows(arc, 4))
    settings = settings_of("arc_easy", data=first, shots=0)
    assert str(tasks_root()) not in json.dumps(dict(settings)) and str(tmp_path) not in json.dumps(dict(settings))
    assert settings_of("arc_easy", data=second, shots=0) == settings
    assert settings_of("arc_easy", shots=0) != settings
    assert settings_of("arc_easy", data=first, shots=0, limit=3) != settings
    write_lines(second / "arc_easy.jsonl", rows(arc, 6))
    assert settings_of("arc_easy", data=second, shots=0) != settings
    write_lines(first / "arc_easy.train.jsonl", rows(arc, 5))
    assert settings_of("arc_easy", data=first, shots=0) == settings, "examples are not read with no shots"
    assert settings_of("arc_easy", data=first, shots=1) != settings


def test_shots_are_the_user_s_unless_the_task_fixes_them_at_zero(tmp_path):
    data = write_data(tmp_path / "data")
    shots = {}
    for name, given in (("arc_easy", 2), ("arc_easy", None), ("bhs_swahili", 3)):
        task = next(iter(plan_of(name, data=data, shots=given)[0].load()["tasks"].values()))
        shots[name, given] = task.get_config("num_fewshot")
    assert shots == {("arc_easy", 2): 2, ("arc_easy", None): 0, ("bhs_swahili", 3): 0}


@pytest.mark.parametrize(("name", "metrics", "main"), [
    ("hellaswag", ("acc", "acc_norm"), "acc_norm"), ("arc_challenge", ("acc", "acc_norm"), "acc_norm"),
    ("arc_easy", ("acc", "acc_norm"), "acc"), ("afrixnli_native_direct_swa", ("f1", "acc"), "acc"),
    ("gsm8k", ("exact_match,strict-match", "exact_match,flexible-extract"), "exact_match,strict-match"),
])  # fmt: skip
def test_the_main_metric(name, metrics, main):
    assert main_metric(name, metrics) == main


def test_the_page_on_tasks_has_the_splits_and_fields_of_every_suite():
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    below = page.partition("| task | evaluated")[2]
    table = dict(re.findall(r"^\| `(\w+)`(?: \(group\))? \| (.*) \|$", below, re.MULTILINE))
    assert set(table) == {name for suite in SUITES.values() for name in suite}
    for name, line in table.items():
        definition = define(name)
        config = definition.entries[definition.tasks[0]].cfg
        split, examples = splits_of(name, config)
        *splits, fields = line.split(" | ")
        assert [one.strip() for one in splits] == [split, "" if config.get("num_fewshot") == 0 else examples or ""]
        known, template = set(fields.split(", ")), config["doc_to_text"]
        if not config.get("process_docs") and template not in known:
            assert meta.find_undeclared_variables(env.parse(str(template))) <= known, name
    assert all(f"| `{name}` | " in page for name in SUITES)
