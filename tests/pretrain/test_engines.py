"""Every engine, ZeRO stage, precision and number of workers trains the same model the same way, and goes on exactly."""

from pathlib import Path

import pytest

from slm_ray.models.scratch import build_scratch, make_shape, with_positions
from tests.distill.store_cases import VOCABULARY, make_teacher
from tests.models.tiny import tiny_model
from tests.pretrain.tiny_pretrain import (
    LENGTH,
    STEP_TOKENS,
    evals_of,
    make_job,
    make_shards,
    run,
    run_apart,
    scale_of,
    steps_of,
    with_scale,
    write_start,
)

STAGES = (0, 1, 2, 3)
ENGINES = {"torch": {}, **{f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in STAGES}}
# Name to changes of the job; each is run by torch, and by DeepSpeed with whole weights or sharded ones.
SAME = {
    "tight": {"clip": 0.05, "documents": "joined"},
    "lion": {"optimizer": "lion", "learning_rate": 1e-3},
    "checkpointed": {"activation_checkpointing": True, "micro_batch": 8},
    "lamb": {"optimizer": "lamb"},
    "muon": {"optimizer": "muon"},
    "learned": {},  # position tables, which a Llama does not have
    "alibi": {},  # depends on nothing but the config
}
HALF = {"bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}}
CASES = [
    *(("plain", stage, {}) for stage in STAGES),
    *(("bf16", stage, HALF["bf16"]) for stage in (0, 3)),
    *(("fp16", stage, HALF["fp16"]) for stage in (0, 2, 3)),
    *((name, 0, SAME[name]) for name in ("lamb", "muon")),
    *((name, 3, SAME[name]) for name in ("tight", "lion", "checkpointed", "learned", "alibi")),
    ("plain", "2-offload", {"offload": True}),
]
OVERFLOWING = ("torch", "zero0", "zero2")
SHARED = ("torch", "zero2", "zero3")  # by two workers
# What is interrupted: name to model and changes of the job.
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
INTERRUPTED = {
    "plain": ("llama", {}),
    "dropout": ("gpt2", {}),
    "joined": ("qwen3", {"documents": "joined", "clip": 0.0, "micro_batch": 2}),
    "muon": ("llama", {"optimizer": "muon"}),
    "fp16": ("llama", {"precision": "fp16"}),
    "full": ("llama", {"distill": "full", "kd_schedule": "linear"}),
}
CONTINUED = [("plain", 0), ("dropout", 2), ("full", 3), ("fp16", 1)]
CHANGES = [("torch", "zero3"), ("zero0", "zero2"), ("zero3", "torch")]


def model_of(name):
    """The model of a case; a tiny Llama if it has none of its own."""
    if name not in ("learned", "alibi"):
        return None
    return build_scratch(with_positions(make_shape(64, 64, 2, 64), name, LENGTH), name, seed=0)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """What plain torch makes of every case, with accumulation."""
    folder = tmp_path_factory.mktemp("torch")
    every = {"plain": {}, **SAME, **HALF}
    return {
        name: run(make_job(write_start(folder / name, model_of(name)), data, **changes))
        for name, changes in every.items()
    }


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    """Makes a job that is interrupted; where a teacher is in the loop, of its vocabulary."""
    folder = tmp_path_factory.mktemp("jobs")
    teacher = make_teacher(tmp_path_factory.mktemp("teacher"), seed=3)
    ids = make_shards(tmp_path_factory.mktemp("ids"), VOCABULARY)

    def make(name, place, steps=6, **engine):
        model, changes = INTERRUPTED[name]
        full = changes.get("distill") == "full"
        sizes = {**(DROPOUT if name == "dropout" else {}), **({"vocab_size": VOCABULARY} if full else {})}
        if not (folder / place).exists():
            write_start(folder / place, tiny_model(model, seed=1, **sizes))
            if name == "fp16":
                with_scale(folder / place, 1024.0)
        more = {"teacher": str(teacher.folder)} if full else {}
        return make_job(folder / place, ids if full else data, steps, **more, **changes, **engine)

    return make


@pytest.fixture(scope="module")
def processes(data, job, tmp_path_factory):
    """Name to events of everything that needs processes of its own: one worker, then two, each for many jobs."""
    folder, found = tmp_path_factory.mktemp("processes"), {}

    def train_apart(jobs, name, workers=0):
        events = run_apart(list(jobs.values()), folder / name, workers)
        found.update(zip(jobs, events, strict=True))

    def fresh(name, changes, steps=6):
        start = folder / "_".join(map(str, name))
        return make_job(start if start.exists() else write_start(start, model_of(name[0])), data, steps, **changes)

    one, two = {}, {}
    for name, stage in CONTINUED:
        engine, place = ENGINES[f"zero{stage}"], f"{name}-{stage}"
        one |= {(place, "whole"): job(name, f"{place}-whole", **engine), (place, 3): job(name, place, 3, **engine),
                (place, 6): job(name, place, **engine)}  # fmt: skip
    for before, after in CHANGES:
        place = f"{before}-to-{after}"
        one[place, 3] = job("plain", place, 3, **ENGINES[before])
        one[place, 6] = job("plain", place, **ENGINES[after])
    for name in SHARED:
        one[name, "first"] = fresh((name,), ENGINES[name], 3)
        two[name, "last"] = fresh((name,), {**ENGINES[name], "micro_batch": 2})
    for name, stage, changes in CASES:
        one[name, stage] = fresh((name, stage), {"engine": "deepspeed", "zero": int(str(stage)[0]), **changes})
    many = {"precision": "fp16", "checkpoint_every": 16, "tokens": 16 * STEP_TOKENS}
    for name in OVERFLOWING:
        one[name, "overflowing"] = fresh((name, "overflowing"), {**many, **ENGINES[name]}, 16)
        with_scale(Path(one[name, "overflowing"].storage).parent, 2.0**24)
    with pytest.MonkeyPatch.context() as patch:  # nothing is compiled: there is no compiler
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "compiled"))
        with patch.context() as without:
            without.setenv("PATH", str(folder / "no-compiler-here"))
            train_apart(one, "one")
        train_apart(two, "two", workers=2)
    assert not (folder / "compiled").exists()
    return found | {"folder": folder}


