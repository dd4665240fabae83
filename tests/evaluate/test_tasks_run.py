"""A task's numbers are lm-eval's own, on every kind of student; its record holds chance and each document's value."""

import json
import math
import random

import lm_eval.evaluator
import numpy as np
import pytest
import torch
from torch.nn import functional

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import load_tokenizer
from slm_ray.evaluate.tasks.groups import group_rows
from slm_ray.evaluate.tasks.model import task_model
from slm_ray.evaluate.tasks.plan import TaskPlan, plan_tasks
from slm_ray.evaluate.tasks.run import run_task
from tests.evaluate import task_cases
from tests.evaluate.task_cases import PAIRS, lm_eval_numbers, load, save_tiny, write_data, write_lines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"plain": save_tiny(folder / "plain"), "uneven": save_tiny(folder / "uneven", axis="first attention")}


@pytest.fixture
def quick(monkeypatch):
    """lm-eval describes the machine in its results by calling pip and others: not what is tested here."""
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)


def plan_of(data, *names, shots=0, limit=None) -> TaskPlan:
    return plan_tasks(names, task_data=data, shots=shots, limit=limit)


def measure(model, plan, name, batch=4, precision="fp32", lines=None):
    say = (lambda text: None) if lines is None else lines.append
    return run_task(load(model, precision), load_tokenizer(model), plan, name, batch=batch, say=say)


def values_of(results):
    """lm-eval's results of a task without what is no number of it."""
    return {key: value for key, value in results.items() if "," in key}


@pytest.mark.parametrize("kind", ["plain", "uneven"])
@pytest.mark.parametrize(("name", "split"), [
    ("arc_easy", "test"), ("lambada_openai", "test"), ("winogrande", "validation"), ("gsm8k", "test"),
    ("nq_open", "validation"),
])  # fmt: skip
def test_a_task_s_numbers_are_lm_eval_s(name, split, kind, data, models, tmp_path, quick):
    place = {"arc_easy": "arc_easy", "gsm8k": "gsm8k", "nq_open": "nq_open"}.get(name, f"{name}/{split}")
    files = {split: data / f"{place}.jsonl"}
    if name == "arc_easy":
        files["train"] = data / "arc_easy" / "train.jsonl"
    theirs = lm_eval_numbers(models[kind], name, {name: files}, tmp_path / "lm_eval", num_fewshot=0)[name]
    record = measure(models[kind], plan_of(data, name), name)
    assert values_of(record["lm_eval"]) == values_of(theirs)
    json.dumps(record, allow_nan=False)


def test_examples_before_a_question_are_lm_eval_s(data, models, tmp_path, quick):
    files = {"arc_easy": {"test": data / "arc_easy.jsonl", "train": data / "arc_easy" / "train.jsonl"}}
    theirs = lm_eval_numbers(models["plain"], "arc_easy", files, tmp_path / "lm_eval", num_fewshot=2, limit=5)
    plan = plan_of(data, "arc_easy", shots=2, limit=5)
    record = measure(models["plain"], plan, "arc_easy")
    assert values_of(record["lm_eval"]) == values_of(theirs["arc_easy"])
    assert (record["shots"], record["limit"], record["documents"]) == (2, 5, 5)
    zero = measure(models["plain"], plan_of(data, "arc_easy", limit=5), "arc_easy")
    assert zero["samples"]["gold_bits_per_byte"] != record["samples"]["gold_bits_per_byte"]
    assert zero["documents_digest"] == record["documents_digest"]


def test_a_group_weighted_by_size_is_lm_eval_s(data, models, tmp_path, quick):
    members = ("business", "humanities", "medical", "other", "stem", "social_sciences")
    files = {f"global_mmlu_sw_{name}": {"test": data / "global_mmlu_sw.jsonl"} for name in members}
    theirs = lm_eval_numbers(models["uneven"], "global_mmlu_sw", files, tmp_path / "lm_eval", num_fewshot=0)
    check_group(models["uneven"], plan_of(data, "global_mmlu_sw"), theirs)


def test_a_group_of_equal_weights_is_lm_eval_s(data, models, tmp_path, quick):
    rows, files = task_cases.rows(task_cases.bhs, 27), {}
    for name in PAIRS:
        mine = [row for row in rows if row["pattern"] == f"swahili-{name}"]
        files[f"bhs__swahili__{name}"] = {"test": write_lines(tmp_path / f"{name}.jsonl", mine)}
    theirs = lm_eval_numbers(models["plain"], "bhs_swahili", files, tmp_path / "lm_eval", num_fewshot=0)
    check_group(models["plain"], plan_of(data, "bhs_swahili"), theirs)


def check_group(model, plan, theirs):
    records = {name: measure(model, plan, name) for name in plan.tasks}
    [row] = group_rows(plan, records)
    for name, record in records.items():
        assert values_of(record["lm_eval"]) == values_of(theirs[name])
    expected = theirs[row["task"]]
    assert row["metrics"]["acc"]["value"] == expected["acc,none"]
    assert row["metrics"]["acc"]["stderr"] == expected["acc_stderr,none"]
    assert row["documents"] == sum(record["documents"] for record in records.values()) > len(records)
    assert row["members"] == list(plan.tasks) and row["group"]
    assert math.fsum(row["weights"].values()) == pytest.approx(1)
    whole = sum(row["weights"][name] * records[name]["metrics"]["acc"]["value"] for name in records)
    assert whole == pytest.approx(row["metrics"]["acc"]["value"])
    bits = sum(row["weights"][name] * records[name]["metrics"]["gold_bits_per_byte"]["value"] for name in records)
    assert row["metrics"]["gold_bits_per_byte"]["value"] == pytest.approx(bits)
    assert group_rows(plan, {name: records[name] for name in list(records)[1:]}) == []


