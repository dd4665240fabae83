"""Runs sub-networks straight out of a teacher's mapped weights, one layer's slices in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slm_ray.models.extraction import build_empty, heterogeneous_config
from slm_ray.models.families import HIDDEN, Family
from slm_ray.models.heads import next_token_losses
from slm_ray.models.prefixes import PrefixCache, prefix_keys, replay
from slm_ray.models.slicing import HEAD, Index, hidden_index, layer_indices, layer_slices, slice_tensor
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import LayerUnits, SubnetSpec


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make ``tensor`` the parameter ``name`` (a dotted path) of a module, without copying it."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class SubnetRunner:
    """Computes hidden states and losses of any sub-network of one teacher.

    The teacher's weights are only read. A sub-network's layers get their slices just before they run and lose them just
    after, so that a process needs the shared teacher plus one layer, whatever the candidate.

    Attributes:
        reused_flops: FLOPs of layers that did not run, for what they give was kept.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, family: Family, prefix_bytes: int = 0) -> None:
        """Prepare to run sub-networks.

        Args:
            state: The teacher's state dict, all of one floating type, which is the type computed in, and on one
                device, which is computed on.
            config: The teacher's config.
            family: Its family.
            prefix_bytes: Memory for what first layers gave, for sub-networks that begin alike; 0: nothing is kept.
        """
        self.state, self.config, self.family = state, config, family
        self.teacher = family.architecture(config)
        embedding = next(iter(family.global_tensors))
        self._embedding = state[embedding]
        self._embedding_name = embedding
        self.head = state.get(HEAD, self._embedding)
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._rotary: nn.Module | None = None
        self._last: tuple[SubnetSpec, Any] | None = None
        self._prefixes = PrefixCache(prefix_bytes, self.teacher.num_hidden_layers) if prefix_bytes else None
        self.reused_flops = 0

    @torch.no_grad()
    def hidden_states(
        self,
        spec: SubnetSpec,
        ids: torch.Tensor,
        watch: Callable[[Any], object] | None = None,
        batch: Hashable | None = None,
    ) -> torch.Tensor:
        """The final, normalised hidden states of a sub-network.

        Args:
            spec: What is kept.
            ids: ``[batch, sequence]`` token ids.
            watch: Given the model before it runs, to put hooks on it; the model is not used again.
            batch: A name for ``ids``, the same for no others: what the first layers give is kept under it, and taken
                from there. None: every layer runs.

        Returns:
            ``[batch, sequence, hidden]`` in the teacher's type.
        """
        hidden, ids = hidden_index(spec, self.teacher), ids.to(self.device)
        if watch is None and (self._prefixes is None or batch is None):
            base = self._bound_base(spec, hidden)
        else:  # what is hooked onto it is not to stay
            base = self._empty_base(spec)
            known = self._use_prefixes(self._layers_of(base), spec, batch, ids)
            self._bind(base, spec, hidden, known)
            if watch is not None:
                watch(base)
        embedded = functional.embedding(ids, self._embedding)
        if hidden is not None:
            embedded = embedded.index_select(-1, hidden.to(self.device))
        return base(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def _bound_base(self, spec: SubnetSpec, hidden: Index) -> Any:
        """The model of a sub-network; that of the last one is kept, for most run on batch after batch."""
        if self._last is None or self._last[0] != spec:
            base = self._empty_base(spec)
            self._bind(base, spec, hidden)
            self._last = spec, base
        return self._last[1]

    def _layers_of(self, base: nn.Module) -> list[nn.Module]:
        layers: Any = base.get_submodule(self.family.layers_path.split(".", 1)[1])
        return list(layers)

    def _bind(self, base: nn.Module, spec: SubnetSpec, hidden: Index, known: int = 0) -> None:
        """Give a model its weights: those of layers, but of the first ``known``, whenever they run."""
        self._bind_globals(base, hidden)
        for module, units in list(zip(self._layers_of(base), spec.layers, strict=True))[known:]:
            self._bind_when_called(module, units, hidden)

    def _use_prefixes(
        self, layers: list[nn.Module], spec: SubnetSpec, batch: Hashable | None, ids: torch.Tensor
    ) -> int:
        """How many first layers need not run; they give what is kept, and what others give is going to be kept."""
        if self._prefixes is None or batch is None:
            return 0
        keys = prefix_keys(spec)
        known, output = self._prefixes.deepest(keys, batch)
        replay(layers[:known], output)
        self._prefixes.watch(layers, keys, batch)
        if known:
            whole = spec.architecture_in(self.teacher)
            rest = replace(whole, layers=whole.layers[known:])
            length = ids.shape[-1]
            self.reused_flops += ids.numel() * (flops_per_token(whole, length) - flops_per_token(rest, length))
        return known

    def _empty_base(self, spec: SubnetSpec) -> Any:
        architecture = spec.architecture_in(self.teacher)
        sources = tuple(layer.source for layer in spec.layers)
        model = build_empty(heterogeneous_config(self.config, self.family, architecture, sources), self.family)
        base = model.base_model.eval()
        rotary = getattr(base, "rotary_emb", None)
        if rotary is not None:
            if self._rotary is None:
                self._rotary = type(rotary)(config=rotary.config).to(self.device)
            base.rotary_emb = self._rotary
        return base

    def _bind_globals(self, base: nn.Module, hidden: Index) -> None:
        for name, axes in self.family.global_tensors.items():
            if name in (HEAD, self._embedding_name) or name not in self.state:
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
        """Hidden states in the teacher's own channels, ready for its output head.

        Zeros in the dropped channels cost a few FLOPs; slicing the head instead would copy a fifth of a small teacher.

        Args:
            hidden: ``[tokens, kept channels]`` final hidden states.
            spec: The sub-network they are of.

        Returns:
            ``[tokens, hidden_size]``.
        """
        index = hidden_index(spec, self.teacher)
        if index is None:
            return hidden
        whole = hidden.new_zeros(len(hidden), self.teacher.hidden_size)
        return whole.index_copy_(1, index.to(hidden.device), hidden)

    @torch.no_grad()
    def token_losses(self, spec: SubnetSpec, ids: torch.Tensor, batch: Hashable | None = None) -> torch.Tensor:
        """The loss of every next token.

        Args:
            spec: What is kept.
            ids: ``[batch, sequence]`` token ids.
            batch: As for :meth:`hidden_states`.

        Returns:
            ``[batch, sequence - 1]`` fp32 negative log-likelihoods, in nats.
        """
        hidden = self.project(self.hidden_states(spec, ids, batch=batch)[:, :-1].flatten(0, 1), spec)
        targets = ids[:, 1:].flatten().to(self.device)
        return next_token_losses(hidden, self.head, targets).view(len(ids), -1)