def assert_same(events, others, tolerance=1e-5):
    assert len(steps_of(events)) == 6, events
    assert steps_of(events) == pytest.approx(steps_of(others), rel=tolerance)
    assert evals_of(events) == pytest.approx(evals_of(others), rel=tolerance)
    assert steps_of(events, "grad_norm") == pytest.approx(steps_of(others, "grad_norm"), rel=max(1e-4, tolerance))


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", [(name, stage) for name, stage, _ in CASES])
def test_deepspeed_equals_torch_and_tells_what_runs(name, stage, expected, processes):
    events = processes[name, stage]
    assert events[0].runs.to_json() == {
        "engine": "deepspeed", "zero": int(str(stage)[0]), "weights": "float32",
        "optimizer": {"lion": "Lion", "lamb": "Lamb", "muon": "Muon"}.get(name, "AdamW"),
        "precision": name if name in HALF else "fp32",
    }  # fmt: skip
    if name not in HALF:
        # Muon's Newton-Schulz steps are in bf16, so rounding shows.
        assert_same(events, expected[name], 2e-3 if name == "muon" else 1e-5)
        return
    losses = steps_of(events)
    assert losses == pytest.approx(steps_of(expected["plain"]), rel=2e-2)
    assert losses != pytest.approx(steps_of(expected["plain"]), rel=1e-6)
    # ZeRO 3 gathers weights in the type they are multiplied in, and all stages exchange gradients in it.
    assert losses == pytest.approx(steps_of(expected[name]), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERFLOWING)
def test_a_loss_scale_that_is_too_high_falls_until_steps_are_taken(name, processes):
    norms = steps_of(processes[name, "overflowing"], "grad_norm")
    skipped = norms.count(None)
    assert norms[0] is None and norms[-1] is not None and skipped < 12
    assert scale_of(processes["folder"] / f"{name}_overflowing") == 2.0 ** (24 - skipped)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_workers_go_on_where_one_stopped_and_train_alike(name, expected, processes):
    parts = [*processes[name, "first"], *processes[name, "last"]]
    assert steps_of(parts, "step") == [1, 2, 3, 4, 5, 6]
    assert steps_of(parts) == pytest.approx(steps_of(expected["plain"]), rel=1e-5)
    assert evals_of(parts)[-1] == pytest.approx(evals_of(expected["plain"])[-1], rel=1e-5)


def assert_equal(first, second, whole):
    """Two halves are the whole, to the last digit."""
    assert len(steps_of(whole)) == 6 and second[0].step == 3, whole
    for figure in ("loss", "ce", "kd", "lr", "grad_norm", "tokens"):
        assert steps_of(first, figure) + steps_of(second, figure) == steps_of(whole, figure)
    assert evals_of(first) + evals_of(second) == evals_of(whole)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_torch_goes_on_exactly(name, job):
    whole, half = run(job(name, f"{name}-whole")), job(name, name, 3)
    first = run(half)
    if name == "fp16":
        assert scale_of(Path(half.storage).parent) == 1024.0
    assert_equal(first, run(job(name, name)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", CONTINUED)
def test_deepspeed_goes_on_exactly(name, stage, processes):
    place = f"{name}-{stage}"
    assert_equal(processes[place, 3], processes[place, 6], processes[place, "whole"])


@pytest.mark.slow
@pytest.mark.parametrize("before, after", CHANGES)
def test_another_engine_or_stage_goes_on(before, after, processes):
    place = f"{before}-to-{after}"
    assert_same(processes[place, 3] + processes[place, 6], processes["plain-0", "whole"])
