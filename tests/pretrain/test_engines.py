"""Every engine, ZeRO stage and precision trains the same model the same way, and says what it runs."""

from pathlib import Path

import pytest

from tests.pretrain.tiny_pretrain import (
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
# Name to changes of the job; each is run by torch and by every stage of DeepSpeed that can.
SAME = {
    "plain": {},
    "whole": {"micro_batch": 8},
    "unclipped": {"clip": 0.0},
    "tight": {"clip": 0.05, "documents": "joined"},
    "lion": {"optimizer": "lion", "learning_rate": 1e-3},
    "checkpointed": {"activation_checkpointing": True},
}
WHOLE_MATRICES = {"lamb": {"optimizer": "lamb"}, "muon": {"optimizer": "muon"}}
HALF = {"bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}}


def cases():
    """Name, stage and changes of every run of DeepSpeed."""
    for stage in STAGES:
        for name, changes in {**SAME, **HALF, **(WHOLE_MATRICES if stage == 0 else {})}.items():
            yield name, stage, changes
    yield "plain", "2-offload", {"offload": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """What plain torch makes of every case, with accumulation."""
    folder = tmp_path_factory.mktemp("torch")
    found = {}
    for name, changes in {**SAME, **WHOLE_MATRICES, **HALF}.items():
        found[name] = run(make_job(write_start(folder / name), data, **changes))
    return found


@pytest.fixture(scope="module")
def overflowing(data, tmp_path_factory):
    """Jobs in fp16 with a loss scale that is far too high, for every engine; see :func:`found`."""
    folder = tmp_path_factory.mktemp("overflowing")
    engines = {"torch": {}, **{f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in STAGES}}
    changes = {"precision": "fp16", "checkpoint_every": 16, "tokens": 16 * STEP_TOKENS}
    return {
        name: make_job(with_scale(write_start(folder / name), 2.0**24), data, 16, **changes, **engine)
        for name, engine in engines.items()
    }


@pytest.fixture(scope="module")
def found(data, overflowing, tmp_path_factory):
    """What DeepSpeed makes of them, all in one process, where there is no compiler; and nothing is compiled."""
    folder = tmp_path_factory.mktemp("deepspeed")
    jobs = []
    for name, stage, changes in cases():
        number = int(str(stage)[0])
        start = write_start(folder / f"{name}-{stage}")
        jobs.append(make_job(start, data, engine="deepspeed", zero=number, **changes))
    names = [*((name, stage) for name, stage, _ in cases()), *overflowing]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder / "no-compiler-here"))
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "compiled"))
        records = run_apart([*jobs, *overflowing.values()], folder / "run")
    assert not (folder / "compiled").exists()
    return dict(zip(names, records, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", [(name, stage) for name, stage, changes in cases() if name not in HALF])
def test_deepspeed_equals_torch_in_fp32(name, stage, expected, found):
    records = found[name, stage]
    assert len(steps_of(records)) == 6, records
    # Muon's Newton-Schulz steps are in bf16, so rounding shows.
    close = pytest.approx if name != "muon" else lambda values, **_: pytest.approx(values, rel=2e-3)
    assert steps_of(records) == close(steps_of(expected[name]), rel=1e-5)
    assert evals_of(records) == close(evals_of(expected[name]), rel=1e-5)
    assert steps_of(records, "grad_norm") == close(steps_of(expected[name], "grad_norm"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("stage", STAGES)
def test_half_precision_stays_near_fp32(name, stage, expected, found):
    losses = steps_of(found[name, stage])
    assert losses == pytest.approx(steps_of(expected["plain"]), rel=2e-2)
    assert losses != pytest.approx(steps_of(expected["plain"]), rel=1e-6)
    # ZeRO 3 gathers weights in the type they are multiplied in, and all stages exchange gradients in it.
    assert losses == pytest.approx(steps_of(expected[name]), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", *(f"zero{stage}" for stage in STAGES)])
def test_a_loss_scale_that_is_too_high_falls_until_steps_are_taken(name, overflowing, found):
    norms = steps_of(found[name], "grad_norm")
    skipped = norms.count(None)
    assert norms[0] is None and norms[-1] is not None and skipped < 12
    assert scale_of(Path(overflowing[name].storage).parent) == 2.0 ** (24 - skipped)
    assert steps_of(found[name])[-1] < steps_of(found[name])[0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", [(name, stage) for name, stage, _ in cases()])
def test_what_runs_is_told(name, stage, found):
    runs = found[name, stage][0].runs
    optimizers = {"lion": "Lion", "lamb": "Lamb", "muon": "Muon"}
    assert runs.to_json() == {
        "engine": "deepspeed", "optimizer": optimizers.get(name, "AdamW"), "zero": int(str(stage)[0]),
        "precision": name if name in HALF else "fp32", "weights": "float32",
    }  # fmt: skip
