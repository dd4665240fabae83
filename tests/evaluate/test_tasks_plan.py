"""Names become tasks and groups; a plan is rebuilt alike elsewhere, and its settings change when a result could."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks._factory as factory
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks import harness
from slm_ray.evaluate.tasks.build import read_leaf
from slm_ray.evaluate.tasks.expand import Expansion
from slm_ray.evaluate.tasks.fields import expected_fields
from slm_ray.evaluate.tasks.index import GROUP, PYTHON, TAG, TASK, task_index
from slm_ray.evaluate.tasks.layout import Splits
from slm_ray.evaluate.tasks.plan import TaskPlan, plan_tasks
from slm_ray.evaluate.tasks.suites import SUITES, main_metric
from tests.evaluate.task_cases import arc, rows, write_data, write_lines


def plan_of(*names, data=None, shots=None, limit=None) -> TaskPlan:
    return plan_tasks(names, task_data=data, shots=shots, limit=limit)


@pytest.mark.parametrize("name", list(SUITES))
def test_every_suite_is_of_tasks_that_lm_eval_has(name):
    plan = plan_of(name)
    assert plan.suites == {name: tuple(SUITES[name].tasks)}
    assert set(plan.suites[name]) <= {*plan.tasks, *plan.groups}
    assert all(plan.settings(task)["lm_eval"] == harness.lm_eval_version() for task in plan.tasks)


def test_the_suite_of_inheritune_takes_examples_for_mmlu_only():
    plan = plan_of("inheritune")
    shots = {task: plan.task(task).shots for task in plan.tasks}
    assert {shots[task] for task in plan.groups["mmlu"].members} == {5}
    assert {shots[task] for task in shots if task not in plan.groups["mmlu"].members} == {0}


def test_groups_are_expanded_once_and_in_order():
    plan = plan_of("blimp", "piqa", "mmlu", "mmlu_anatomy", "blimp_causative")
    assert plan.tasks[0] == "blimp_adjunct_island" and plan.tasks[67] == "piqa"
    assert len(plan.tasks) == len(set(plan.tasks)) == 67 + 1 + 57
    assert set(plan.groups) == {"blimp", "mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
    assert "mmlu_anatomy" in plan.groups["mmlu_stem"].members
    assert sum(len(plan.groups[name].members) for name in plan.groups if name.startswith("mmlu_")) == 57
    assert plan.groups["mmlu"].aggregate == ({"metric": "acc", "weight_by_size": True},)


def test_tags_are_their_tasks():
    assert plan_of("ai2_arc").tasks == ("arc_challenge", "arc_easy")


def test_a_group_that_changes_its_tasks_is_followed():
    """Open LLM's old leaderboard asks for 25 examples of ARC-Challenge, 10 of HellaSwag, …"""
    plan = plan_of("openllm")
    assert plan.task("arc_challenge").shots == 25 and plan.task("hellaswag").shots == 10
    with pytest.raises(UserError, match="want task 'arc_challenge' done differently"):
        plan_of("openllm", "arc_challenge")


def test_shots_are_the_user_s_unless_the_task_fixes_them_at_zero():
    plan = plan_of("piqa", "blimp_causative", "gsm8k", shots=3)
    assert [plan.task(name).shots for name in plan.tasks] == [3, 0, 3]
    assert plan_of("gsm8k").task("gsm8k").shots == 5


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(UserError, match=r"no task 'helaswag': did you mean 'hellaswag'.*inheritune, pythia, small"):
        plan_of("helaswag")
    with pytest.raises(UserError, match="did you mean 'swahili'"):
        plan_of("swahilli")


def test_a_task_asked_for_twice_takes_the_suite_s_examples():
    assert plan_of("mmlu_anatomy", "inheritune").task("mmlu_anatomy").shots == 5
    assert plan_of("inheritune", "mmlu").task("mmlu_anatomy").shots == 5
    assert plan_of("inheritune", "mmlu", shots=2).task("mmlu_anatomy").shots == 2
    numbers = [{name: suite.tasks[name] for name in suite.tasks} for suite in SUITES.values()]
    assert all(first[name] == second[name] for first in numbers for second in numbers for name in {*first} & {*second})


def test_tasks_that_run_code_or_need_eyes_are_refused(monkeypatch):
    with pytest.raises(UserError, match="'mbpp' runs programs that the model writes: set HF_ALLOW_CODE_EVAL=1"):
        plan_of("mbpp")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert plan_of("mbpp").tasks == ("mbpp",)
    with pytest.raises(UserError, match="sees or hears"):
        plan_of("mmmu_val_biology")


def test_without_hub_and_local_data_there_is_one_sentence():
    plan = plan_of("arc_easy")
    with pytest.raises(
        UserError, match=r"'arc_easy' did not get the dataset allenai/ai2_arc \(ARC-Easy\) .*--task-data"
    ):
        plan.check_downloads(plan.tasks)


