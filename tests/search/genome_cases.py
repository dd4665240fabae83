"""Teachers, made-up scores and genomes that the tests of search spaces share."""

from __future__ import annotations

import numpy as np

from slm_ray.models.scores import UnitScores
from slm_ray.records.architecture import Architecture, LayerShape, Structure
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.search.genome import Genome
from slm_ray.search.space import SearchSpace, load_space, parse_space

SPACES = ("coarse", "coarse_layerwise", "fine_uniform", "fine", "depth")
QUANTITIES = ("params", "flops", "kv_bytes")
LENGTH = 128


def _teacher(layers: int, shape: LayerShape, hidden: int, head_dim: int, vocab: int, gpt2: bool) -> Architecture:
    structure = Structure(
        family="gpt2" if gpt2 else "llama",
        vocab_size=vocab,
        head_dim=head_dim,
        tie_word_embeddings=True,
        gated_mlp=not gpt2,
        qkv_bias=gpt2,
        attention_output_bias=gpt2,
        mlp_bias=gpt2,
        norm_bias=gpt2,
        qk_norm=False,
        learned_positions=1024 if gpt2 else 0,
        output_head_bias=False,
        max_position_embeddings=1024,
    )
    return Architecture(structure, hidden, (shape,) * layers)


TEACHERS = {
    "smollm2-135m": _teacher(30, LayerShape(9, 3, 1536), 576, 64, 49152, gpt2=False),
    "gpt2": _teacher(12, LayerShape(12, 12, 3072), 768, 64, 50257, gpt2=True),
    # Neither 160 neurons nor 96 channels are whole blocks of 64.
    "tiny-gqa": _teacher(3, LayerShape(4, 2, 160), 96, 8, 60, gpt2=False),
    "tiny-mha": _teacher(2, LayerShape(2, 2, 130), 64, 8, 50, gpt2=True),
}


def scores_of(teacher: Architecture, seed: int = 0, comparable: bool = True) -> UnitScores:
    """Random positive scores; a layer's is less than the sum of its units', so dropping whole layers may pay."""
    rng = np.random.default_rng(seed)
    layers, shape = teacher.num_hidden_layers, teacher.layers[0]
    neurons = rng.lognormal(size=(layers, shape.intermediate_size))
    queries = 50 * rng.lognormal(size=(layers, shape.num_attention_heads))
    kv_heads = queries.reshape(layers, shape.num_key_value_heads, -1).sum(axis=2)
    whole = (neurons.sum(axis=1) + kv_heads.sum(axis=1)) * rng.uniform(0.3, 1.0, size=layers)
    hidden = 100 * rng.lognormal(size=teacher.hidden_size)
    return UnitScores("taylor", hidden, whole, kv_heads, queries, neurons, comparable)


def genome_of(space: str | SearchSpace, teacher: Architecture, seed: int = 0, comparable: bool = True) -> Genome:
    """A space by name, bound to a teacher with random scores."""
    bound = load_space(space) if isinstance(space, str) else space
    scores = scores_of(teacher, seed, comparable)
    return Genome(bound, teacher, {order: scores for order in bound.orders()}, guide=scores)


def space_of(**axes: dict[str, object]) -> SearchSpace:
    """A space with these axes."""
    return parse_space({"name": "made", "description": "", "axes": axes}, "made")


QUERY_SPACES = {
    "queries per layer": space_of(
        layers={"select": "subset"},
        heads={"per": "layer", "select": "subset"},
        queries={"per": "layer"},
        neurons={"per": "layer", "select": "count", "step": 32},
    ),
    "queries per model": space_of(
        hidden={"select": "subset", "step": 32},
        heads={"per": "model", "select": "subset"},
        queries={"per": "model"},
        neurons={"per": "model", "select": "subset", "step": 32},
    ),
    "two layers at least": space_of(
        layers={"select": "subset", "least": 2, "step": 1},
        heads={"per": "model", "select": "count"},
        neurons={"per": "layer", "select": "subset", "step": 48, "least": 0},
    ),
    "layers in pairs": space_of(
        layers={"select": "subset", "step": 2},
        heads={"per": "layer", "select": "count", "least": 1},
        neurons={"per": "layer", "select": "subset", "step": 32, "least": 32},
    ),
}


ALL_SPACES = {**{name: load_space(name) for name in SPACES}, **QUERY_SPACES}


def random_genes(genome: Genome, seed: int, count: int) -> list[np.ndarray]:
    """Genes drawn uniformly within the bounds, the two ends first."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(genome.lower, genome.upper, endpoint=True) for _ in range(count)]
    sparse = [np.where(rng.random(genome.num_genes) < 0.1, genes, genome.lower) for genes in drawn[: count // 2]]
    return [genome.lower, genome.upper, *drawn, *sparse]


def gene_of(genome: Genome, axis: str, layer: int | None = None) -> int:
    """The first gene of a choice."""
    return next(group.start for group in genome.groups if (group.axis, group.layer) == (axis, layer))


def largest_step(genome: Genome, quantity: str) -> int:
    """The most that one step of one gene changes the whole teacher's cost by."""
    whole, fewer = genome.cost(genome.upper, quantity, LENGTH), genome.upper - np.eye(genome.num_genes, dtype=np.int64)
    return max(whole - genome.cost(np.maximum(one, genome.lower), quantity, LENGTH) for one in fewer)


def budget_of(genome: Genome, quantity: str, low: float, high: float) -> Budget:
    """A range given as shares of the way from the least to the greatest cost the space can reach."""
    least, most = genome.reach(quantity, LENGTH)
    return Budget(quantity, round(least + low * (most - least)), round(least + high * (most - least)))


def cost_of(genome: Genome, genes: np.ndarray, quantity: str) -> int:
    """The cost of what genes decode to, by the exact functions."""
    return measure_cost(genome.decode(genes).architecture_in(genome.teacher), quantity, LENGTH)
