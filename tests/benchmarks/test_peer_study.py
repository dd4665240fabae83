"""The peers' models follow the definitions of their papers; rows are made once and shown with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import __main__ as command
from benchmarks.peers import models
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.families import FAMILIES
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.cost import num_params
from slm_ray.records.files import read_json
from tests.models.tiny import LENGTH, tiny_ids, tiny_model
from tests.search import tiny_run

PLAIN = {"attention_bias": False, "mlp_bias": False}
LLAMA = FAMILIES["llama"]


def _teacher(name: str = "llama", **changes: object) -> object:
    return tiny_model(name, **PLAIN, **changes)


def _runner() -> tuple[object, SubnetRunner]:
    teacher = _teacher()
    return teacher, SubnetRunner(teacher.state_dict(), teacher.config, LLAMA)


def test_activations_are_means_over_tokens_and_roots_of_squares_over_samples() -> None:
    teacher, runner = _runner()
    ids = tiny_ids(3)
    found = models.gather_activations(runner, ids, batch=2)
    seen: dict[str, list[torch.Tensor]] = {"neurons": [], "heads": [], "norms": [], "streams": []}
    layer = teacher.model.layers[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _m, x: seen["neurons"].append(x[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, x: seen["heads"].append(x[0]))
    layer.register_forward_hook(lambda _m, x, y: seen["streams"].extend([x[0], y]))
    for name, module in teacher.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _m, _x, y: seen["norms"].append(y))
    with torch.no_grad():
        teacher(ids)
    neurons = seen["neurons"][0].abs().mean(1).square().sum(0).sqrt()
    np.testing.assert_allclose(found.neurons[1], neurons, rtol=1e-4)
    heads = seen["heads"][0].unflatten(-1, (4, 8)).norm(dim=-1).mean(1).square().sum(0)
    np.testing.assert_allclose(found.kv_heads[1], heads.view(2, 2).sum(1).sqrt(), rtol=1e-4)
    hidden = sum(norm.abs().mean(1).square().sum(0) for norm in seen["norms"]).sqrt()
    assert len(seen["norms"]) == 7
    np.testing.assert_allclose(found.hidden, hidden, rtol=1e-4)
    before, after = seen["streams"]
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    assert found.influence[1] == pytest.approx(float((1 - cosine).mean()), rel=1e-4)


def test_uniform_cuts_keep_the_most_important_and_lie_just_within_the_budget() -> None:
    teacher, runner = _runner()
    found = models.gather_activations(runner, tiny_ids())
    limit = int(0.6 * num_params(runner.teacher))
    shapes = list(models.shapes_near(runner.teacher, limit))
    assert shapes
    for shape in shapes:
        spec = models.uniform_cut(runner.teacher, found, *shape)
        size = num_params(spec.architecture_in(runner.teacher))
        assert 0.95 * limit <= size <= limit
        assert set(spec.hidden) == set(np.argsort(-found.hidden)[: shape[0]])
        assert {layer.source for layer in spec.layers} == set(np.argsort(-found.influence)[: shape[1]])
    chosen, tokens = models.pick(runner, [models.uniform_cut(runner.teacher, found, *s) for s in shapes], tiny_ids(4))
    assert tokens == len(shapes) * LENGTH + 4 * LENGTH * max(2, len(shapes) // 8)
    student = extract(teacher.state_dict(), teacher.config, LLAMA, chosen).requires_grad_(False)
    logits = student(tiny_ids(4)).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tiny_ids(4)[:, 1:].flatten())
    assert models.mean_loss(runner, chosen, tiny_ids(4)) == pytest.approx(float(loss), rel=1e-4)


def test_layers_of_least_influence_go_first() -> None:
    teacher = _runner()[1].teacher
    influence = np.array([0.2, 0.1, 0.3])
    two = models.fewer_layers(teacher, influence, num_params(teacher) - 1)
    assert [layer.source for layer in two.layers] == [0, 2]
    one = models.fewer_layers(teacher, influence, num_params(two.architecture_in(teacher)) - 1)
    assert [layer.source for layer in one.layers] == [2]
    with pytest.raises(UserError, match="larger --share"):
        models.fewer_layers(teacher, influence, 10)


def test_rows_are_made_measured_and_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, out = tiny_run.make_tiny(tmp_path), tmp_path / "study"
    given = {
        "out": out, "tokens": 128, "teacher": tiny.teacher, "data": tiny.corpus, "sequence-length": tiny_run.LENGTH,
        "batch-size": 2, "eval-tokens": 128, "other-tokens": 64, "decide-tokens": 128, "calibration-samples": 8,
        "calibration-length": tiny_run.LENGTH, "rates": "1e-3,1e-2", "other": tiny.corpus, "precision": "fp32",
        "share": 0.6, "peers": "shortgpt,minitron",
    }  # fmt: skip
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    assert command.main(arguments) == 0
    folder = out / "rows" / "minitron"
    tried = [read_json(folder / f"after-128-{rate:g}.json") for rate in (1e-3, 1e-2)]
    after, before = read_json(folder / "after-128.json"), read_json(folder / "before.json")
    assert after == min(tried, key=lambda record: record["loss"]) and tried[0]["loss"] != tried[1]["loss"]
    assert after["texts"] != before["texts"] and set(after["texts"]) == {str(tiny.corpus), "corpus"}
    assert not list(folder.glob("training-*"))
    made = {path: path.stat().st_mtime_ns for path in out.rglob("rows/*/*.json")}
    assert command.main([*arguments, "--peers", "minitron"]) == 0
    assert made == {path: path.stat().st_mtime_ns for path in out.rglob("rows/*/*.json")}

    # As if ours were that of whole layers, so that differences can be shown.
    (out / "rows" / "shortgpt").rename(out / "rows" / "ours")
    capsys.readouterr()
    assert command.main([*arguments, "--table"]) == 0
    tables = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")[1:]]
    assert len(tables) == 2 and all(line.count("|") == head.count("|") for head, *body in tables for line in body)
    row = next(line for line in tables[1] if line.startswith("| Minitron-like"))
    assert "[" in row and "×" in row
    assert command.main([*arguments, "--seed", "1"]) == 2 and "begun with seed 0, not 1" in capsys.readouterr().err
    assert command.main([*arguments, "--peers", "ours", "--run", str(tmp_path)]) == 0  # it is there already
    (out / "rows" / "ours" / "start.json").unlink()
    assert command.main([*arguments, "--peers", "ours", "--run", str(tmp_path)]) == 1
    assert "holds no finished search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peers", "minitrom"], "minitron"),
        (["--rates", "1e-3,fast"], "--rates"),
        (["--tokens", "100"], "below one step"),
        (["--other", "no-such-file"], "--other"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err
