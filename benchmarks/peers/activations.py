"""What a teacher's units put out on calibration text, added up as Minitron does, and ShortGPT's block influence.

Minitron (arXiv 2407.14679): the importance of a neuron, a head or a residual channel is the size of its output; sizes
are averaged over a sample's tokens and joined over samples by their root of squares, the best of the ways it compares.
ShortGPT (arXiv 2403.03853): a layer matters as much as it turns what passes through it, one minus the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from slm_ray.models.extraction import layers_of
from slm_ray.models.families import Family
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.architecture import Architecture
from slm_ray.records.files import write_bytes
from slm_ray.records.subnet import full_subnet

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Activations:
    """Importance by activations.

    Attributes:
        hidden: ``[hidden]``.
        kv_heads: ``[layers, key-value heads]``, with their query heads.
        neurons: ``[layers, neurons]``.
        influence: ``[layers]``, one minus the mean cosine between what enters a layer and what leaves it.
    """

    hidden: Array
    kv_heads: Array
    neurons: Array
    influence: Array

    def save(self, path: Path) -> None:
        """Write them as one safetensors file."""
        temporary = path.with_suffix(".tmp")
        save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, temporary)
        write_bytes(path, temporary.read_bytes())
        temporary.unlink()

    @classmethod
    def load(cls, path: Path) -> Activations:
        """Read what :meth:`save` wrote."""
        return cls(**load_file(path))


class _Pass:
    """Adds up, sample by sample, what hooks see."""

    def __init__(self, teacher: Architecture) -> None:
        shape, count = teacher.layers[0], teacher.num_hidden_layers
        self.head_dim, self.groups = teacher.structure.head_dim, shape.num_key_value_heads
        self.hidden = np.zeros(teacher.hidden_size)
        self.heads = np.zeros((count, shape.num_attention_heads))
        self.neurons = np.zeros((count, shape.intermediate_size))
        self.influence, self.tokens = np.zeros(count), 0

    def watch(self, base: Any, family: Family) -> None:
        """Hook a model that is about to run."""
        layers = layers_of(base, family)
        for number, layer in enumerate(layers):
            attention, mlp = layer.get_submodule(family.attention.output), layer.get_submodule(family.mlp.output)
            attention.register_forward_pre_hook(lambda _m, x, n=number: self._heads(n, x[0]))
            mlp.register_forward_pre_hook(lambda _m, x, n=number: self._add(self.neurons[n], x[0].abs()))
            layer.register_forward_hook(lambda _m, x, y, n=number: self._layer(n, x[0], y))
        for name, module in base.named_modules():
            if name.rsplit(".", 1)[-1] in ("input_layernorm", "post_attention_layernorm", "norm"):
                module.register_forward_hook(lambda _m, _x, y: self._add(self.hidden, y.abs()))

    @staticmethod
    def _add(total: Array, sizes: torch.Tensor) -> None:
        """Mean over a sample's tokens, squared, summed over samples; sizes ``[samples, tokens, units]``."""
        total += sizes.float().mean(1).square().sum(0).double().numpy()

    def _heads(self, number: int, x: torch.Tensor) -> None:
        self._add(self.heads[number], x.float().unflatten(-1, (-1, self.head_dim)).norm(dim=-1))

    def _layer(self, number: int, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.influence[number] += float((1 - cosine).sum())
        self.tokens += cosine.numel() if number == 0 else 0

    def result(self) -> Activations:
        """The importance of all units."""
        groups = self.heads.reshape(len(self.heads), self.groups, -1).sum(-1)
        return Activations(
            np.sqrt(self.hidden), np.sqrt(groups), np.sqrt(self.neurons), self.influence / max(1, self.tokens)
        )


def gather_activations(runner: SubnetRunner, ids: torch.Tensor, batch: int = 16) -> Activations:
    """Importance of a teacher's units, in one forward pass.

    Args:
        runner: Runs the teacher.
        ids: ``[samples, length]`` calibration tokens.
        batch: Samples at once.
    """
    found, full = _Pass(runner.teacher), full_subnet(runner.teacher)
    for part in ids.split(batch):
        runner.hidden_states(full, part, watch=lambda base: found.watch(base, runner.family))
    return found.result()