def test_a_record_has_chance_and_a_value_per_document(data, models):
    record = measure(models["plain"], plan_of(data, "arc_easy"), "arc_easy")
    assert record["chance"] == pytest.approx((4 / 3 + 3 / 4) / 7)  # four documents of three choices, three of four
    assert record["main"] == "acc" and record["title"] == "ARC-Easy" and record["source"] == "local: arc_easy.jsonl"
    for name in ("acc", "acc_norm", "gold_bits_per_byte"):
        assert len(record["samples"][name]) == record["documents"] == 7
        assert np.mean(record["samples"][name]) == pytest.approx(record["metrics"][name]["value"])
    assert record["metrics"]["gold_bits_per_byte"]["better"] == "less" and record["metrics"]["acc"]["better"] == "more"


def test_what_is_no_mean_has_no_values_per_document(data, models):
    record = measure(models["plain"], plan_of(data, "lambada_openai"), "lambada_openai")
    assert set(record["metrics"]) == {"perplexity", "acc", "gold_bits_per_byte"}
    assert set(record["samples"]) == {"acc", "gold_bits_per_byte"}
    assert record["metrics"]["perplexity"]["better"] == "less" and record["metrics"]["perplexity"]["stderr"] > 0
    assert record["chance"] is None and record["main"] == "acc"


def test_filters_of_one_task_are_metrics_of_their_own(data, models):
    record = measure(models["plain"], plan_of(data, "gsm8k"), "gsm8k")
    assert set(record["metrics"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert record["main"] == "exact_match,strict-match"
    assert all(len(values) == 3 for values in record["samples"].values())


@pytest.mark.parametrize(("name", "place"), [("arc_easy", "arc_easy"), ("winogrande", "winogrande/validation")])
def test_bits_per_byte_of_the_right_answer_by_their_definition(name, place, data, models):
    record = measure(models["plain"], plan_of(data, name), name, batch=1)
    model, tokenizer = load(models["plain"]).model, load_tokenizer(models["plain"])
    rows = [json.loads(line) for line in (data / f"{place}.jsonl").read_text().splitlines()]
    for row, measured in zip(rows, record["samples"]["gold_bits_per_byte"], strict=True):
        if name == "arc_easy":
            right = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
            prompt, answer = f"Question: {row['question']}\nAnswer:", f" {right}"
        else:
            start, end = row["sentence"].split("_")
            prompt, answer = start + row[f"option{row['answer']}"], " " + end.strip()
        before, ids = tokenizer(prompt)["input_ids"], torch.tensor(tokenizer(prompt + answer)["input_ids"])
        with torch.no_grad():
            logits = model(ids[:-1].unsqueeze(0)).logits[0]
        nats = functional.cross_entropy(logits, ids[1:], reduction="none")[len(before) - 1 :].sum()
        assert measured == pytest.approx(float(nats) / math.log(2) / len(answer.encode()), rel=1e-4)


def test_a_model_is_wrapped_once_and_its_tokenizer_left_alone(data, models):
    loaded, tokenizer = load(models["plain"]), load_tokenizer(models["plain"])
    before = (tokenizer.pad_token, len(tokenizer))
    plan = plan_of(data, "arc_easy", "nq_open")
    for name in plan.tasks:
        run_task(loaded, tokenizer, plan, name, batch=2, say=lambda text: None)
    assert task_model(loaded, tokenizer) is task_model(loaded, tokenizer)
    assert task_model(loaded, tokenizer).model is loaded.model
    assert (tokenizer.pad_token, len(tokenizer)) == before


def test_a_measurement_does_not_depend_on_what_was_measured_before(data, models):
    plan = plan_of(data, "arc_easy", shots=2)
    first = measure(models["plain"], plan, "arc_easy")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert measure(models["plain"], plan, "arc_easy") == first


def test_bf16_multiplies_in_bf16_and_adds_in_fp32(data, models):
    plan = plan_of(data, "arc_easy")
    exact = measure(models["plain"], plan, "arc_easy")["samples"]["gold_bits_per_byte"]
    rounded = measure(models["plain"], plan, "arc_easy", precision="bf16")["samples"]["gold_bits_per_byte"]
    assert rounded != exact
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_progress_is_said_and_lm_eval_s_own_is_not(data, models, monkeypatch, capfd):
    monkeypatch.setattr("slm_ray.runtime.progress._LINE_INTERVAL_SECONDS", 0.0)
    plan = plan_of(data, "lambada_openai")
    run_task(load(models["plain"]), load_tokenizer(models["plain"]), plan, "lambada_openai", batch=1, say=print)
    seen = capfd.readouterr()
    lines = [line.split(" · ") for line in seen.out.splitlines()]
    assert [line[:2] for line in lines] == [["lambada_openai", f"{number}/6 requests"] for number in range(1, 7)]
    assert all(line[2].startswith("ETA") for line in lines)
    assert seen.err == ""


def test_what_a_short_model_cannot_read_is_said(data, tmp_path):
    lines, short = [], save_tiny(tmp_path / "short", positions=24)
    record = measure(short, plan_of(data, "arc_easy", shots=3), "arc_easy", lines=lines)
    assert record["cut_requests"] > 0
    assert any("longer than the model's 24 tokens" in line for line in lines)
    with pytest.raises(UserError, match="generates up to 256 tokens, and the model has 24 positions"):
        measure(short, plan_of(data, "nq_open"), "nq_open")
