"""A task's numbers are lm-eval's own, on every kind of student; its record holds chance and each document's value."""

import json
import math
import random

import lm_eval.evaluator
import lm_eval.models.huggingface
import numpy as np
import pytest
import torch
from torch.nn import functional

from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import load_tokenizer
from slm_ray.evaluate.task_run import TaskModel, run_task
from slm_ray.records.files import cache_folder
from tests.evaluate.task_cases import MMLU_PARTS, PAIRS, lm_eval_numbers, load, plan_of, save_tiny, write_data


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


def measure(model, data, name, batch=4, precision="fp32", lines=None, shots=0, limit=None, key="key"):
    [planned] = plan_of(name, data=data, shots=shots, limit=limit)
    header = {"name": name, "key": key, "settings": {}, "model": "m", "params": 1, "seconds": 0}
    say = (lambda text: None) if lines is None else lines.append
    return run_task(load(model, precision), load_tokenizer(model), planned, header, batch=batch, say=say)


def figures(record):
    """The figures of its only task, and what they are made of."""
    return record.tasks[0], record.values[record.tasks[0].task]


def values_of(results):
    """lm-eval's results of a task without what is no number of it."""
    return {key: value for key, value in results.items() if "," in key}


@pytest.mark.parametrize(("name", "split", "kind"), [
    ("arc_easy", "test", "plain"), ("arc_easy", "test", "uneven"), ("lambada_openai", "test", "plain"),
    ("winogrande", "validation", "uneven"), ("gsm8k", "test", "plain"),
])  # fmt: skip
def test_a_task_s_numbers_are_lm_eval_s(name, split, kind, data, models, tmp_path, quick):
    files = {split: data / f"{name}.jsonl"}
    if name == "arc_easy":
        files["train"] = data / "arc_easy.train.jsonl"
    theirs = lm_eval_numbers(models[kind], name, {name: files}, tmp_path / "lm_eval", num_fewshot=0)[name]
    record = measure(models[kind], data, name)
    assert values_of(record.values[name].lm_eval) == values_of(theirs)


def test_examples_before_a_question_are_lm_eval_s(data, models, tmp_path, quick):
    files = {"arc_easy": {"test": data / "arc_easy.jsonl", "train": data / "arc_easy.train.jsonl"}}
    theirs = lm_eval_numbers(models["plain"], "arc_easy", files, tmp_path / "lm_eval", num_fewshot=2, limit=5)
    row, values = figures(measure(models["plain"], data, "arc_easy", shots=2, limit=5))
    assert values_of(values.lm_eval) == values_of(theirs["arc_easy"])
    assert (row.shots, row.limit, row.documents) == (2, 5, 5)
    _, zero = figures(measure(models["plain"], data, "arc_easy", limit=5))
    assert zero.samples["gold_bits_per_byte"] != values.samples["gold_bits_per_byte"]
    assert zero.documents_digest == values.documents_digest


@pytest.mark.parametrize(("group", "members", "kind"), [
    ("global_mmlu_sw", [f"global_mmlu_sw_{name}" for name in MMLU_PARTS], "uneven"),  # weighted by size
    ("bhs_swahili", [f"bhs__swahili__{name}" for name in PAIRS], "plain"),  # equal weights
])  # fmt: skip
def test_a_group_is_lm_eval_s(group, members, kind, data, models, tmp_path, quick):
    files = {name: {"test": data / f"{name}.jsonl"} for name in members}
    theirs = lm_eval_numbers(models[kind], group, files, tmp_path / "lm_eval", num_fewshot=0)
    check_group(measure(models[kind], data, group), theirs)


def check_group(record, theirs):
    *rows, group = record.tasks
    tasks = {row.task: row for row in rows}
    for name in tasks:
        assert values_of(record.values[name].lm_eval) == values_of(theirs[name])
    expected = theirs[group.task]
    assert group.metrics["acc"].value == expected["acc,none"]
    assert group.metrics["acc"].stderr == expected["acc_stderr,none"]
    assert group.documents == sum(row.documents for row in rows) > len(rows)
    assert group.members == tuple(tasks) and math.fsum(group.weights.values()) == pytest.approx(1)
    for metric in ("acc", "gold_bits_per_byte"):
        whole = sum(group.weights[name] * row.metrics[metric].value for name, row in tasks.items())
        assert whole == pytest.approx(group.metrics[metric].value)


