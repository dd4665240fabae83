"""Learning which units to keep, with gate gradients made up from a known truth, and on a real tiny teacher."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm_ray.models.gates import GatedTeacher, GateGradients
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.search.config import SearchConfig
from slm_ray.search.genome import Genome
from slm_ray.search.learned_scores import curvature_at, learn_scores, target_costs
from slm_ray.search.unit_scores import Ranking, bind_genomes
from slm_ray.search.vocabulary import Vocabularies
from tests.models.tiny import tiny_family, tiny_ids, tiny_model
from tests.search.genome_cases import LENGTH, TEACHERS, space_of

TEACHER = TEACHERS["tiny-gqa"]
SPACE = space_of(heads={"per": "layer", "select": "subset"}, neurons={"per": "layer", "select": "subset", "step": 8})
WHOLE = measure_cost(TEACHER, "params", LENGTH)


class MadeUp:
    """Gate gradients under which unit ``u`` is worth ``worth(step)[u]``, and a note of every mask asked for."""

    def __init__(self, worth) -> None:
        self.worth, self.masks, self.steps = worth, [], []

    def __call__(self, step, masks):
        self.steps.append(step)
        self.masks.append(masks)
        shape = TEACHER.layers[0]
        neurons = -self.worth(step).astype(np.float32)[None]  # a loss that falls as the gate opens
        heads = np.full((1, TEACHER.num_hidden_layers, shape.num_attention_heads), -50, dtype=np.float32)
        return GateGradients(heads, neurons, np.zeros((1, TEACHER.hidden_size), np.float32), 100.0, 50)


def cost_of(masks) -> int:
    per_head = TEACHER.layers[0].num_attention_heads // TEACHER.layers[0].num_key_value_heads
    shapes = [
        LayerShape(int(heads.sum()), int(heads.sum()) // per_head, int(neurons.sum()))
        for heads, neurons in zip(masks.query_heads, masks.neurons, strict=True)
    ]
    return measure_cost(Architecture(TEACHER.structure, TEACHER.hidden_size, tuple(shapes)), "params", LENGTH)


def steady(seed: int = 0):
    worth = np.random.default_rng(seed).uniform(
        0.1, 5, size=(TEACHER.num_hidden_layers, TEACHER.layers[0].intermediate_size)
    )
    return lambda step: worth


def learn(collect, steps=10, targets=(0.7, 0.5)):
    return learn_scores(SPACE, TEACHER, "params", LENGTH, [round(share * WHOLE) for share in targets], steps, collect)


@pytest.mark.parametrize("steps", [2, 10])
def test_it_comes_down_to_each_target_and_stays(steps):
    made = MadeUp(steady())
    learned = learn(made, steps)
    assert made.steps == list(range(steps))
    assert made.masks[0] is None and all(masks is not None for masks in made.masks[1:])
    sizes = [cost_of(masks) for masks in made.masks[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert 0.5 * WHOLE - 0.05 * WHOLE <= sizes[-1] <= 0.5 * WHOLE
    assert len(learned.by_target) == 2
    if steps >= 10:
        assert any(0.65 * WHOLE <= size <= 0.7 * WHOLE for size in sizes)
    for scores in learned.by_target:  # where every step says the same, blending mixes the steps' curvatures alone
        curvatures = (50 * scores.neurons - steady()(0)) / np.square(steady()(0))
        np.testing.assert_allclose(curvatures, curvatures.mean(), rtol=1e-4)
        assert curvature_at(0.5) < curvatures.mean() <= curvature_at(0.85)


def test_curvature_falls_as_more_is_pruned():
    assert curvature_at(0.7) == pytest.approx(2) and curvature_at(0.45) == pytest.approx(0.25)
    assert curvature_at(0.575) == pytest.approx(0.5**0.5) and curvature_at(0.1) == pytest.approx(0.25)
    assert curvature_at(1) == 8


def test_one_step_is_the_one_shot_score():
    made = MadeUp(steady())
    learned = learn(made, steps=1)
    assert made.masks == [None] and learned.by_target == (learned.one_shot,)
    np.testing.assert_allclose(learned.one_shot.neurons, np.square(steady()(0)) / 50, rtol=1e-5)


def test_a_dropped_unit_that_is_missed_comes_back():
    """Ten blocks look worthless on the whole teacher; once others are gone, they are the best of all."""
    worth = steady()(0).copy()
    late = np.zeros_like(worth, dtype=bool)
    late[1, :80] = True

    def changing(step):
        return np.where(late, 0.0 if step == 0 else 40.0, worth)

    made = MadeUp(changing)
    learn(made, steps=20)
    assert not made.masks[1].neurons[late].any()
    assert made.masks[-1].neurons[late].all()


@pytest.mark.parametrize(
    "low, high, expected", [(50, 70, [70, 50]), (60, 70, [70]), (10, 200, [100, 40]), (70, 70, [70]), (90, 300, [100])]
)
def test_targets_are_the_ends_of_the_budget_that_can_be_reached(low, high, expected):
    assert target_costs(Budget("params", low, high), (40, 100)) == expected
    assert target_costs(Budget("params", low, high, is_ceiling=True), (40, 100)) == expected[:1]


def test_learning_on_a_real_teacher_beats_one_shot_scores_on_its_own_tokens():
    model, family = tiny_model("llama"), tiny_family("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.6
    teacher = family.architecture(model.config)
    ids = tiny_ids(batch=8, length=24)
    gated = GatedTeacher(model.state_dict(), model.config, family)
    runner = SubnetRunner(model.state_dict(), model.config, family)
    space = space_of(
        heads={"per": "layer", "select": "subset"}, neurons={"per": "layer", "select": "subset", "step": 2}
    )
    target = round(0.75 * measure_cost(teacher, "params", 24))
    learned = learn_scores(space, teacher, "params", 24, [target], 16, lambda step, masks: gated.gradients(ids, masks))

    def loss(scores):
        genome = Genome(space, teacher, {"taylor": scores}, guide=scores)
        least, _ = genome.reach("params", 24)
        return float(
            runner.token_losses(genome.decode(genome.ranked(target, Budget("params", least, target), 24)), ids).mean()
        )

    assert loss(learned.by_target[0]) < loss(learned.one_shot)


@pytest.mark.parametrize(("low", "rankings"), [(0.5, 5), (0.9, 1)])
def test_between_two_learned_ends_there_are_rankings_of_both(low, rankings):
    """The size of each is as far from the ends as its scores are; with one size learned there is that alone."""
    budget = Budget("params", round(low * 0.7 * WHOLE), round(0.7 * WHOLE))
    teacher = SimpleNamespace(family=lambda: tiny_family("llama"))
    inputs = SimpleNamespace(space=SPACE, architecture=TEACHER, budget=budget, teacher=teacher,
                             vocabularies=Vocabularies())
    targets = target_costs(budget, (0, WHOLE))
    learned = learn(MadeUp(steady()), targets=[target / WHOLE for target in targets]).by_target
    stack = bind_genomes(SearchConfig().replace(sequence_length=LENGTH), inputs, Ranking(learned, None, {}, 0))
    assert len(stack.genomes) == rankings
    if rankings == 1:
        assert stack.sizes is None
        return
    assert stack.sizes[:2] == tuple(targets) and stack.sizes[3] == pytest.approx(sum(targets) / 2, abs=1)
    high, small, middle = (stack.genomes[which].guide.arrays() for which in (0, 1, 3))
    assert all(middle[name] == pytest.approx((high[name] + small[name]) / 2) for name in middle)
