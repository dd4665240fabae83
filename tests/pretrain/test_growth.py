"""Growth: which layers a stage has and where they come from, when it stops, and that a killed run goes on as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slm_ray.config.base import build_config
from slm_ray.data.shards import TokenShards
from slm_ray.models.teachers import load_teacher
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import stage_depths
from slm_ray.pretrain.growth import measure
from slm_ray.pretrain.job import Event, Recorder
from slm_ray.records.training import TrainStep
from slm_ray.runtime.commands import run_command
from tests.pretrain.tiny_pretrain import flags_of, records
from tests.search.tiny_run import LENGTH, Tiny

BATCH, STEPS = 4, 6
ROOT = Path(__file__).parents[2]
NEVER = 0.001  # a reference that no training reaches


@pytest.fixture(autouse=True)
def _cache(tiny, monkeypatch) -> None:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def arguments(tiny: Tiny, shards: Path, out: Path, *more: str, reference: float | None = NEVER) -> list[str]:
    """Growth by two layers from the first, six steps a stage; what comes later on the command line wins."""
    given = {
        "student": tiny.teacher, "grow-from": 1, "grow-by": 2, "data": tiny.corpus, "shards": shards,
        "tokens": STEPS * BATCH * LENGTH, "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 256,
        "eval-every": 3 * BATCH * LENGTH, "checkpoint-every": 3 * BATCH * LENGTH, "keep-last": 100,
        "launcher": "local", "engine": "torch", "precision": "fp32", "device": "cpu", "tracker": "none", "threads": 1,
        "learning-rate": 3e-3, "out": out, **({"reference-loss": reference} if reference is not None else {}),
    }  # fmt: skip
    return flags_of(given, more)


def grow(tiny: Tiny, shards: Path, out: Path, *more: str, reference: float | None = NEVER) -> int:
    return run_command(PRETRAIN.main, arguments(tiny, shards, out, *more, reference=reference))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def result_of(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "result.json").read_text())
    return loaded


def checkpoint(run: Path, layers: int, step: int) -> Path:
    return run / f"teacher.layers{layers}" / "checkpoints" / f"step-{step:08d}"


@pytest.fixture(scope="module")
def grown(tiny, shards, tmp_path_factory) -> Path:
    """A growth with distillation that went through every depth, to no avail."""
    out = tmp_path_factory.mktemp("grown") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert grow(tiny, shards, out) == 0
    return out


@pytest.mark.parametrize(
    ("layers", "first", "by", "depths"),
    [(12, 6, 2, (6, 8, 10, 12)), (30, 26, 3, (26, 29, 30)), (4, 1, 2, (1, 3, 4)), (4, 4, 2, (4,)), (4, 3, 9, (3, 4))],
)
def test_stages_end_with_the_whole_depth(layers, first, by, depths):
    assert stage_depths(layers, first, by) == depths


def test_growth_goes_to_the_whole_depth_where_nothing_reaches_the_reference(grown):
    result = result_of(grown)
    assert [model["layers"] for model in result["models"]] == [1, 3, 4]
    assert [model["name"] for model in result["models"]] == ["teacher.layers1", "teacher.layers3", "teacher.layers4"]
    assert result["growth"]["sufficient_layers"] is None
    assert result["growth"]["tokens"] == 3 * STEPS * BATCH * LENGTH
    assert result["growth"]["flops"]["own"] == sum(model["flops"]["own"] for model in result["models"])
    assert min(model["flops"]["teacher"] for model in result["models"]) > 0
    lines = (grown / "table.txt").read_text().splitlines()
    assert lines[-1].startswith("even all 4 layers did not reach the reference 0.0010 of --reference-loss")
    assert [line.split()[:2] for line in lines[1:4]] == [[f"teacher.layers{n}", str(n)] for n in (1, 3, 4)]


def test_growth_stops_at_the_first_stage_that_reaches_the_reference(grown, tiny, shards, tmp_path, capsys):
    first, second, _ = (model["evals"][-1]["loss"] for model in result_of(grown)["models"])
    assert first > second + 1e-3
    assert grow(tiny, shards, tmp_path / "run", reference=second) == 0
    result = result_of(tmp_path / "run")
    assert [model["layers"] for model in result["models"]] == [1, 3]
    assert result["growth"]["sufficient_layers"] == 3
    assert not (tmp_path / "run" / "teacher.layers4").exists()
    said = capsys.readouterr()
    sentence = f"3 layers are enough: of the 4 there are, they reach a validation loss of {second:.4f} against"
    assert said.out.splitlines()[-1].startswith(sentence)
    assert "1 layer: loss" in said.err and "growing to 3" in said.err


def test_the_first_stage_is_the_sources_first_layers(grown, tiny):
    source, stage = weights(tiny.teacher), weights(checkpoint(grown, 1, 0))
    inherited = {name for name in source if "layers" not in name or "layers.0." in name}
    assert set(stage) == inherited
    assert all(torch.equal(stage[name], source[name]) for name in inherited)


def test_new_layers_are_the_sources_and_lie_on_top_of_the_trained_ones(grown, tiny):
    source, before = weights(tiny.teacher), weights(checkpoint(grown, 1, 6))
    stage = weights(checkpoint(grown, 3, 0))
    new = {name for name in source if "layers.1." in name or "layers.2." in name}
    assert set(stage) == new | set(before)
    assert all(torch.equal(stage[name], source[name]) for name in new)
    assert all(torch.equal(stage[name], before[name]) for name in before)
    assert not torch.equal(before["model.norm.weight"], source["model.norm.weight"])


def test_optimiser_state_of_trained_layers_is_kept_and_that_of_new_ones_fresh(grown):
    before = load_file(checkpoint(grown, 1, 6) / "optimizer.safetensors")
    start = load_file(checkpoint(grown, 3, 0) / "optimizer.safetensors")
    assert set(start) == set(before)
    assert all(torch.equal(start[name], before[name]) for name in before)
    later = load_file(checkpoint(grown, 3, 3) / "optimizer.safetensors")
    updates = {name.removesuffix("::step"): int(value) for name, value in later.items() if name.endswith("::step")}
    assert {updates[name] for name in updates if f"{name}::step" in before} == {STEPS + 3}
    assert {updates[name] for name in updates if f"{name}::step" not in before} == {3}


def test_the_reference_is_the_sources_own_loss(tiny, shards, tmp_path):
    assert grow(tiny, shards, tmp_path / "run", "--grow-from", "4", "--distill", "none", reference=None) == 0
    result = result_of(tmp_path / "run")
    (stage,) = result["models"]
    assert result["growth"]["reference_loss"] == pytest.approx(stage["evals"][0]["loss"], abs=1e-6)
    assert result["growth"]["reference_from"] == str(tiny.teacher)
    assert stage["flops"]["teacher"] == 0
    by_definition = _loss_across_documents(tiny.teacher, TokenShards.open(tmp_path / "run" / "held_out"))
    config = build_config(PretrainConfig, {"student": "it", "documents": "joined", "precision": "fp32"})
    source = load_teacher(str(tiny.teacher))
    measured = measure(source.folder, tmp_path / "run" / "held_out", config, "it", torch.device("cpu"))
    assert measured == pytest.approx(by_definition, abs=1e-5)


def _loss_across_documents(folder: Path, held_out: TokenShards) -> float:
    """transformers' own mean loss of whole sequences."""
    ids = torch.from_numpy(held_out.rows(np.arange(held_out.num_sequences))).long()
    with torch.no_grad():
        return float(AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss)


