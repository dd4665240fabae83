"""Every sweep file of the repository: it loads, it has the points it should, its dry run is the closed form's."""

from pathlib import Path

import pytest

from slm_ray.config.units import parse_number
from slm_ray.models.families.published import published_architecture
from slm_ray.models.scratch import find_rung
from slm_ray.records.cost import num_params
from slm_ray.runtime.forecast import total
from slm_ray.studies.command import main
from slm_ray.studies.costs import plan_tasks
from slm_ray.studies.points import all_tasks, expand
from slm_ray.studies.reader import read_sweep
from slm_ray.studies.table import point_rows

SWEEPS = Path(__file__).parents[2] / "sweeps"
NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))  # each has its counts below
# (points, runs) at the scales tiny and paper, counted by hand.
COUNTS = {
    "data_size": ((9, 9), (9, 9)),
    "debug": ((1, 6), (1, 6)),
    "distillation": ((20, 24), (39, 43)),
    "efficiency": ((24, 24), (48, 48)),
    "granularity": ((8, 17), (36, 72)),
    "inheritune": ((15, 16), (15, 15)),
    "optimizers": ((24, 24), (48, 48)),
    "positions": ((17, 21), (51, 63)),
    "proxies": ((2, 5), (4, 8)),
    "sizes": ((16, 16), (25, 25)),
    "swahili": ((4, 9), (18, 37)),
}
# Tokens that models are trained on at the scales tiny and paper; None where other stages count theirs too.
TRAINED = {"sizes": (4 * 960e3, 5 * 15.4e9), "optimizers": (24 * 128e3, 48 * 1.4e9), "data_size": (3.04e6, 171.25e9)}


def _settings(name: str, scale: str) -> list[str]:
    return ["data=README.md"] if (name, scale) == ("swahili", "tiny") else []


def _points(name: str, scale: str):
    sweep = read_sweep(SWEEPS / f"{name}.yaml", scale, _settings(name, scale))
    return sweep, expand(sweep)


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_file_expands_and_its_costs_are_known(name, scale):
    sweep, points = _points(name, scale)
    tasks = all_tasks(points)
    assert (len(points), len(tasks)) == COUNTS[name][scale == "paper"]
    plans = plan_tasks(tasks, on_gpu=scale == "paper")
    whole = total([plan.forecast for plan in plans.values()])
    assert not [note for note in whole.notes if "known once" in note]
    assert whole.flops > 0 or name == "efficiency"
    if name in TRAINED:
        # Whole steps: a little less than was asked for.
        assert whole.tokens == pytest.approx(TRAINED[name][scale == "paper"], rel=0.03)
    assert sweep.machine or scale == "tiny"


def _llama_training_flops(params_target: int, vocab: int, length: int, tokens: float) -> float:
    """Six FLOPs a weight and token, and attention's scores: written from the definition, from the sizes alone."""
    shape = find_rung(params_target, vocab).architecture
    hidden, layer = shape.hidden_size, shape.layers[0]
    attention = 4 * hidden * layer.num_attention_heads * shape.structure.head_dim
    weights = shape.num_hidden_layers * (attention + 3 * hidden * layer.intermediate_size) + vocab * hidden
    scores = shape.num_hidden_layers * 2 * layer.num_attention_heads * shape.structure.head_dim * length
    return 3 * 2 * (weights + scores) * tokens


@pytest.mark.parametrize(("scale", "vocab", "length"), [("tiny", 1024, 128), ("paper", 49152, 1024)])
def test_the_flops_of_sizes_are_the_closed_form(scale, vocab, length):
    _, points = _points("sizes", scale)
    plans = plan_tasks(all_tasks(points), on_gpu=True)
    for point in points:
        (task,) = point.tasks
        plan = plans[task.name]
        cost = plan.forecast
        size = int(parse_number(point.values["scratch"]))
        expected = _llama_training_flops(size, vocab, length, cost.tokens)
        assert cost.flops_of("training") == pytest.approx(expected, rel=1e-12)
        assert num_params(plan.models[0]) == pytest.approx(size, rel=0.03)


def test_a_teacher_and_a_capture_are_counted():
    _, points = _points("distillation", "paper")
    plans = plan_tasks(all_tasks(points), on_gpu=True)
    teacher = published_architecture("HuggingFaceTB/SmolLM2-360M")
    assert num_params(teacher) == 361_821_120  # as its model card says: 362M
    hidden, layers, mlp, vocab, heads, kv = 960, 32, 2560, 49152, 15, 5
    weights = layers * (hidden * 64 * 2 * (heads + kv) + 3 * hidden * mlp) + vocab * hidden
    forward = 2 * (weights + layers * 2 * heads * 64 * 1024) * 2_147_483_648
    (full,) = [point for point in points if point.group == "full"]
    assert plans[full.tasks[-1].name].forecast.flops_of("teacher") == pytest.approx(forward, rel=1e-12)
    top_k = next(point for point in points if point.group == "top-k")
    assert plans[top_k.tasks[0].name].forecast.flops_of("capture") == pytest.approx(forward, rel=1e-12)
    assert plans[top_k.tasks[-1].name].forecast.flops_of("teacher") == 0


def test_steps_in_common_are_run_once():
    _, points = _points("granularity", "tiny")
    assert len({point.tasks[0].digest for point in points}) == 1
    assert len({point.tasks[2].digest for point in points}) == 8


def test_an_option_that_is_called_as_a_figure_leaves_the_figure_its_name(tmp_path):
    points = expand(read_sweep(SWEEPS / "distillation.yaml", "tiny", []))
    (point,) = [point for point in points if point.values.get("train.loss") == "reverse_kl"]
    (row,) = point_rows("distillation", point, tmp_path, {}, is_single=False)
    assert row["train.divergence"] == "reverse_kl" and "train.loss" not in row


def test_a_dry_run_prints_points_and_their_sum(capsys):
    assert main([str(SWEEPS / "debug.yaml"), "--dry-run", "--price-per-hour", "3", "--device-flops", "100T"]) == 0
    said = capsys.readouterr().out
    assert "1 points, 6 runs (base, search, logits, train, proxies, evaluate)" in said
    assert "all runs, each once" in said
    assert "1e+14 FLOP/s, of which 40% are reached, $3 an hour, 80 GB" in said
