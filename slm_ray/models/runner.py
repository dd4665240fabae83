"""Runs sub-networks straight out of a teacher's mapped weights, one layer's slices in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slm_ray.architecture import LayerUnits, SubnetSpec
from slm_ray.models.extraction import build_empty, heterogeneous_config
from slm_ray.models.families import HIDDEN, Family
from slm_ray.models.slicing import HEAD, Index, hidden_index, layer_indices, layer_slices, slice_tensor

# Tokens whose logits exist at one time: 64 x 49,152 fp32 logits are 12 MiB.
HEAD_CHUNK_TOKENS = 64


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make ``tensor`` the parameter ``name`` (a dotted path) of a module, without copying it."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class SubnetRunner:
    """Computes hidden states and losses of any sub-network of one teacher.

    The teacher's weights are only read. A sub-network's layers get their slices just before they run and lose them just
    after, so that a process needs the shared teacher plus one layer, whatever the candidate.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, family: Family) -> None:
        """Prepare to run sub-networks.

        Args:
            state: The teacher's state dict, all of one floating type, which is the type computed in.
            config: The teacher's config.
            family: Its family.
        """
        self.state, self.config, self.family = state, config, family
        self.teacher = family.architecture(config)
        embedding = next(iter(family.global_tensors))
        self._embedding = state[embedding]
        self._embedding_name = embedding
        self.head = state.get(HEAD, self._embedding)
        self.dtype = self._embedding.dtype
        self._rotary: nn.Module | None = None

    @torch.no_grad()
    def hidden_states(
        self, spec: SubnetSpec, ids: torch.Tensor, watch: Callable[[Any], object] | None = None
    ) -> torch.Tensor:
        """The final, normalised hidden states of a sub-network.

        Args:
            spec: What is kept.
            ids: ``[batch, sequence]`` token ids.
            watch: Given the model before it runs, to put hooks on it; the model is not used again.

        Returns:
            ``[batch, sequence, hidden]`` in the teacher's type.
        """
        hidden = hidden_index(spec, self.teacher)
        base = self._empty_base(spec)
        self._bind_globals(base, hidden)
        layers = base.get_submodule(self.family.layers_path.split(".", 1)[1])
        for module, units in zip(layers, spec.layers, strict=True):
            self._bind_when_called(module, units, hidden)
        if watch is not None:
            watch(base)
        embedded = functional.embedding(ids, self._embedding)
        if hidden is not None:
            embedded = embedded.index_select(-1, hidden)
        return base(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def _empty_base(self, spec: SubnetSpec) -> Any:
        architecture = spec.architecture_in(self.teacher)
        sources = tuple(layer.source for layer in spec.layers)
        model = build_empty(heterogeneous_config(self.config, self.family, architecture, sources), self.family)
        base = model.base_model.eval()
        rotary = getattr(base, "rotary_emb", None)
        if rotary is not None:
            if self._rotary is None:
                self._rotary = type(rotary)(config=rotary.config)
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

    def logits_of(self, hidden: torch.Tensor, spec: SubnetSpec) -> Callable[[int, int], torch.Tensor]:
        """Logits of a range of positions, computed when asked for.

        Args:
            hidden: ``[tokens, hidden]`` final hidden states.
            spec: The sub-network they are of.

        Returns:
            A function of (start, stop) that gives fp32 logits ``[stop - start, vocabulary]``.
        """
        index = hidden_index(spec, self.teacher)

        def logits(start: int, stop: int) -> torch.Tensor:
            rows = hidden[start:stop]
            if index is not None:
                # Zeros in the dropped channels cost a few FLOPs; slicing the head would copy a fifth of the teacher.
                rows = rows.new_zeros(len(rows), self.teacher.hidden_size).index_copy_(1, index, rows)
            return functional.linear(rows, self.head).float()

        return logits

    @torch.no_grad()
    def token_losses(self, spec: SubnetSpec, ids: torch.Tensor) -> torch.Tensor:
        """The loss of every next token; logits are made for a few positions at a time.

        Args:
            spec: What is kept.
            ids: ``[batch, sequence]`` token ids.

        Returns:
            ``[batch, sequence - 1]`` fp32 negative log-likelihoods, in nats.
        """
        hidden = self.hidden_states(spec, ids)[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten()
        logits = self.logits_of(hidden, spec)
        losses = [
            functional.cross_entropy(logits(start, stop), targets[start:stop], reduction="none")
            for start, stop in chunks(len(targets))
        ]
        return torch.cat(losses).view(len(ids), -1)


def chunks(count: int, size: int = HEAD_CHUNK_TOKENS) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) ranges that cover ``count`` positions."""
    for start in range(0, count, size):
        yield start, min(start + size, count)
