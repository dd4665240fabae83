"""Local data of tasks: every layout is read the same, and what does not fit is said before a model is loaded."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from slm_ray.config.errors import ConfigError, UserError
from tests.evaluate.task_cases import PAIRS, arc, bhs, plan_of, rows, write_lines

PIQA = [{"goal": f"goal {number}", "sol1": "one way", "sol2": "another", "label": number % 2} for number in range(4)]


def documents(folder, name, shots=0):
    [planned] = plan_of(name, data=folder, shots=shots).tasks
    return list(planned.load()["tasks"][name].eval_docs)


def refused(folder, name, words, *, shots=0, limit=None):
    with pytest.raises(UserError, match=words) as caught:
        plan_of(name, data=folder, shots=shots, limit=limit)
    assert "\n" not in str(caught.value)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def csv_of(values):
    lines = [",".join(values[0]), *(",".join(str(entry) for entry in value.values()) for value in values)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("place", ["piqa", "piqa/validation"])
def test_files_of_every_kind_and_place_are_the_same(place, suffix, tmp_path):
    path = tmp_path / f"{place}{suffix}"
    path.parent.mkdir(exist_ok=True)
    if suffix == ".jsonl":
        write_lines(path, PIQA)
    elif suffix == ".json":
        path.write_text(json.dumps(PIQA))
    elif suffix == ".csv":
        path.write_text(csv_of(PIQA))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PIQA), path)
    assert documents(tmp_path, "piqa") == PIQA


def test_words_in_csv_that_look_like_nothing_stay_words(tmp_path):
    odd = [
        {"goal": "NA", "sol1": "None", "sol2": "NaN", "label": 0},
        {"goal": "null", "sol1": "b", "sol2": "c", "label": 1},
    ]
    put(tmp_path / "piqa.csv", csv_of(odd))
    assert documents(tmp_path, "piqa") == odd


def test_a_map_names_files_renames_fields_and_selects_rows(tmp_path):
    write_lines(tmp_path / "mine" / "all.jsonl", [
        {"task": task, "aim": one["goal"], **{name: one[name] for name in ("sol1", "sol2", "label")}}
        for one in PIQA for task in ("piqa", "other")
    ])  # fmt: skip
    put(tmp_path / "tasks.yaml", "piqa:\n  documents: mine/all.jsonl\n  rename: {aim: goal}\n  select: task\n")
    assert [one["goal"] for one in documents(tmp_path, "piqa")] == [one["goal"] for one in PIQA]
    put(tmp_path / "tasks.yaml", "piqa: elsewhere.jsonl\n")
    refused(tmp_path, "piqa", "names elsewhere.jsonl, which is not there")


def test_tasks_of_a_group_share_a_file(tmp_path):
    write_lines(tmp_path / "bhs_swahili.jsonl", rows(bhs, 27))
    found = documents(tmp_path, "bhs__swahili__N_of_Poss_ni_A")
    assert {one["pattern"] for one in found} == {"swahili-N_of_Poss_ni_A"} and len(found) == 6
    [planned] = plan_of("bhs_swahili", data=tmp_path).tasks
    assert len(planned.load()["tasks"]) == len(PAIRS)
    write_lines(tmp_path / "bhs__swahili__N_of_Poss_V.jsonl", rows(bhs, 2))
    assert len(documents(tmp_path, "bhs__swahili__N_of_Poss_V")) == 2, "a file of its own goes before the group's"


def test_a_shared_file_that_does_not_say_which_rows_are_whose(tmp_path):
    values = rows(bhs, 27)
    write_lines(tmp_path / "bhs_swahili.jsonl", [{**one, "also": one["pattern"]} for one in values])
    refused(tmp_path, "bhs_swahili", "in columns pattern, also: choose with `select:`")
    put(tmp_path / "tasks.yaml", "bhs_swahili: {test: bhs_swahili.jsonl, select: also}\n")
    assert len(documents(tmp_path, "bhs__swahili__N_of_Poss_V")) == 3
    (tmp_path / "tasks.yaml").unlink()
    write_lines(tmp_path / "bhs_swahili.jsonl", [one for one in values if "ni_A" not in one["pattern"]])
    refused(tmp_path, "bhs_swahili", "has no rows of 'bhs__swahili__N_of_Poss_D_AP_V_ni_AN'.*is not in any column")


def test_examples_come_from_the_split_that_lm_eval_takes_them_from(tmp_path):
    write_lines(tmp_path / "arc_easy.jsonl", rows(arc, 3))
    refused(
        tmp_path, "arc_easy", r"takes its examples from its 'train' documents.*arc_easy/train.jsonl.*--shots 0", shots=2
    )
    write_lines(tmp_path / "arc_easy" / "train.jsonl", rows(arc, 1))
    refused(tmp_path, "arc_easy", r"takes 2 examples .* arc_easy/train.jsonl has 1 documents: .*--shots 1", shots=2)
    write_lines(tmp_path / "arc_easy" / "train.jsonl", rows(arc, 2))
    assert len(documents(tmp_path, "arc_easy", shots=2)) == 3


@pytest.mark.parametrize(("name", "values", "words"), [
    ("piqa", [{"goal": "a", "sol1": "b", "label": 0}],
     "'piqa' needs the field 'sol2', and row 1 of piqa.jsonl has no such field, only goal, sol1, label"),
    ("piqa", [*PIQA, {"goal": "a", "sol2": "b", "label": 0}],
     "needs the field 'sol1', and row 5 of piqa.jsonl has no such field, only goal, sol2, label"),
    ("piqa", [*PIQA, PIQA[0] | {"goal": None}], "needs the field 'goal', and row 5 of piqa.jsonl has nothing in it"),
    ("piqa", [one | {"label": str(one["label"])} for one in PIQA],
     "document 1 .*its answer is the text '0', and must be a whole number from 0 to 1 or one of the choices 'one way'"),
    ("piqa", [*PIQA, PIQA[0] | {"label": 2}], "document 5 .*its answer is the number 2"),
    ("piqa", [*PIQA, PIQA[0] | {"label": "x"}], "a field of piqa.jsonl is of different types in different rows"),
    ("hellaswag", [{"ctx": "a", "endings": ["b"], "label": "0"}],
     "does not find the layout it expects in hellaswag.jsonl .*ctx_a.*it reads the dataset Rowan/hellaswag"),
    ("arc_easy", [{"question": "a", "choices": ["b", "c"], "answerKey": "A"}],
     "the layout it expects .*has no attribute 'label'.*it reads the dataset allenai/ai2_arc"),
    ("arc_easy", [arc(0) | {"answerKey": "E"}], "the layout it expects .*is not in list"),
    ("lambada_openai", [{"text": ["a", "b"]}], "the layout it expects .*has no attribute 'split'"),
    ("winogrande", [{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}],
     "the layout it expects .*not found"),
    ("mnli", [{"premise": "a", "hypothesis": "b", "label": -1}], "its answer is the number -1"),
])  # fmt: skip
def test_documents_that_do_not_fit_get_a_sentence(name, values, words, tmp_path):
    write_lines(tmp_path / f"{name}.jsonl", values)
    refused(tmp_path, name, words)


@pytest.mark.parametrize(("file", "text", "words"), [
    ("piqa.jsonl", '{"goal": 1}\n{"goal":\n', "line 2 of .*piqa.jsonl is not JSON"),
    ("piqa.jsonl", "[1]\n", r"line 1 of .*piqa.jsonl is \[1\], and must be an object"),
    ("piqa.jsonl", "\n", "piqa.jsonl has no rows"),
    ("piqa.json", '{"goal": 1}', "holds dict, and must hold a list of objects"),
    ("piqa.json", '{"goal": 1}\n{"goal": 2}', "with one object per line, name it .jsonl"),
    ("piqa.csv", "", "is not CSV"),
    ("piqa.parquet", "goal", "is not a parquet file"),
    ("tasks.yaml", "piqa: [", "is not YAML"),
    ("tasks.yaml", "- piqa", "must map tasks to files"),
    ("tasks.yaml", "pica: pica.jsonl", "names 'pica', which lm-eval has no task or group of"),
    ("tasks.yaml", "piqa: {tset: piqa.jsonl}", "'piqa' in .*tasks.yaml has 'tset'.*validation"),
    ("tasks.yaml", "piqa: {validation: piqa.txt}", "maps 'validation' to 'piqa.txt'"),
    ("tasks.yaml", "piqa: {slect: x}", "maps 'slect' to 'x': give select, rename"),
    ("tasks.yaml", "piqa: {validation: piqa.jsonl, rename: goal}", "'rename' of 'piqa'.* must map a field"),
    ("other.jsonl", "{}", r"no data of task 'piqa': expected its 'validation' documents in piqa.jsonl or "
     "piqa/validation.jsonl.*found other.jsonl"),
])  # fmt: skip
def test_files_that_are_not_what_they_should_be_get_a_sentence(file, text, words, tmp_path):
    put(tmp_path / file, text)
    refused(tmp_path, "piqa", words)


def test_other_mistakes_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        plan_of("piqa", data=tmp_path / "nowhere")
    write_lines(tmp_path / "piqa.jsonl", PIQA)
    write_lines(tmp_path / "piqa" / "validation.jsonl", PIQA)
    refused(tmp_path, "piqa", "piqa/validation.jsonl and piqa.jsonl could both be")
    put(tmp_path / "tasks.yaml", "piqa: {documents: piqa.jsonl, rename: {aim: goal}}\n")
    refused(tmp_path, "piqa", "renames 'aim' to 'goal', but row 1 of piqa.jsonl has no 'aim', only goal, sol1")
    refused(tmp_path, "squadv2", "'squadv2' is a program that fetches its data itself")


def test_a_group_that_misses_one_of_its_files_says_where_it_goes(tmp_path):
    write_lines(tmp_path / "arc_easy.jsonl", rows(arc, 3))
    refused(
        tmp_path, "ai2_arc", r"'arc_challenge': .*, or a file for its whole group \(ai2_arc\).*found arc_easy.jsonl"
    )


def test_only_the_first_documents_are_looked_at_with_a_limit(tmp_path):
    write_lines(tmp_path / "piqa.jsonl", [*PIQA, PIQA[0] | {"label": 7}])
    refused(tmp_path, "piqa", "document 5")
    assert plan_of("piqa", data=tmp_path, limit=4).tasks[0].source("piqa") == "local: piqa.jsonl"
