"""Unit importance: weight magnitude, activations with block influence, and Taylor scores from gate gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from slm_ray.models.extraction import layers_of
from slm_ray.models.families import (
    GATE_UP,
    HIDDEN,
    KEYS,
    NEURONS,
    QKV_PER_HEAD,
    QKV_STACKED,
    QUERIES,
    Axes,
    Family,
)
from slm_ray.models.gates import GateGradients
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import UnitScores
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import full_subnet

Array = NDArray[np.float64]
METHODS = ("magnitude", "activation", "taylor")
_BATCH_SEQUENCES = 2


def _squares_along(tensor: torch.Tensor, axes: Axes, axis: str) -> Array | None:
    """Sum of squares per index of one axis; None where the tensor does not run along it."""
    if axis not in axes:
        return None
    dimension = axes.index(axis)
    others = [number for number in range(tensor.ndim) if number != dimension]
    squares = tensor.float().square()
    return (squares.sum(others) if others else squares).double().numpy()


class _HeadRows:
    """Adds up rows of width ``head_dim`` into heads, for the row layouts of all families."""

    def __init__(self, teacher: Architecture) -> None:
        shape, self.width = teacher.layers[0], teacher.structure.head_dim
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads

    def of(self, axis: str, rows: Array) -> tuple[Array, Array]:
        """(per query head, per key-value head without its queries) sums of rows."""
        none = np.zeros(self.heads), np.zeros(self.kv_heads)
        if axis == QUERIES:
            return rows.reshape(self.heads, self.width).sum(1), none[1]
        if axis == KEYS:
            return none[0], rows.reshape(self.kv_heads, self.width).sum(1)
        if axis == QKV_PER_HEAD:
            return rows.reshape(self.heads, 3 * self.width).sum(1), none[1]
        if self.heads == self.kv_heads:  # QKV_STACKED from here on
            return rows.reshape(3, self.heads, self.width).sum((0, 2)), none[1]
        queries, rest = np.split(rows, [self.heads * self.width])
        return queries.reshape(self.heads, -1).sum(1), rest.reshape(2, self.kv_heads, -1).sum((0, 2))


def magnitude_scores(state: Mapping[str, torch.Tensor], family: Family, teacher: Architecture) -> UnitScores:
    """Euclidean norm of all the weights that would go with each unit.

    Args:
        state: The teacher's state dict.
        family: Its family.
        teacher: Its sizes.
    """
    shape, count = teacher.layers[0], teacher.num_hidden_layers
    heads, kv_heads = np.zeros((count, shape.num_attention_heads)), np.zeros((count, shape.num_key_value_heads))
    neurons, layers = np.zeros((count, shape.intermediate_size)), np.zeros(count)
    hidden = np.zeros(teacher.hidden_size)
    rows_of = _HeadRows(teacher)
    for name, axes in family.global_tensors.items():
        found = _squares_along(state[name], axes, HIDDEN) if name in state else None
        hidden += 0 if found is None else found
    for layer in range(count):
        for name, axes in family.layer_tensors().items():
            tensor = state.get(family.layer_prefix.format(layer) + name)
            if tensor is None:
                continue
            layers[layer] += float(tensor.float().square().sum())
            for axis, total in ((HIDDEN, hidden), (NEURONS, neurons[layer])):
                found = _squares_along(tensor, axes, axis)
                total += 0 if found is None else found
            stacked = _squares_along(tensor, axes, GATE_UP)
            neurons[layer] += 0 if stacked is None else stacked.reshape(2, -1).sum(0)
            for axis in (QUERIES, KEYS, QKV_PER_HEAD, QKV_STACKED):
                found = _squares_along(tensor, axes, axis)
                if found is not None:
                    per_head, per_kv = rows_of.of(axis, found)
                    heads[layer] += per_head
                    kv_heads[layer] += per_kv
    kv_heads += _by_group(heads, shape.num_key_value_heads)
    squares = {"hidden": hidden, "layers": layers, "kv_heads": kv_heads, "query_heads": heads, "neurons": neurons}
    roots = {name: np.sqrt(values) for name, values in squares.items()}
    return UnitScores.from_arrays("magnitude", roots, comparable=False)


def _by_group(heads: Array, num_kv_heads: int) -> Array:
    """Sum query heads ``[..., heads]`` into their key-value heads ``[..., kv_heads]``."""
    return heads.reshape(*heads.shape[:-1], num_kv_heads, -1).sum(-1)


class _ActivationPass:
    """Collects, in one forward pass of the teacher, what every unit puts out and how much every layer changes."""

    def __init__(self, teacher: Architecture) -> None:
        shape, count = teacher.layers[0], teacher.num_hidden_layers
        self.head_dim = teacher.structure.head_dim
        self.neurons = np.zeros((count, shape.intermediate_size))
        self.heads = np.zeros((count, shape.num_attention_heads))
        self.hidden = np.zeros(teacher.hidden_size)
        self.influence = np.zeros(count)
        self.routed = np.zeros_like(self.neurons)  # tokens that went to each expert
        self.tokens = 0

    def watch(self, base: Any, family: Family) -> list[Any]:
        """Hook a model; returns the hooks, to be removed."""
        hooks = []
        for number, layer in enumerate(layers_of(base, family)):
            attention, mlp = layer.get_submodule(family.attention.output), family.mlp
            hooks.append(attention.register_forward_pre_hook(lambda _m, x, n=number: self._heads(n, x[0])))
            units = layer.get_submodule(mlp.experts or mlp.output)
            watch = self._experts if mlp.experts else self._neurons
            hooks.append(units.register_forward_pre_hook(lambda m, x, n=number, see=watch: see(n, m, *x)))
            hooks.append(layer.register_forward_hook(lambda _m, x, y, n=number: self._layer(n, x[0], y)))
        return hooks

    def _heads(self, number: int, x: torch.Tensor) -> None:
        split = x.flatten(0, -2).float().unflatten(-1, (-1, self.head_dim))
        self.heads[number] += split.norm(dim=-1).sum(0).double().numpy()

    def _neurons(self, number: int, _module: Any, x: torch.Tensor) -> None:
        self.neurons[number] += x.flatten(0, -2).float().abs().sum(0).double().numpy()

    def _experts(self, number: int, module: Any, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        for slot, weight in zip(chosen.split(1, 1), weights.split(1, 1), strict=True):
            written = module.forward(x, slot, weight)  # not called, for this hook would see it
            index = slot[:, 0].cpu().numpy()
            np.add.at(self.neurons[number], index, written.float().norm(dim=-1).double().cpu().numpy())
            np.add.at(self.routed[number], index, 1)

    def _layer(self, number: int, before: torch.Tensor, after: torch.Tensor) -> None:
        before, after = before.flatten(0, -2).float(), after.flatten(0, -2).float()
        self.hidden += functional.normalize(after, dim=-1).abs().sum(0).double().numpy()
        self.influence[number] += float((1 - functional.cosine_similarity(before, after, dim=-1)).sum())
        self.tokens += len(before) if number == 0 else 0


@torch.no_grad()
def activation_scores(runner: SubnetRunner, ids: torch.Tensor) -> UnitScores:
    """Mean size of each unit's output, and block influence for layers, in one forward pass.

    Neurons: mean absolute activation. Experts: mean norm of what the router's weight lets through, over the tokens that
    go to them (REAP, arXiv 2510.13999). Heads: mean norm of a head's output. Residual channels: mean share of the
    normalised residual stream. (Minitron, arXiv 2407.14679.) Layers: block influence, one minus the cosine between what
    enters and what leaves (ShortGPT, arXiv 2403.03853).

    Args:
        runner: Runs the teacher.
        ids: ``[sequences, length]`` calibration tokens.
    """
    found = _ActivationPass(runner.teacher)
    full = full_subnet(runner.teacher)
    for batch in ids.split(_BATCH_SEQUENCES):
        runner.hidden_states(full, batch, watch=lambda base: found.watch(base, runner.family))
    sums = {
        "hidden": found.hidden,
        "layers": found.influence,
        "kv_heads": _by_group(found.heads, runner.teacher.layers[0].num_key_value_heads),
        "query_heads": found.heads,
        "neurons": found.neurons * np.where(found.routed, found.tokens / np.maximum(found.routed, 1), 1),
    }
    means = {name: values / max(found.tokens, 1) for name, values in sums.items()}
    return UnitScores.from_arrays("activation", means, comparable=False)


def taylor_change(gradients: GateGradients, num_kv_heads: int, curvature: float | None) -> UnitScores:
    """How much the loss is expected to rise, in nats per token, were a unit absent.

    With ``S`` the gate's gradient summed over one segment, the expected rise is
    ``(-sum S + curvature * sum S^2) / tokens``: the first-order term and the empirical Fisher information as the
    second-order one. With ``curvature`` None, the squares alone, which is the score to use once on a whole teacher,
    whose first-order terms are mostly noise.

    Args:
        gradients: Per-segment gate gradients.
        num_kv_heads: Key-value heads per layer.
        curvature: Weight of the squared term.
    """

    def change(sums: Array) -> Array:
        squares = np.square(sums).sum(0)
        return (squares if curvature is None else curvature * squares - sums.sum(0)) / gradients.tokens

    heads, neurons = gradients.query_heads.astype(np.float64), gradients.neurons.astype(np.float64)
    return UnitScores(
        method="taylor",
        hidden=change(gradients.hidden.astype(np.float64)),
        layers=change(heads.sum(-1) + neurons.sum(-1)),
        kv_heads=change(_by_group(heads, num_kv_heads)),
        query_heads=change(heads),
        neurons=change(neurons),
        comparable=True,
    )
