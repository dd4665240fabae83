"""One-shot pruning: Minitron-like widths and depth by activations, ShortGPT-like whole layers by block influence.

Minitron (arXiv 2407.14679) lists uniform shapes near the budget, cuts each by importance, and picks one after a little
training of all. Here the pick is by the loss on calibration text before training, the cheapest form of the same; no
peer is trained before its rate is sought. ShortGPT (arXiv 2403.03853) drops the layers of least influence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.peers.activations import Activations, Array
from slm_ray.config.errors import UserError
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet

_NEAR = 0.95  # shapes are taken from this share of the budget up to all of it, as Minitron's are from within 5%
_DEPTH_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_WIDTH_STEP, _NEURON_STEP = 64, 32


def best(scores: Array, count: int) -> tuple[int, ...]:
    """The units of highest score, ascending; of equal ones the first."""
    return tuple(sorted(int(unit) for unit in np.argsort(-scores, kind="stable")[:count]))


def uniform_cut(
    teacher: Architecture, found: Activations, hidden: int, layers: int, groups: int, neurons: int
) -> SubnetSpec:
    """The most important units of each kind, as many in one layer as in another.

    Args:
        teacher: The teacher's sizes.
        found: Importance.
        hidden: Residual channels to keep.
        layers: Layers to keep, those of most influence.
        groups: Key-value heads of each, with their query heads.
        neurons: Neurons of each.
    """
    kept = []
    for layer in best(found.influence, layers):
        shape = teacher.layers[layer]
        per_group = shape.num_attention_heads // shape.num_key_value_heads
        heads = best(found.kv_heads[layer], groups)
        queries = tuple(tuple(range(head * per_group, (head + 1) * per_group)) for head in heads)
        kept.append(LayerUnits(layer, heads, queries, best(found.neurons[layer], neurons)))
    return SubnetSpec(best(found.hidden, hidden), tuple(kept))


def shapes_near(teacher: Architecture, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Uniform shapes just within a number of parameters: hidden, layers, key-value heads, neurons."""
    whole, step = teacher.layers[0], min(_WIDTH_STEP, max(1, teacher.hidden_size // 8))
    neuron_step = min(_NEURON_STEP, max(1, whole.intermediate_size // 8))
    widths = range(teacher.hidden_size, teacher.hidden_size // 2 - 1, -step)
    depths = sorted({max(1, round(share * teacher.num_hidden_layers)) for share in _DEPTH_SHARES}, reverse=True)
    for hidden, layers, groups in itertools.product(widths, depths, range(whole.num_key_value_heads, 0, -1)):
        for neurons in range(whole.intermediate_size, 0, -neuron_step):
            units = (hidden, layers, groups, neurons)
            size = num_params(_uniform(teacher, *units))
            if size <= limit:
                if size >= _NEAR * limit:
                    yield units
                break


def _uniform(teacher: Architecture, hidden: int, layers: int, groups: int, neurons: int) -> Architecture:
    shape = teacher.layers[0]
    per_group = shape.num_attention_heads // shape.num_key_value_heads
    layer = type(shape)(groups * per_group, groups, neurons)
    return Architecture(teacher.structure, hidden, (layer,) * layers)


def mean_loss(runner: SubnetRunner, spec: SubnetSpec, ids: torch.Tensor, batch: int = 4) -> float:
    """Mean loss of a sub-network in nats per token; ids ``[sequences, length]``."""
    total = sum(float(runner.token_losses(spec, part).double().sum()) for part in ids.split(batch))
    return total / (len(ids) * (ids.shape[1] - 1))


def pick(runner: SubnetRunner, specs: Sequence[SubnetSpec], ids: torch.Tensor) -> tuple[SubnetSpec, int]:
    """The sub-network of the lowest loss: all on a quarter of the text, the best eighth of them on all of it.

    Args:
        runner: Runs the teacher's sub-networks.
        specs: What to choose from.
        ids: ``[sequences, length]``.

    Returns:
        The best, and the tokens that were read.
    """
    some = ids[: max(1, len(ids) // 4)]
    first = sorted(range(len(specs)), key=lambda number: mean_loss(runner, specs[number], some))
    left = first[: max(2, len(specs) // 8)]
    chosen = min(left, key=lambda number: mean_loss(runner, specs[number], ids))
    return specs[chosen], len(specs) * some.numel() + len(left) * ids.numel()


def fewer_layers(teacher: Architecture, influence: Array, limit: int) -> SubnetSpec:
    """The whole layers of most influence, as many as a number of parameters allows.

    Raises:
        UserError: It allows none.
    """
    whole = full_subnet(teacher)
    for count in range(teacher.num_hidden_layers, 0, -1):
        spec = SubnetSpec(whole.hidden, tuple(whole.layers[layer] for layer in best(influence, count)))
        if num_params(spec.architecture_in(teacher)) <= limit:
            return spec
    raise UserError(f"not one layer fits {limit:,} parameters: give a larger --share")
