"""What the commands compute on one small case of each stage, number by number: values that a rebuild leaves equal.

A seeded search, captures of logits, a training of every signal, an evaluation and reports run once, by the public
commands, on a tiny teacher. ``pinned.json`` holds what they gave. Counts, sizes and decisions are compared exactly,
computed numbers to a relative 1e-4, as processors differ in how they sum.

``PIN=1 python -m pytest -n 0 tests/test_pinned.py`` writes ``pinned.json`` anew. A change of that file is one commit
of its own that says why the numbers changed.

The functions above ``CASES`` alone know where a run keeps what: a new format of files changes these and no value.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slm_ray.cli import dispatch
from slm_ray.data.load import load_corpus
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.split import TRAIN
from slm_ray.runtime.progress import Console
from tests.search.tiny_run import make_tokenizer, sentences

PINNED = Path(__file__).with_name("pinned.json")
RELATIVE = 1e-4
LENGTH, BATCH, STEPS, TRIALS = 32, 4, 12, 36
TRAINING_TOKENS = STEPS * BATCH * LENGTH
SIGNALS = ("none", "full", "top-k", "top-k-tail", "sampled")


def command(*argv: object) -> None:
    """Run ``slm-ray ARGV``."""
    assert dispatch([str(word) for word in argv]) == 0, argv


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _architecture(sizes: Mapping[str, Any]) -> list[Any]:
    """Width, then per layer the teacher's layer, query heads, key-value heads and neurons."""
    names = ("source_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return [sizes["hidden_size"], *(list(layer) for layer in zip(*(sizes[name] for name in names), strict=True))]


def read_search(run: Path) -> dict[str, Any]:
    """The front, what it is compared with, and what was spent, of a search."""
    result = _json(run / "result.json")
    spent = result["spent"]
    phases = {name: paid["flops"] for name, paid in spent["paid"].items()}
    return {
        "budget": [result["budget"]["low"], result["budget"]["high"]],
        "teacher": [result["teacher"]["cost"]["params"], result["teacher"]["held_out_perplexity"]],
        "front": [
            {
                "trial": entry["trial"], "winner": entry["winner"], "sizes": _architecture(entry["architecture"]),
                "params": entry["cost"]["params"], "flops": entry["cost"]["flops"],
                "kv_bytes": entry["cost"]["kv_bytes"], "calibration": entry["calibration_perplexity"],
                "held_out": entry["held_out_perplexity"], "held_out_stderr": entry["held_out_stderr"],
            }
            for entry in result["front"]
        ],
        "fitted": {str(entry["winner"]): _fitted(entry) for entry in result["front"] if entry["winner"] is not None},
        "baselines": {
            entry["name"]: {
                "sizes": _architecture(entry["architecture"]), "params": entry["cost"]["params"],
                "held_out": entry["held_out_perplexity"],
            }
            for entry in result["baselines"]
        },
        "hypervolume": [[step["evaluations"], step["value"]] for step in result["hypervolume"]],
        "flops": {
            "unit_scores": phases["unit scores"], "teacher_text": phases["teacher text"],
            "held_out": phases["held-out text"], "reconstruction": spent["reconstruction"]["flops"],
            "all": spent["flops"],
        },
        "tokens": spent["forward_tokens"], "candidates": spent["candidates"], "failed": spent["failed"],
    }  # fmt: skip


def _fitted(entry: Mapping[str, Any]) -> list[Any]:
    """Of a winner: whether fitted weights are kept, tokens, perplexity before, after, and after on held-out text."""
    fitted = entry["reconstruction"]
    before, after = fitted["before"], fitted["after"]
    return [
        fitted["kept"], fitted["tokens"], fitted["written_tokens"], before["calibration_perplexity"],
        after["calibration_perplexity"], after["teacher_text_perplexity"], after.get("held_out_perplexity"),
    ]  # fmt: skip


def read_trials(run: Path) -> list[list[Any]]:
    """Origin, decision, sizes, parameters and objective of every candidate, by number."""
    trials = sorted(_lines(run / "trials.jsonl"), key=lambda trial: trial["trial"])
    assert [trial["trial"] for trial in trials] == list(range(TRIALS))
    return [
        [trial["origin"], trial["decided"], _architecture(trial["architecture"]), trial["cost"]["params"],
         trial["objectives"]["perplexity"]]
        for trial in trials
    ]  # fmt: skip


def read_front_table(run: Path) -> list[dict[str, float]]:
    """The numbers of the front's CSV file."""
    names = ("winner", "trial", "params", "share_of_teacher", "flops_per_token", "kv_bytes_per_token",
             "calibration_perplexity", "held_out_perplexity", "held_out_stderr", "ratio_to_teacher", "num_layers",
             "hidden_size")  # fmt: skip
    rows = list(csv.DictReader((run / "front.csv").open()))
    return [{name: float(row[name]) for name in names if row[name]} for row in rows]


def read_store(store: Path) -> dict[str, Any]:
    """Size and cost of a logit store."""
    manifest = _json(store / "manifest.json")
    parts = manifest["parts"]
    return {
        "sequences": manifest["request"]["num_sequences"], "tokens": manifest["num_tokens"],
        "flops": manifest["flops"], "values": sum(part["num_values"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "bytes_on_disk": sum(path.stat().st_size for path in store.glob("*.safetensors")),
    }  # fmt: skip


def read_shards(cache: Path) -> Path:
    """The prepared training tokens in a cache."""
    [found] = (cache / "shards").glob("train-shards-*")
    return found


def read_training(run: Path) -> dict[str, Any]:
    """Losses, evaluations and costs of every model of a training, by how it started."""
    return {model["start"]: _read_model(run, model) for model in _json(run / "result.json")["models"]}


def _read_model(run: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    steps = _lines(run / model["name"] / "steps.jsonl")
    evals = _lines(run / model["name"] / "evals.jsonl")
    assert evals == model["evals"]
    return {
        "params": model["params"], "status": model["status"], "tokens": model["tokens"],
        "steps": {
            str(step["step"]): [step["loss"], step["ce"], step["lr"]]
            for step in (steps[0], steps[len(steps) // 2], steps[-1])
        },
        "first_grad_norm": steps[0]["grad_norm"],
        "evals": [[entry["tokens"], entry["loss"], entry["bits_per_byte"], entry["eval_tokens"]] for entry in evals],
        "perplexity": math.exp(evals[-1]["loss"]),
        "flops": {
            "own": model["flops"]["own"], "teacher": model["flops"]["teacher"], "search": model["search_flops"],
            "capture": model["capture_flops"],
        },
    }  # fmt: skip


def trained_model(run: Path) -> Path:
    """The folder of a training's first model."""
    return run / str(_json(run / "result.json")["models"][0]["model"])


def read_evaluation(run: Path) -> dict[str, Any]:
    """Every measurement of every model, and the paired differences, of an evaluation."""
    result = _json(run / "evaluate.json")
    numbers = {model["name"]: number for number, model in enumerate(result["models"])}
    found = []
    for model in result["models"]:
        [text], [task] = model["text"], model["tasks"]
        generation = model["generation"]
        found.append({
            "role": model["role"], "params": model["params"],
            "text": {name: text[name] for name in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes", "units",
                                                   "loss_interval")},
            "task": {name: metric["value"] for name, metric in task["metrics"].items()},
            "documents": task["documents"], "chance": task["chance"],
            "generation": {name: metric["value"] for name, metric in generation["metrics"].items()},
            "samples": [sample["text"] for sample in generation["samples"]] if model["role"] == "model" else [],
        })  # fmt: skip
    differences = [
        [numbers[entry["model"]], numbers[entry["to"]], entry["quantity"], entry["difference"], entry["verdict"]]
        for entry in result["differences"]
        if entry["kind"] == "text"
    ]
    return {"models": found, "differences": differences}


_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:[KMGT]\b)?")


def read_report(run: Path, heading: str, *columns: str) -> list[list[str]]:
    """The numbers in a table of ``report.md``, as they are printed, without the words around them."""
    lines = (run / "report.md").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if re.fullmatch(f"#+ {heading}", line))
    table = next(number for number in range(at, len(lines)) if lines[number].startswith("|"))
    names = _cells(lines[table])
    rows = []
    for line in lines[table + 2 :]:
        if not line.startswith("|"):
            return rows
        row = dict(zip(names, _cells(line), strict=True))
        rows.append([number for column in columns for number in _NUMBER.findall(row[column])])
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def read_search_report(run: Path) -> dict[str, Any]:
    """Numbers that the report of a search shows."""
    compared = ("parameters", "of teacher", "held-out perplexity (± s.e.)", "× teacher", "against the winner")
    return {
        "front": read_report(run, "The front as a table", "parameters", "of teacher",
                             "calibration perplexity", "held-out perplexity (± s.e.)", "× teacher", "layers", "heads",
                             "neurons"),
        "compared": read_report(run, "Against the teacher and the baselines", *compared),
        "progress": read_report(run, "Search progress as a table", "evaluations", "hypervolume"),
    }  # fmt: skip


def read_training_report(run: Path) -> dict[str, Any]:
    """Numbers that the report of a training shows."""
    return {
        "models": read_report(run, "The models", "parameters", "tokens", "first perplexity",
                              "last perplexity (± s.e.)", "bits per byte"),
        "spent": read_report(run, "What was spent", "own FLOPs", "teacher's", "search's", "capture's", "in all"),
    }  # fmt: skip


def read_evaluation_report(run: Path) -> dict[str, Any]:
    """Numbers that the report of an evaluation shows."""
    return {"text": read_report(run, "Held-out text", "perplexity", "bits per byte", "loss", "tokens")}


def read_set_report(run: Path) -> dict[str, Any]:
    """Numbers that a report of several runs shows."""
    return {
        "models": read_report(run, "The trained models", "parameters", "tokens", "first perplexity",
                              "last perplexity (± s.e.)", "bits per byte"),
        "needed": read_report(run, "What .* needed", "loss", "tokens", "tokens, against its own",
                              "FLOPs, against its own"),
        "cost": read_report(run, "Cost and energy", "FLOPs"),
    }  # fmt: skip


def make_teacher(folder: Path, text: str) -> None:
    """A Llama of four layers, each of three blocks of the neurons that the space ``fine`` keeps or drops.

    It is drawn by NumPy and trained in double precision: then all machines get the same weights, to seven digits.
    """
    torch.manual_seed(0)
    drawn = np.random.default_rng(0)
    tokenizer = make_tokenizer(text)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=192, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.copy_(torch.from_numpy(0.02 * drawn.standard_normal(tuple(parameter.shape))))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        starts = torch.randint(len(ids) - LENGTH, (8,)).tolist()
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.float().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_questions(folder: Path) -> None:
    """Questions of a local task, and prompts with references."""
    (folder / "tasks").mkdir()
    endings = ["and the layer keeps 3 of them.", "and the budget of the", "9 the the seed"]
    verbs = "keeps drops trains beats measures copies follows meets".split()
    questions = [
        {"question": f"The student {verb} the layer,", "answerKey": "ABC"[number // 3],
         "choices": {"text": endings, "label": list("ABC")}}
        for number, verb in enumerate(verbs)
    ]  # fmt: skip
    (folder / "tasks/arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    prompts = [{"prompt": f"The {noun} keeps the", "reference": " layer, and", "id": noun} for noun in ("seed", "head")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))


def run_all(folder: Path, cache: Path) -> dict[str, Any]:
    """Run every command once and return what is pinned, by case."""
    text = sentences(900)
    (folder / "corpus.txt").write_text(text)
    make_teacher(folder / "teacher", text)
    write_questions(folder)
    given = ["--teacher", folder / "teacher", "--data", folder / "corpus.txt", "--sequence-length", LENGTH]
    given += ["--precision", "fp32"]
    found: dict[str, Any] = {}

    search = folder / "search"
    command(
        "search", *given, "--space", "fine", "--params", "0.2..0.9", "--trials", TRIALS, "--population", 8, "--seed", 0,
        "--calibration-tokens", 512, "--held-out-tokens", 512, "--stages", "128,256", "--importance-steps", 3,
        "--importance-tokens", 128, "--workers", 1, "--winners", 2, "--reconstruct-tokens", 2048,
        "--teacher-text", 0.2, "--tracker", "none", "--out", search,
    )  # fmt: skip
    found["search"] = read_search(search)
    found["trials"] = read_trials(search)

    prepare_shards(
        load_corpus(str(folder / "corpus.txt")), folder / "teacher", TRAIN, sequence_length=LENGTH,
        num_tokens=TRAINING_TOKENS, cache=cache / "shards", console=Console(), workers=0,
    )  # fmt: skip
    capture = ["logits", *given[:2], *given[-2:], "--shards", read_shards(cache), "--workers", 1]  # all that there are
    command(*capture, "--kind", "top-k", "--k", 8, "--out", folder / "top")
    command(*capture, "--kind", "sampled", "--draws", 5, "--out", folder / "drawn")
    found["stores"] = {name: read_store(folder / name) for name in ("top", "drawn")}

    train = [
        "pretrain", *given, "--student", search / "winners/0", "--tokens", TRAINING_TOKENS, "--batch-size", BATCH,
        "--eval-tokens", 256, "--eval-every", TRAINING_TOKENS // 4, "--threads", 1, "--launcher", "local",
        "--learning-rate", 3e-4,  # Adam's first steps are signs of gradients: a high rate shows every last bit
        "--shards", read_shards(cache), "--tracker", "none",
    ]  # fmt: skip
    stores = {"top-k": ["--store", folder / "top"], "sampled": ["--store", folder / "drawn"]}
    stores["top-k-tail"] = stores["top-k"]
    for signal in SIGNALS:
        more = ["--compare"] if signal == "full" else []
        command(*train, "--engine", "torch", "--distill", signal, *stores.get(signal, []), *more, "--out",
                folder / signal)  # fmt: skip
        found[f"training {signal}"] = read_training(folder / signal)

    command(
        "evaluate", "--model", search / "winners/0", "--model", trained_model(folder / "full"), "--data",
        folder / "corpus.txt", "--eval-tokens", 512, "--sequence-length", LENGTH, "--precision", "fp32",
        "--threads", 1, "--tasks", "arc_easy", "--task-data", folder / "tasks", "--prompts", folder / "prompts.jsonl",
        "--references", "--max-new-tokens", 8, "--out", folder / "evaluation",
    )  # fmt: skip
    found["evaluation"] = read_evaluation(folder / "evaluation")

    runs = [folder / name for name in ("search", "full", "top-k", "evaluation")]
    command("report", *runs, "--out", folder / "together")
    command("report", search)
    found["reports"] = {
        "front_table": read_front_table(search), "search": read_search_report(search),
        "training": read_training_report(folder / "full"), "store": read_training_report(folder / "top-k"),
        "evaluation": read_evaluation_report(folder / "evaluation"), "together": read_set_report(folder / "together"),
    }  # fmt: skip

    command(*train, "--engine", "deepspeed", "--zero", 1, "--distill", "full", "--out", folder / "deepspeed")
    found["training deepspeed"] = read_training(folder / "deepspeed")
    return found


CASES = (
    "search", "trials", "stores", *(f"training {name}" for name in (*SIGNALS, "deepspeed")), "evaluation", "reports",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands give now, as JSON would hold it."""
    import lm_eval.evaluator

    folder = tmp_path_factory.mktemp("pinned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(folder / "cache"))
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # it calls pip, and git
        values: dict[str, Any] = json.loads(json.dumps(run_all(folder, folder / "cache")))
    return values


@pytest.fixture(scope="module")
def pinned(found: dict[str, Any]) -> dict[str, Any]:
    """What they gave when ``pinned.json`` was written, which ``PIN=1`` does now."""
    if os.environ.get("PIN"):
        lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(found[case])}" for case in CASES)
        PINNED.write_text(f"{{\n{lines}\n}}\n")
    values: dict[str, Any] = json.loads(PINNED.read_text())
    return values


def differences(now: Any, then: Any, place: str = "") -> Iterator[str]:
    """What is not equal, a line each; numbers with a fraction only to a relative 1e-4."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({*then, *now}):
            if name not in now or name not in then:
                yield f"{place}/{name}: only {'then' if name in then else 'now'}"
            else:
                yield from differences(now[name], then[name], f"{place}/{name}")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (one, other) in enumerate(zip(now, then, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif isinstance(then, float) and isinstance(now, float):
        if not math.isclose(now, then, rel_tol=RELATIVE, abs_tol=1e-9):
            yield f"{place}: {now!r} now, {then!r} then"
    elif type(now) is not type(then) or now != then:
        yield f"{place}: {now!r} now, {then!r} then"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_that_were_pinned(case: str, found: dict[str, Any], pinned: dict[str, Any]) -> None:
    assert set(pinned) == set(found) == set(CASES)
    lines = list(differences(found[case], pinned[case]))
    assert not lines, "\n".join(lines)
