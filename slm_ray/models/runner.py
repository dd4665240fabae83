"""Runs sub-networks on a teacher's mapped weights, with one layer's slices in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slm_ray.models.extraction import build_empty, layers_of, per_layer_config
from slm_ray.models.families import HEAD, HIDDEN, Family
from slm_ray.models.lm_head import next_token_losses
from slm_ray.models.slicing import Index, hidden_index, layer_indices, layer_slices, slice_tensor
from slm_ray.records.subnet import LayerUnits, SubnetSpec


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make ``tensor`` the parameter ``name`` (a dotted path) of a module, without copying it."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


class SubnetRunner:
    """Computes hidden states and losses of any sub-network of one teacher.

    The teacher's weights are only read. A layer gets its slices just before it runs and loses them just after, so a
    process needs the shared teacher plus one layer, whatever the candidate.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, family: Family) -> None:
        self.state, self.config, self.family = state, config, family
        self.teacher = family.architecture(config)
        self._embedding = state[family.embedding]
        self._scales, self.cap = (family.embedding_scale(config), family.logit_scale(config)), family.logit_cap(config)
        self.head = state.get(HEAD, self._embedding)
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._rotary: nn.Module | None = None
        self._last: tuple[SubnetSpec, Any] | None = None
        self._kept: tuple[tuple[int, ...], torch.Tensor, torch.Tensor] | None = None  # ids, and their rows of the head

    @torch.no_grad()
    def hidden_states(
        self, spec: SubnetSpec, ids: torch.Tensor, watch: Callable[[Any], object] | None = None
    ) -> torch.Tensor:
        """The final, normalised hidden states of a sub-network.

        ``ids``: ``[batch, sequence]`` token ids. Returns ``[batch, sequence, hidden]`` in the teacher's type.
        """
        hidden = hidden_index(spec, self.teacher)
        if watch is None:
            base = self._bound_base(spec, hidden)
        else:
            base = self._bind(spec, hidden)
            watch(base)
        embedded = functional.embedding(ids.to(self.device), self._embedding)
        if hidden is not None:
            embedded = embedded.index_select(-1, hidden.to(self.device))
        if self._scales[0] != 1:
            embedded = embedded * embedded.new_tensor(self._scales[0])  # rounded as transformers does
        return base(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def _bound_base(self, spec: SubnetSpec, hidden: Index) -> Any:
        """A sub-network's model; the last one is kept, since most run on batch after batch."""
        if self._last is None or self._last[0] != spec:
            self._last = spec, self._bind(spec, hidden)
        return self._last[1]

    def _bind(self, spec: SubnetSpec, hidden: Index) -> Any:
        """A sub-network's model with its weights; those of its layers come whenever they run."""
        base = self._empty_base(spec)
        self._bind_globals(base, hidden)
        for module, units in zip(layers_of(base, self.family), spec.layers, strict=True):
            self._bind_when_called(module, units, hidden)
        return base

    def _empty_base(self, spec: SubnetSpec) -> Any:
        architecture = spec.architecture_in(self.teacher)
        sources = tuple(layer.source for layer in spec.layers)
        model = build_empty(per_layer_config(self.config, self.family, architecture, sources), self.family)
        base = model.base_model.eval()
        rotary = getattr(base, "rotary_emb", None)
        if rotary is not None:
            if self._rotary is None:
                alike = copy.copy(self.config)
                alike.per_layer_config = None
                self._rotary = type(rotary)(config=alike).to(self.device)
            base.rotary_emb = self._rotary
        return base

    def _bind_globals(self, base: nn.Module, hidden: Index) -> None:
        for name, axes in self.family.global_tensors.items():
            if name in (HEAD, self.family.embedding) or name not in self.state:
                continue
            _assign(base, name.split(".", 1)[1], slice_tensor(self.state[name], axes, {HIDDEN: hidden}))

    def _bind_when_called(self, module: nn.Module, units: LayerUnits, hidden: Index) -> None:
        empty = {name: parameter for name, parameter in module.named_parameters()}

        def bind(_module: nn.Module, _inputs: object) -> None:
            indices = layer_indices(units, hidden, self.teacher)
            for name, tensor in layer_slices(self.state, self.family, units, indices):
                _assign(module, name, tensor)

        def release(_module: nn.Module, _inputs: object, _output: object) -> None:
            for name, parameter in empty.items():
                _assign(module, name, parameter)

        module.register_forward_pre_hook(bind)
        module.register_forward_hook(release)

    def project(self, hidden: torch.Tensor, spec: SubnetSpec) -> torch.Tensor:
        """Hidden states in the teacher's own channels, scaled as logits are: ready for the teacher's output head.

        Zeros in the dropped channels cost a few FLOPs; slicing the head instead would copy a fifth of a small teacher.

        ``hidden``: ``[tokens, kept channels]`` final hidden states. Returns ``[tokens, hidden_size]``.
        """
        index = hidden_index(spec, self.teacher)
        if self._scales[1] != 1:
            hidden = hidden * self._scales[1]
        if index is None:
            return hidden
        whole = hidden.new_zeros(len(hidden), self.teacher.hidden_size)
        return whole.index_copy_(1, index.to(hidden.device), hidden)

    @torch.no_grad()
    def token_losses(self, spec: SubnetSpec, ids: torch.Tensor) -> torch.Tensor:
        """The loss of every next token, among those that the sub-network keeps.

        ``ids``: ``[batch, sequence]``, the teacher's token ids, all kept.
        """
        hidden = self.project(self.hidden_states(spec, ids)[:, :-1].flatten(0, 1), spec)
        head, targets = self.head, ids[:, 1:].flatten().to(self.device)
        if spec.vocabulary is not None:
            if self._kept is None or self._kept[0] != spec.vocabulary:
                rows = torch.tensor(spec.vocabulary, device=self.device)
                self._kept = spec.vocabulary, rows, self.head[rows]
            _, rows, head = self._kept
            targets = torch.searchsorted(rows, targets)
        return next_token_losses(hidden, head, targets, self.cap).view(len(ids), -1)