def test_a_record_has_chance_and_a_value_per_document(data, models):
    row, values = figures(measure(models["plain"], data, "arc_easy"))
    assert row.chance == pytest.approx((4 / 3 + 3 / 4) / 7)  # four documents of three choices, three of four
    assert row.main == "acc" and row.title == "ARC-Easy" and row.source == "local: arc_easy.jsonl"
    for name in ("acc", "acc_norm", "gold_bits_per_byte"):
        assert len(values.samples[name]) == row.documents == 7
        assert np.mean(values.samples[name]) == pytest.approx(row.metrics[name].value)
        assert row.metrics[name].interval[0] < row.metrics[name].value < row.metrics[name].interval[1]
    assert row.metrics["gold_bits_per_byte"].better == "less" and row.metrics["acc"].better == "more"


def test_what_is_no_mean_has_no_values_per_document_and_filters_are_metrics_of_their_own(data, models):
    row, values = figures(measure(models["plain"], data, "lambada_openai"))
    assert set(row.metrics) == {"perplexity", "acc", "gold_bits_per_byte"}
    assert set(values.samples) == {"acc", "gold_bits_per_byte"}
    assert row.metrics["perplexity"].better == "less" and row.metrics["perplexity"].stderr > 0
    row, values = figures(measure(models["plain"], data, "gsm8k"))
    assert set(row.metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert row.main == "exact_match,strict-match" and all(len(each) == 3 for each in values.samples.values())


def test_bits_per_byte_of_the_right_answer_by_their_definition(data, models):
    _, values = figures(measure(models["plain"], data, "arc_easy", batch=1))
    model, tokenizer = load(models["plain"]).model, load_tokenizer(models["plain"])
    rows = [json.loads(line) for line in (data / "arc_easy.jsonl").read_text().splitlines()]
    for row, measured in zip(rows, values.samples["gold_bits_per_byte"], strict=True):
        right = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        prompt, answer = f"Question: {row['question']}\nAnswer:", f" {right}"
        before, ids = tokenizer(prompt)["input_ids"], torch.tensor(tokenizer(prompt + answer)["input_ids"])
        with torch.no_grad():
            logits = model(ids[:-1].unsqueeze(0)).logits[0]
        nats = functional.cross_entropy(logits, ids[1:], reduction="none")[len(before) - 1 :].sum()
        assert measured == pytest.approx(float(nats) / math.log(2) / len(answer.encode()), rel=1e-4)


def test_a_measurement_does_not_depend_on_what_was_measured_before(data, models):
    first = measure(models["plain"], data, "arc_easy", shots=2)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert measure(models["plain"], data, "arc_easy", shots=2) == first


def test_an_interrupted_measurement_asks_no_question_twice(data, models, monkeypatch):
    """Requests that were answered before a kill come from lm-eval's cache; then the cache goes."""
    whole = measure(models["plain"], data, "lambada_openai", batch=1)
    asked, real = [], TaskModel.loglikelihood
    counter = lm_eval.models.huggingface.HFLM._model_call

    def call(self, inputs, **options):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(inputs)
        return counter(self, inputs, **options)

    monkeypatch.setattr(lm_eval.models.huggingface.HFLM, "_model_call", call)
    with pytest.raises(KeyboardInterrupt):
        measure(models["plain"], data, "lambada_openai", batch=1)
    seen = []

    def answer(self, requests, **options):
        seen.extend(requests)
        return real(self, requests)

    monkeypatch.setattr(lm_eval.models.huggingface.HFLM, "_model_call", counter)
    monkeypatch.setattr(TaskModel, "loglikelihood", answer)
    assert measure(models["plain"], data, "lambada_openai", batch=1) == whole
    assert len(seen) == 6 - 3 and not list((cache_folder() / "responses").glob("key*"))


def test_bf16_multiplies_in_bf16_and_adds_in_fp32(data, models):
    exact, rounded = (
        figures(measure(models["plain"], data, "arc_easy", precision=precision))[1].samples["gold_bits_per_byte"]
        for precision in ("fp32", "bf16")
    )
    assert rounded != exact
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_progress_is_said_and_lm_eval_s_own_is_not(data, models, monkeypatch, capfd):
    monkeypatch.setattr("slm_ray.evaluate.ticker._EVERY_SECONDS", 0.0)
    lines = []
    measure(models["plain"], data, "lambada_openai", batch=1, lines=lines)
    parts = [line.split(" · ") for line in lines]
    assert [part[:2] for part in parts] == [["lambada_openai", f"{number}/6 requests"] for number in range(1, 6)]
    assert all(part[2].startswith("ETA") for part in parts)
    assert capfd.readouterr() == ("", "")


def test_what_a_short_model_cannot_read_is_said(data, tmp_path):
    lines, short = [], save_tiny(tmp_path / "short", positions=24)
    assert measure(short, data, "arc_easy", shots=3, lines=lines).cut_requests > 0
    assert any("longer than the model's 24 tokens" in line for line in lines)
    with pytest.raises(UserError, match="generates up to 256 tokens, and the model has 24 positions"):
        measure(short, data, "gsm8k")