def test_a_plan_comes_back_from_json_the_same(tmp_path):
    plan = plan_of("arc_easy", "bhs_swahili", "mmlu_anatomy", data=None, shots=2, limit=4)
    again = TaskPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and again.tasks == plan.tasks
    assert json.dumps(again.settings("arc_easy")) == json.dumps(plan.settings("arc_easy"))
    local = plan_of("arc_easy", data=write_data(tmp_path), shots=2)
    one = TaskPlan.from_json(json.loads(json.dumps(local.only("arc_easy").to_json())))
    assert one.task("arc_easy") == local.task("arc_easy")


def test_a_plan_of_another_lm_eval_is_refused():
    value = plan_of("piqa").to_json() | {"lm_eval": "0.1"}
    with pytest.raises(UserError, match=r"planned with 0\.1"):
        TaskPlan.from_json(value)


def test_settings_follow_what_decides_a_result_and_nothing_else(tmp_path):
    first, second = tmp_path / "first", tmp_path / "elsewhere"
    for folder in (first, second):
        write_lines(folder / "arc_easy.jsonl", rows(arc, 5))
    settings = plan_of("arc_easy", data=first).settings("arc_easy")
    assert str(tmp_path) not in json.dumps(settings)
    assert plan_of("arc_easy", data=second).settings("arc_easy") == settings
    assert plan_of("arc_easy").settings("arc_easy") != settings
    assert plan_of("arc_easy", data=first, limit=3).settings("arc_easy") != settings
    write_lines(second / "arc_easy.jsonl", rows(arc, 6))
    assert plan_of("arc_easy", data=second).settings("arc_easy") != settings
    write_lines(first / "arc_easy" / "train.jsonl", rows(arc, 5))
    assert plan_of("arc_easy", data=first).settings("arc_easy") == settings, "examples are not read with no shots"
    assert plan_of("arc_easy", data=first, shots=1).settings("arc_easy") != settings


def test_settings_name_the_code_of_a_task_and_no_place_of_this_machine():
    settings = plan_of("hellaswag").settings("hellaswag")
    assert settings["config"]["process_docs"] == "!function hellaswag/utils.process_docs"
    assert list(settings["functions"]) == ["hellaswag/utils.py"]
    assert str(harness.tasks_root()) not in json.dumps(settings)


FOLDERS = "arc afrixnli benchmarks bhs blimp darija_bench glue lambada lingoly mmlu scrolls truthfulqa xcopa".split()


@pytest.fixture(scope="module")
def lm_eval_index():
    """lm-eval's own, of some of its folders; all would take it six to ten seconds."""
    with harness.quiet():
        paths = [harness.tasks_root() / folder for folder in FOLDERS]
        return TaskManager(include_defaults=False, include_path=paths).task_index


def test_the_index_is_lm_eval_s_own(lm_eval_index):
    kinds = {Kind.TASK: TASK, Kind.PY_TASK: PYTHON, Kind.GROUP: GROUP, Kind.TAG: TAG}
    assert {entry.kind for entry in lm_eval_index.values()} == set(kinds)
    for name, theirs in lm_eval_index.items():
        ours = task_index()[name]
        file = theirs.yaml_path.relative_to(harness.tasks_root()).as_posix() if theirs.yaml_path else ""
        assert (ours.kind, ours.file) == (kinds[theirs.kind], file), name
        assert theirs.kind != Kind.TAG or set(ours.tasks) >= theirs.tags, name
        assert theirs.kind != Kind.GROUP or ours.config.keys() == theirs.cfg.keys(), name


def test_groups_have_the_tasks_that_lm_eval_gives_them(lm_eval_index, monkeypatch):
    """Its own factory, with tasks that read no data."""
    monkeypatch.setattr(factory, "ConfigurableTask", lambda config: SimpleNamespace(task_name=config["task"]))
    build = factory.TaskFactory().build
    for name in ("mmlu", "mmlu_continuation", "blimp", "bhs_swahili", "darija_transliteration"):
        ours = Expansion(task_index())
        ours.add(name)
        with harness.quiet():
            theirs = build(lm_eval_index[name], registry=lm_eval_index)
        assert ours.groups[name].members == tuple(dict.fromkeys(leaves_of(theirs))), name


def leaves_of(group):
    for child in group:
        yield from [child.task_name] if hasattr(child, "task_name") else leaves_of(child)


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
    plan = plan_of(*SUITES)
    assert set(table) == {name for suite in SUITES.values() for name in suite.tasks}
    for name, line in table.items():
        leaf = plan.task(plan.groups[name].members[0] if name in plan.groups else name).leaf
        config = read_leaf(leaf, functions=True)
        splits = Splits.of(name, config, 0 if config.get("num_fewshot") == 0 else 1)
        assert line == f"{splits.evaluated} | {splits.examples or ''} | {', '.join(expected_fields(config))}"
    assert all(f"| `{name}` | " in page for name in SUITES)
