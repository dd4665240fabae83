"""The four stages that are struck: how each is started and resumed, how far it is, and what two equal runs agree on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.records.base import read_lines
from slm_ray.records.training import TrainEvaluation, TrainStep
from tests.models import tiny as models
from tests.search.tiny_run import Tiny, make_tiny, make_tokenizer, outcome_of, sentences, trials_of

TRIALS, STEPS, DOMAINS = 48, 24, 6
MODEL = "teacher.random"


@dataclass(frozen=True)
class Inputs:
    """What all stages read."""

    tiny: Tiny
    long: Path
    domains: Path
    models: tuple[Path, ...]
    shards: Path


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline, made small.

    Attributes:
        name: What it is called.
        start: Its command's words for a run folder, after ``python``.
        resume: Those that go on with it.
        worker: What the command lines of its workers have in them.
        done: The names of what is finished, in a run folder as it is at some moment.
        kept: Those whose files must stay as they are, with what tells a change.
        total: How many there are in the end.
        outcome: What two equal runs agree on.
        count: Units of work in the records in the end: name to how often.
    """

    name: str
    start: Callable[[Path], list[str]]
    resume: Callable[[Path], list[str]]
    worker: str
    done: Callable[[Path], list[str]]
    kept: Callable[[Path], dict[str, Any]]
    total: int
    outcome: Callable[[Path], Any]
    expected: Callable[[Path], list[str]]


def flags(given: dict[str, Any]) -> list[str]:
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def make_inputs(folder: Path) -> Inputs:
    """A teacher, texts, two models to evaluate, and prepared tokens; made once and kept."""
    names = ("teacher", "corpus.txt", "tiny.yaml", "natural.yaml", "cache")
    tiny = Tiny(*(folder / name for name in names))
    inputs = Inputs(tiny, folder / "long", folder / "mixed.jsonl", (folder / "a", folder / "b"), folder / "shards")
    if (folder / "ready").exists():
        return inputs
    folder.mkdir(parents=True, exist_ok=True)
    make_tiny(folder)
    inputs.long.mkdir(exist_ok=True)
    text = tiny.corpus.read_text()
    for number in range(12):
        (inputs.long / f"{number}.txt").write_text(f"Chapter {number}.\n{text}")
    lines = [json.dumps({"text": sentences(6, seed=i), "of": f"d{i % DOMAINS}"}) for i in range(DOMAINS * 400)]
    inputs.domains.write_text("\n".join(lines))
    tokenizer = make_tokenizer(text)
    for seed, place in enumerate(inputs.models):
        models.tiny_model("llama", seed=seed, vocab_size=len(tokenizer)).save_pretrained(place)
        tokenizer.save_pretrained(place)
    _make_shards(inputs)
    (folder / "ready").touch()
    return inputs


def _make_shards(inputs: Inputs) -> None:
    from transformers import AutoTokenizer

    from slm_ray.data import TRAIN, load_corpus, prepare_tokens
    from slm_ray.runtime.progress import Console

    tokenizer = AutoTokenizer.from_pretrained(inputs.tiny.teacher)
    packed = prepare_tokens(
        load_corpus(str(inputs.tiny.corpus), "text", Console()), tokenizer, TRAIN, num_tokens=1600, sequence_length=16,
        cache=inputs.shards.parent / "tokens", console=Console(),
    )  # fmt: skip
    packed.copy_to(inputs.shards)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def search_stage(inputs: Inputs) -> Stage:
    return Stage(
        name="search",
        start=lambda run: ["-m", "slm_ray.search", *inputs.tiny.arguments(run, "--trials", str(TRIALS))],
        resume=lambda run: ["-m", "slm_ray.search", "--resume", str(run)],
        worker="ray::ResourceTrainable",
        done=lambda run: _lines(run / "trials.jsonl"),
        kept=lambda run: dict.fromkeys(_lines(run / "trials.jsonl")),
        total=TRIALS,
        outcome=lambda run: {name: value for name, value in outcome_of(run).items() if name != "hypervolume"},
        expected=lambda run: [str(trial["trial"]) for trial in trials_of(run)],
    )


def _parts(run: Path) -> list[Path]:
    places = (run.with_name(f"{run.name}.partial"), run)
    return sorted(path for place in places for path in place.glob("part-*.safetensors"))


