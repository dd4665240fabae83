"""A causal LM's sub-layers one by one: each can be run, and its projections changed, on its own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slm_ray.models.extraction import layers_of
from slm_ray.models.families import Family
from slm_ray.models.families.modeling.modeling_slm_ray import SkippedHeads, SkippedNeurons

ATTENTION, MLP = 0, 1


class Projection:
    """A linear layer, seen with its weight as ``[out, in]`` whichever way its family keeps it.

    All experts of a mixture are one too: ``[experts, out, in]``.
    """

    def __init__(self, module: Any, name: str = "weight") -> None:
        self.module, self._name = module, name
        self.is_transposed = isinstance(module, Conv1D)

    @property
    def weight(self) -> torch.Tensor:
        """``[out, in]``, a view."""
        weight: torch.Tensor = getattr(self.module, self._name).detach()
        return weight.T if self.is_transposed else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """``[out]``, or None."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[rows, in]`` to ``[rows, out]``."""
        return nn.functional.linear(inputs, self.weight, self.bias)

    def add(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add an update in place, the sum made in the update's own type and rounded once."""
        self.weight.copy_(self.weight.to(weight.dtype) + weight)
        if bias is not None:
            own = self.bias
            assert own is not None
            own.copy_(own.to(bias.dtype) + bias)


@dataclass(frozen=True)
class SubLayer:
    """An attention or an MLP with its norms."""

    norm: Any  # The norm before it
    module: Any  # The attention or the MLP
    readers: dict[str, Projection]  # The projections that read the normalised stream, by their weights' names
    writer: Projection  # The projection that writes to the stream
    writer_path: tuple[Any, str]  # Its owner, and its name there
    post_norm: Any = None  # The norm behind it, if there is one
    gain: torch.Tensor | None = None  # ``[hidden]``, what that norm multiplies by
    scale: float = 1.0  # What its output is multiplied by before it is added to the stream

    @property
    def mixes(self) -> bool:
        """It is a mixture of experts, and what is fitted is one map behind all that they write."""
        return self.writer.weight.dim() > 2

    def written(self, inputs: torch.Tensor) -> torch.Tensor:
        """What is added to the stream ``[batch, sequence, hidden]``, from the writer's input."""
        output = inputs if self.mixes else self.writer(inputs)
        output = output if self.post_norm is None else self.post_norm(output)
        return output if self.scale == 1 else output * self.scale

    def slope(self, inputs: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """What the writer's output is multiplied by: per token ``[batch, sequence, 1]``, per channel ``[hidden]``.

        A norm behind the writer is taken for the scale that it has now.
        """
        if self.gain is None:
            return self.scale, 1.0
        size = self.writer(inputs).square().mean(-1, keepdim=True).clamp_min(1e-12)
        return self.scale * size.rsqrt(), self.gain

    def inner(self, normed: torch.Tensor, call: dict[str, Any] | None) -> torch.Tensor:
        """The writer's input; of a mixture, the output of its experts.

        ``normed``: ``[batch, sequence, hidden]``, normalised. ``call``: An attention's other arguments; None for an
        MLP. Returns ``[batch, sequence, in]``.
        """
        if self.mixes:
            return self.module(normed)
        owner, name = self.writer_path
        setattr(owner, name, nn.Identity())
        try:
            return self.module(normed) if call is None else self.module(normed, **call)[0]
        finally:
            setattr(owner, name, self.writer.module)


class _Stop(Exception):
    """Ends a forward pass of a layer at its attention."""


class _Recorder(nn.Module):
    """Stands where a layer is, keeps what it is called with, and hands on the stream."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.stream, self.args, self.kwargs = hidden_states, args, kwargs
        return hidden_states


class TakenApart:
    """A causal LM by its sub-layers."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.family = model, family
        self.base = model.base_model
        self.layers = layers_of(self.base, family)
        self._names = (family.attention, family.mlp)
        self.is_parallel = family.is_parallel(model.config)
        self.kinds = family.attention_kinds(model.config)
        self._scale = family.residual_scale(model.config)
        self._calls: dict[int, dict[str, dict[str, Any]]] = {}

    def sub_layer(self, layer: int, kind: int) -> SubLayer | None:
        """A sub-layer, or None where it is skipped."""
        owner, names = self.layers[layer], self._names[kind]
        module = owner.get_submodule(names.module)
        if isinstance(module, (SkippedHeads, SkippedNeurons)):
            return None
        parent, _, leaf = names.output.rpartition(".")
        paths = {name: name.rpartition(".") for name, axes in names.tensors.items() if len(axes) > 1}
        readers = {
            name: Projection(owner.get_submodule(path), leaf)
            for name, (path, _, leaf) in paths.items()
            if not name.startswith(names.output)
        }
        experts = names.experts and Projection(owner.get_submodule(parent), leaf)
        writer = experts or Projection(owner.get_submodule(names.output))
        norm = owner.get_submodule(names.norm) if names.norm else nn.Identity()
        post = owner.get_submodule(names.post_norm) if names.post_norm else None
        gain = None if post is None else post.weight + self.family.norm_offset
        return SubLayer(norm, module, readers, writer, (owner.get_submodule(parent), leaf), post, gain, self._scale)

    def begin(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream ``[batch, sequence, hidden]`` before the first layer."""
        recorders = [_Recorder() for _ in self.layers]
        setattr(self.base, self.family.layers, nn.ModuleList(recorders))
        try:
            self.base(ids, use_cache=False)
        finally:
            setattr(self.base, self.family.layers, self.layers)
        self._calls[len(ids)] = {
            kind: self._attention_call(self.kinds.index(kind), recorders[self.kinds.index(kind)])
            for kind in set(self.kinds)
        }
        return recorders[0].stream

    def _attention_call(self, number: int, called: _Recorder) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def keep(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            found.update({name: value for name, value in kwargs.items() if name != "hidden_states"})
            raise _Stop

        attention = self.layers[number].get_submodule(self._names[ATTENTION].module)
        hook = attention.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with contextlib.suppress(_Stop):
                self.layers[number](called.stream, *called.args, **called.kwargs)
        finally:
            hook.remove()
        return found

    def call(self, kind: int, batch: int, layer: int) -> dict[str, Any] | None:
        """An attention's arguments besides the stream (masks, rotary tables), for a layer and a batch of this size."""
        return self._calls[batch][self.kinds[layer]] if kind == ATTENTION else None

    def final_norm(self) -> Any:
        """The norm behind the last layer."""
        return self.model.get_submodule(self.family.final_norm)
