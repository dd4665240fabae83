"""Tasks without a hub: lm-eval's task files in a folder, and documents in place of those of its own tasks."""

import json

import pytest
import yaml

from slm_ray.config.errors import ConfigError, UserError
from slm_ray.evaluate.tasks import tasks_root
from tests.evaluate.task_cases import PAIRS, arc, bhs, plan_of, rows, write_data, write_lines

PIQA = [{"goal": f"goal {number}", "sol1": "one way", "sol2": "another", "label": number % 2} for number in range(4)]
OWN = {
    "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{goal}}", "doc_to_target": "label",
    "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": [{"metric": "acc"}],
}  # fmt: skip


def documents(folder, name, task=None, shots=0):
    [planned] = plan_of(name, data=folder, shots=shots)
    return list(planned.load()["tasks"][task or name].eval_docs)


def refused(folder, name, words, *, shots=0):
    with pytest.raises(UserError, match=words) as caught:
        plan_of(name, data=folder, shots=shots)
    assert "\n" not in str(caught.value)


def write_task(path, config):
    path.write_text(yaml.safe_dump(config))


def test_documents_beside_nothing_else_take_the_place_of_the_hub_s(tmp_path):
    write_lines(tmp_path / "piqa.jsonl", PIQA)
    [planned] = plan_of("piqa", data=tmp_path)
    assert documents(tmp_path, "piqa") == PIQA
    assert planned.source("piqa") == "local: piqa.jsonl" and planned.is_local


def test_a_task_file_of_the_user_s_is_lm_eval_s_own_kind(tmp_path):
    write_lines(tmp_path / "questions.jsonl", PIQA)
    write_task(tmp_path / "mine.yaml", OWN)
    write_task(tmp_path / "both.yaml", {"group": "both", "task": ["mine", "piqa"]})
    write_lines(tmp_path / "piqa.jsonl", PIQA[:2])
    assert documents(tmp_path, "mine") == PIQA
    assert documents(tmp_path, "both", "piqa") == PIQA[:2], "a group takes lm-eval's tasks too"
    [planned] = plan_of("mine", data=tmp_path)
    assert planned.source("mine") == "local: questions.jsonl"
    write_lines(tmp_path / "questions.jsonl", PIQA[1:])
    assert plan_of("mine", data=tmp_path)[0].settings != planned.settings
    refused(tmp_path, "theirs", "there is no task 'theirs'")


def test_a_task_file_may_change_lm_eval_s_and_goes_before_it(tmp_path):
    write_lines(tmp_path / "data.jsonl", rows(arc, 3))
    write_task(tmp_path / "any.yaml", {
        "include": str(tasks_root() / "arc/arc_easy.yaml"), "task": "arc_easy", "dataset_path": "json",
        "dataset_name": None, "dataset_kwargs": {"data_files": {"test": "data.jsonl"}}, "training_split": None,
        "validation_split": None,
    })  # fmt: skip
    assert documents(tmp_path, "arc_easy") == rows(arc, 3)


def test_the_tasks_of_a_group_have_files_of_their_own(tmp_path):
    data = write_data(tmp_path)
    found = documents(data, "bhs_swahili", "bhs__swahili__N_of_Poss_ni_A")
    assert found == [row for row in rows(bhs, 27) if row["pattern"] == "swahili-N_of_Poss_ni_A"]
    [planned] = plan_of("bhs_swahili", data=data)
    assert len(planned.load()["tasks"]) == len(PAIRS) and planned.is_local
    (data / f"bhs__swahili__{PAIRS[0]}.jsonl").unlink()
    [planned] = plan_of("bhs_swahili", data=data)
    assert planned.source(f"bhs__swahili__{PAIRS[0]}") == "hub" and not planned.is_local


def test_examples_come_from_the_split_that_lm_eval_takes_them_from(tmp_path):
    write_lines(tmp_path / "arc_easy.jsonl", rows(arc, 3))
    refused(tmp_path, "arc_easy", "its examples from its 'train' documents.*arc_easy.train.jsonl.*--shots 0", shots=2)
    write_lines(tmp_path / "arc_easy.train.jsonl", rows(arc, 2))
    assert len(documents(tmp_path, "arc_easy", shots=2)) == 3


@pytest.mark.parametrize(("name", "text", "words"), [
    ("piqa", '{"goal": "a", "sol1": "b", "label": 0}', "layout it expects in piqa.jsonl .*dataset baber/piqa"),
    ("hellaswag", '{"ctx": "a", "endings": ["b"], "label": "0"}', "ctx_a.*it reads the dataset Rowan/hellaswag"),
    ("arc_easy", '{"question": "a", "choices": ["b", "c"], "answerKey": "A"}', "it reads the dataset allenai/ai2_arc"),
    ("winogrande", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', "not found"),
    ("piqa", "\n".join(json.dumps(row) for row in [*PIQA, {"sol1": "a", "sol2": "b", "label": 0}]),
     "'piqa' needs the field 'goal', and row 5 of piqa.jsonl has nothing in it"),
    ("piqa", '{"goal": 1}\n{"goal":\n', "the layout it expects in piqa.jsonl"),
])  # fmt: skip
def test_documents_that_do_not_fit_get_a_sentence(name, text, words, tmp_path):
    (tmp_path / f"{name}.jsonl").write_text(text)
    refused(tmp_path, name, words)


def test_other_mistakes_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        plan_of("piqa", data=tmp_path / "nowhere")
    refused(tmp_path, "piqa", "has nothing for these tasks: put the documents of 'piqa' into piqa.jsonl")
    write_lines(tmp_path / "squadv2.jsonl", PIQA)
    refused(tmp_path, "squadv2", "'squadv2' is a program that fetches its data itself")