def _finished_parts(run: Path) -> dict[str, Any]:
    """Parts that have their record, which is written behind them, or lie in the whole store."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in _parts(run)
        if path.with_suffix(".json").exists() or (run / "manifest.json").exists()
    }


def _manifest(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text())


def capture_stage(inputs: Inputs) -> Stage:
    def start(run: Path) -> list[str]:
        given = {
            "teacher": inputs.tiny.teacher, "data": inputs.long, "tokens": "all", "sequence-length": 32, "draws": 9,
            "kind": "sampled", "workers": 2, "precision": "fp32", "out": run,
        }  # fmt: skip
        return ["-m", "slm_ray.logits", *flags(given)]

    return Stage(
        name="capture", start=start, resume=start, worker="ray::_Worker", done=lambda run: list(_finished_parts(run)),
        kept=_finished_parts, total=12, outcome=lambda run: [part["sha256"] for part in _manifest(run)["parts"]],
        expected=lambda run: [part["name"] for part in _manifest(run)["parts"]],
    )  # fmt: skip


def pretrain_stage(inputs: Inputs, name: str, more: Sequence[str]) -> Stage:
    def start(run: Path) -> list[str]:
        given = {
            "student": inputs.tiny.teacher, "data": inputs.tiny.corpus, "shards": inputs.shards,
            "tokens": STEPS * 4 * 16, "sequence-length": 16, "batch-size": 4, "eval-tokens": 128,
            "eval-every": 4 * 64, "checkpoint-every": 4 * 64, "distill": "full", "teacher": inputs.tiny.teacher,
            "start": "random", "precision": "fp32", "device": "cpu", "threads": 1, "tracker": "none", "engine": "torch",
            "out": run,
        }  # fmt: skip
        return ["-m", "slm_ray.pretrain", *flags(given), *more]

    def outcome(run: Path) -> Any:
        steps = [[one.step, one.tokens, one.loss, one.kd, one.lr] for one in steps_of(run)]
        evals = [[one.step, one.loss] for one in read_lines(run / MODEL / TrainEvaluation.FILE, TrainEvaluation)]
        return {"steps": steps, "evals": evals, "weights": (run / MODEL / "model/model.safetensors").read_bytes()}

    def checkpoints(run: Path) -> dict[str, Any]:
        return {}

    return Stage(
        name=name, start=start, resume=lambda run: ["-m", "slm_ray.pretrain", "--resume", str(run)],
        worker="RayTrainWorker", done=lambda run: _lines(run / MODEL / "steps.jsonl"), kept=checkpoints, total=STEPS,
        outcome=outcome,
        expected=lambda run: [str(one.step) for one in steps_of(run)],
    )  # fmt: skip


def steps_of(run: Path) -> list[TrainStep]:
    """The steps of a training so far."""
    return read_lines(run / MODEL / TrainStep.FILE, TrainStep)


def evaluate_stage(inputs: Inputs, name: str, workers: int, tokens: int) -> Stage:
    def start(run: Path) -> list[str]:
        given = {
            "data": f"mixed={inputs.domains}", "domain-field": "of", "part": "whole", "eval-tokens": tokens,
            "sequence-length": 16, "precision": "fp32", "threads": 1, "peers": "none", "workers": workers, "out": run,
            "batch": 2,
        }  # fmt: skip
        # Fresh, or what the undisturbed run left in the cache would be found, and nothing measured.
        return ["-m", "slm_ray.evaluate", *(word for model in inputs.models for word in ("--model", str(model))),
                *flags(given), "--fresh"]  # fmt: skip

    def records(run: Path) -> dict[str, Any]:
        return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in sorted(run.glob("models/*/*.json"))}

    def outcome(run: Path) -> Any:
        found = json.loads((run / "evaluate.json").read_text())
        rows = [{key: value for key, value in row.items() if key != "seconds"}
                for model in found["models"] for row in model["text"]]  # fmt: skip
        return {"rows": rows, "differences": found["differences"]}

    return Stage(
        name=name, start=start, resume=start, worker="ray::_Worker", done=lambda run: list(records(run)),
        kept=records, total=2 * DOMAINS, outcome=outcome, expected=lambda run: list(records(run)),
    )  # fmt: skip
