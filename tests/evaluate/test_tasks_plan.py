"""Names become tasks and groups by lm-eval's own manager; documents come from the hub or from a folder."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jinja2 import meta
from lm_eval.utils import env

from slm_ray.config.base import build_config
from slm_ray.config.errors import ConfigError, UserError
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.task_plan import plan_tasks, splits_of
from slm_ray.evaluate.tasks import SUITES, catalogue, define, main_metric, task_manager, tasks_root
from tests.evaluate.task_cases import PAIRS, arc, bhs, plan_of, rows, write_data, write_lines

FOLDERS = "arc afrixnli benchmarks bhs glue lambada lingoly scrolls truthfulqa xcopa".split()
PIQA = [{"goal": f"goal {number}", "sol1": "one way", "sol2": "another", "label": number % 2} for number in range(4)]
OWN = {
    "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{goal}}", "doc_to_target": "label",
    "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": [{"metric": "acc"}],
}  # fmt: skip


def settings_of(name, **options):
    [planned] = plan_of(name, **options)
    return planned.settings


def documents(folder, name, task=None, shots=0):
    [planned] = plan_of(name, data=folder, shots=shots)
    return list(planned.load()["tasks"][task or name].eval_docs)


# Names.


def test_every_name_of_lm_eval_is_found_in_its_folder():
    for name, entry in task_manager(FOLDERS).task_index.items():  # all folders would take ten seconds
        if entry.yaml_path:
            assert entry.yaml_path.parent.is_relative_to(tasks_root() / catalogue()[name][0]), name


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


def test_what_cannot_be_measured_gets_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no task 'helaswag': did you mean 'hellaswag'.*inheritune, pythia, small"):
        plan_of("helaswag")
    with pytest.raises(UserError, match="'mbpp' runs programs that the model writes: set HF_ALLOW_CODE_EVAL=1"):
        plan_of("mbpp")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert plan_of("mbpp")[0].name == "mbpp"
    with pytest.raises(UserError, match="sees or hears"):
        plan_of("mmmu_val_biology")
    dataset = r"the dataset allenai/ai2_arc \(ARC-Easy\)"
    with pytest.raises(UserError, match=f"'arc_easy' could not be prepared with {dataset} .*--task-data"):
        plan_of("arc_easy")[0].load()
    with pytest.raises(ConfigError, match="is not a folder"):
        plan_of("piqa", data=tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "metrics", "main"), [
    ("hellaswag", ("acc", "acc_norm"), "acc_norm"), ("arc_easy", ("acc", "acc_norm"), "acc"),
    ("afrixnli_native_direct_swa", ("f1", "acc"), "acc"), ("gsm8k", ("strict", "exact"), "strict"),
])  # fmt: skip
def test_the_main_metric(name, metrics, main):
    assert main_metric(name, metrics) == main


# Settings and shots.


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
    for name, given, shots in (("arc_easy", 2, 2), ("arc_easy", None, 0), ("bhs_swahili", 3, 0)):
        task = next(iter(plan_of(name, data=data, shots=given)[0].load()["tasks"].values()))
        assert task.get_config("num_fewshot") == shots


# Without a hub.


def test_task_files_and_documents_of_a_folder_take_the_place_of_the_hub_s(tmp_path):
    write_lines(tmp_path / "piqa.jsonl", PIQA[:2])
    write_lines(tmp_path / "questions.jsonl", PIQA)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["mine", "piqa"]}))
    assert documents(tmp_path, "piqa") == documents(tmp_path, "both", "piqa") == PIQA[:2]
    assert documents(tmp_path, "mine") == PIQA
    [planned] = plan_of("mine", data=tmp_path)
    assert planned.source("mine") == "local: questions.jsonl" and planned.is_local
    write_lines(tmp_path / "questions.jsonl", PIQA[1:])
    assert settings_of("mine", data=tmp_path) != planned.settings
    (tmp_path / "any.yaml").write_text(yaml.safe_dump({
        "include": str(tasks_root() / "arc/arc_easy.yaml"), "task": "arc_easy", "dataset_path": "json",
        "dataset_name": None, "dataset_kwargs": {"data_files": {"test": "data.jsonl"}}, "training_split": None,
        "validation_split": None,
    }))  # fmt: skip
    write_lines(tmp_path / "data.jsonl", rows(arc, 3))
    assert documents(tmp_path, "arc_easy") == rows(arc, 3), "it goes before lm-eval's own"


def test_the_tasks_of_a_group_have_files_of_their_own(tmp_path):
    data = write_data(tmp_path)
    found = documents(data, "bhs_swahili", "bhs__swahili__N_of_Poss_ni_A")
    assert found == [row for row in rows(bhs, 27) if row["pattern"] == "swahili-N_of_Poss_ni_A"]
    (data / f"bhs__swahili__{PAIRS[0]}.jsonl").unlink()
    [planned] = plan_of("bhs_swahili", data=data)
    assert planned.source(f"bhs__swahili__{PAIRS[0]}") == "hub" and not planned.is_local


@pytest.mark.parametrize(("name", "text", "words"), [
    ("piqa", '{"goal": "a", "sol1": "b", "label": 0}', "layout it expects in piqa.jsonl .*dataset baber/piqa"),
    ("arc_easy", '{"question": "a", "choices": ["b", "c"], "answerKey": "A"}', "it reads the dataset allenai/ai2_arc"),
    ("piqa", "\n".join(json.dumps(row) for row in [*PIQA, {"sol1": "a", "sol2": "b", "label": 0}]),
     "'piqa' needs the field 'goal', and row 5 of piqa.jsonl has nothing in it"),
    ("piqa", '{"goal": 1}\n{"goal":\n', "the layout it expects in piqa.jsonl"),
    ("piqa", None, "has nothing for these tasks: put the documents of 'piqa' into piqa.jsonl"),
    ("squadv2", "{}", "'squadv2' is a program that fetches its data itself"),
    ("gsm8k", '{"question": "a", "answer": "b"}', "from its 'train' documents.*gsm8k.train.jsonl.*--shots 0"),
])  # fmt: skip
def test_documents_that_do_not_fit_get_a_sentence(name, text, words, tmp_path):
    if text is not None:
        (tmp_path / f"{name}.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        plan_of(name, data=tmp_path, shots=None if name == "gsm8k" else 0)
    assert "\n" not in str(caught.value)


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