class Killed(BaseException):
    """What takes the place of a kill."""


def test_a_run_killed_in_its_second_stage_goes_on_where_it_was(grown, tiny, shards, tmp_path, monkeypatch):
    out, heard = tmp_path / "run", Recorder.say

    def die(self: Recorder, event: Event) -> None:
        heard(self, event)
        if self.folder.name == "teacher.layers3" and isinstance(event, TrainStep) and event.step == 4:
            raise Killed

    monkeypatch.setattr(Recorder, "say", die)
    with pytest.raises(Killed):
        grow(tiny, shards, out)
    monkeypatch.undo()
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
    first = out / "teacher.layers1"
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert run_command(PRETRAIN.main, ["--resume", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == times
    for layers in (1, 3, 4):
        assert _told(out, layers) == _told(grown, layers)
    assert result_of(out)["growth"]["final_loss"] == result_of(grown)["growth"]["final_loss"]


def _told(run: Path, layers: int) -> tuple[Any, ...]:
    """Everything a stage leaves that does not depend on the clock."""
    folder = run / f"teacher.layers{layers}"
    steps = [(record["step"], record["loss"], record["lr"]) for record in records(folder / "steps.jsonl")]
    evals = [(record["step"], record["loss"]) for record in records(folder / "evals.jsonl")]
    return steps, evals, (checkpoint(run, layers, STEPS) / "model.safetensors").read_bytes()


def refused(capsys, status: int) -> str:
    """The one sentence of a command that was refused."""
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--grow-from", "5"], "--grow-from 5 is more than the 4 layers that --student has: give 4 or less"),
        (["--grow-from", "0"], "--grow-from: must be at least 1"),
        (["--reference-loss", "nan"], "--reference-loss: must be"),
        (["--seed", "0,1"], "--grow-from grows one model: give one --seed instead of 0,1"),
        (["--distill", "top-k", "--store", "x"], "--grow-from trains with --distill none or full"),
        (["--student", "nowhere"], "'nowhere' is no folder, no .gguf file and no hub id"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(flags, says, tiny, shards, tmp_path, capsys):
    assert says in refused(capsys, grow(tiny, shards, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_a_source_that_changed_cannot_be_resumed(grown, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(grown, run)
    (run / "result.json").unlink()
    about = json.loads((run / "growth.json").read_text())
    (run / "growth.json").write_text(json.dumps(about | {"source_digest": "0" * 16}))
    says = refused(capsys, run_command(PRETRAIN.main, ["--resume", str(run)]))
    assert "the model it grows from was 0000000000000000" in says


def test_a_stage_that_fails_keeps_those_before_it(tiny, shards, tmp_path, capsys, monkeypatch):
    broken, whole = tmp_path / "broken", AutoModelForCausalLM.from_pretrained(tiny.teacher)
    shutil.copytree(tiny.teacher, broken)
    with torch.no_grad():
        whole.model.layers[2].input_layernorm.weight.fill_(1e38)
    whole.save_pretrained(broken)
    flags = ["--student", str(broken), "--teacher", str(tiny.teacher)]
    says = refused(capsys, grow(tiny, shards, tmp_path / "run", *flags))
    assert "the stage of 3 layers failed (broken.layers3: the loss is " in says
    assert "--resume" not in says and "start a new run with a lower --learning-rate" in says
    assert json.loads((tmp_path / "run" / "broken.layers1" / "result.json").read_text())["status"] == "done"
    says = refused(capsys, grow(tiny, shards, tmp_path / "again", *flags, reference=None))
    assert f"the held-out loss of {broken} itself is " in says and "give --reference-loss" in says


def test_a_dry_run_names_every_stage_there_may_be(tiny, shards, tmp_path, capsys):
    assert grow(tiny, shards, tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    assert [name for name in ("layers1 ", "layers3 ", "layers4 ") if f"teacher.{name}" not in said] == []
    assert "one after the other, until one reaches the reference" in said
    assert not (tmp_path / "run").exists()
    assert "--grow-from 5 is more than" in refused(
        capsys, grow(tiny, shards, tmp_path / "run", "--dry-run", "--grow-from", "5")
    )


@pytest.mark.slow
def test_ray_and_this_process_measure_and_train_alike(tiny, shards, one_ray, tmp_path):
    for launcher in ("ray", "local"):
        flags = ["--launcher", launcher, "--grow-from", "4"]
        assert grow(tiny, shards, tmp_path / launcher, *flags, reference=None) == 0
    ray, local = tmp_path / "ray", tmp_path / "local"
    assert result_of(ray)["growth"]["reference_loss"] == result_of(local)["growth"]["reference_loss"]
    assert _told(ray, 4) == _told(local, 4)
