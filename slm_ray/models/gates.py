"""Gradients of unit gates: how the loss would change if a head, a neuron or a channel were absent.

Every query head and every neuron (of a mixture, every expert) of the teacher has a gate that multiplies its output: 1
for a kept unit, 0 for a dropped one. The gradient is taken in both cases, so that a dropped unit can show that it is
missed. First-order pruning by gate gradients is Molchanov et al., arXiv 1906.10771; gradients of dropped units, so
that they may return, are the idea of RigL (arXiv 1911.11134) and of movement pruning (arXiv 2005.07683).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from slm_ray.models.attention import BLOCKED
from slm_ray.models.extraction import build_with, layers_of
from slm_ray.models.families import HEAD, Family
from slm_ray.models.lm_head import capped, spans
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import SubnetSpec

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
Sink = Callable[[torch.Tensor], None]
# Tokens whose probabilities exist at one time: 128 x 49,152 bf16 values are 12 MiB.
_HEAD_TOKENS = 128
# Tokens over which a gate's gradient is summed: a sequence gives several samples of it, and squares are less noisy.
SEGMENT_TOKENS = 64


@dataclass(frozen=True)
class Masks:
    """Which units are present.

    Attributes:
        query_heads: ``[layers, heads]``.
        neurons: ``[layers, intermediate_size]``.
    """

    query_heads: BoolArray
    neurons: BoolArray

    @classmethod
    def of(cls, spec: SubnetSpec, teacher: Architecture) -> Masks:
        """The units a sub-network keeps (residual channels aside)."""
        shape = teacher.layers[0]
        heads = np.zeros((teacher.num_hidden_layers, shape.num_attention_heads), dtype=bool)
        neurons = np.zeros((teacher.num_hidden_layers, shape.intermediate_size), dtype=bool)
        for layer in spec.layers:
            heads[layer.source, list(layer.flat_query_heads)] = True
            neurons[layer.source, list(layer.neurons)] = True
        return cls(heads, neurons)


@dataclass(frozen=True)
class GateGradients:
    """Gradients of the summed next-token loss (nats) with respect to each gate, segment by segment.

    A gate has a value of its own in each segment of a sequence; the gradients of a sequence's segments add up to those
    of the whole sequence.

    Attributes:
        query_heads: ``[segments, layers, heads]``.
        neurons: ``[segments, layers, intermediate_size]``.
        hidden: ``[segments, hidden_size]``, one gate per residual channel over all that is written to it.
        loss: Summed loss over all predicted positions.
        tokens: Predicted positions.
    """

    query_heads: FloatArray
    neurons: FloatArray
    hidden: FloatArray
    loss: float
    tokens: int

    @staticmethod
    def join(parts: list[GateGradients]) -> GateGradients:
        """The gradients of consecutive batches as one."""
        return GateGradients(
            np.concatenate([part.query_heads for part in parts]),
            np.concatenate([part.neurons for part in parts]),
            np.concatenate([part.hidden for part in parts]),
            sum(part.loss for part in parts),
            sum(part.tokens for part in parts),
        )


def _segment_sums(values: torch.Tensor) -> torch.Tensor:
    """Sum ``[batch, sequence, width]`` over each segment of a sequence, in fp32: ``[batch x segments, width]``."""
    whole = functional.pad(values, (0, 0, 0, -values.shape[1] % SEGMENT_TOKENS))
    return whole.unflatten(1, (-1, SEGMENT_TOKENS)).sum(2, dtype=torch.float32).flatten(0, 1)


class _Gate(torch.autograd.Function):
    """Multiply by a gate; in the backward pass, report value times gradient, also where the gate is 0."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gate: torch.Tensor | None, sink: Sink) -> torch.Tensor:
        ctx.save_for_backward(value)
        ctx.gate, ctx.sink = gate, sink
        return value.view_as(value) if gate is None else value * gate

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (value,) = ctx.saved_tensors
        ctx.sink(_segment_sums(value * gradient))
        return gradient if ctx.gate is None else gradient * ctx.gate, None, None


class GatedTeacher:
    """A teacher whose heads, neurons and residual channels have gates."""

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, family: Family) -> None:
        """Wrap a teacher; its weights are read in place and never changed.

        Args:
            state: The teacher's state dict, all of one floating type, which is the type computed in, and on one
                device, which is computed on.
            config: The teacher's config.
            family: Its family.
        """
        self.family, self.architecture = family, family.architecture(config)
        self._embedding = state[family.embedding]
        self._scales, self._cap = (family.embedding_scale(config), family.logit_scale(config)), family.logit_cap(config)
        self.device = self._embedding.device
        self._head = state.get(HEAD, self._embedding)
        own = copy.deepcopy(config)  # others compute attention as theirs says
        self._base = build_with(state, own, family).base_model.requires_grad_(False)
        capped = getattr(config, "attn_logit_softcapping", None) is not None  # scores that only the usual kernel caps
        if self.device.type == "cpu" and not capped:
            self._base.set_attn_implementation(BLOCKED)
        self._masks: Masks | None = None
        self._found: dict[tuple[str, int], torch.Tensor] = {}
        self._hidden: torch.Tensor | None = None
        self._batch = 1
        self._install()

    def _install(self) -> None:
        for number, layer in enumerate(layers_of(self._base, self.family)):
            for kind, names in (("heads", self.family.attention), ("neurons", self.family.mlp)):
                if names.experts:
                    layer.get_submodule(names.experts).register_forward_pre_hook(self._gate_experts(number))
                else:
                    layer.get_submodule(names.output).register_forward_pre_hook(self._gate_input(kind, number))
                layer.get_submodule(names.written).register_forward_hook(self._watch_write)

    def _gate_input(self, kind: str, number: int) -> Callable[[nn.Module, Any], Any]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            def keep(sums: torch.Tensor) -> None:
                self._found[kind, number] = sums

            return (_Gate.apply(inputs[0], self._gate_values(kind, number, inputs[0].dtype), keep),)

        return hook

    def _gate_experts(self, number: int) -> Callable[[nn.Module, Any], Any]:
        """Multiply the weights that the router gives to experts; whom it chooses stays the same."""

        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            def keep(sums: torch.Tensor) -> None:
                self._found["neurons", number] = sums

            tokens, chosen, weights = inputs
            count = self.architecture.layers[number].intermediate_size
            whole = weights.new_zeros(len(weights), count).scatter(1, chosen, weights).unflatten(0, (self._batch, -1))
            gated = _Gate.apply(whole, self._gate_values("neurons", number, weights.dtype), keep)
            return tokens, chosen, gated.flatten(0, 1).gather(1, chosen)

        return hook

    def _gate_values(self, kind: str, number: int, dtype: torch.dtype) -> torch.Tensor | None:
        if self._masks is None:
            return None
        if kind == "neurons":
            return torch.from_numpy(self._masks.neurons[number]).to(self.device, dtype)
        heads = torch.from_numpy(self._masks.query_heads[number]).to(self.device, dtype)
        return heads.repeat_interleave(self.architecture.structure.head_dim)

    def _watch_write(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return _Gate.apply(output, None, self._add_hidden)

    def _add_hidden(self, sums: torch.Tensor) -> None:
        self._hidden = sums if self._hidden is None else self._hidden + sums

    def gradients(self, ids: torch.Tensor, masks: Masks | None = None) -> GateGradients:
        """Gate gradients of the next-token loss, segment by segment.

        Args:
            ids: ``[batch, sequence]`` token ids.
            masks: Which units are present; all of them by default.
        """
        self._masks, self._found, self._hidden, self._batch = masks, {}, None, len(ids)
        ids = ids.to(self.device)
        rows = functional.embedding(ids, self._embedding)
        embedded = (rows * rows.new_tensor(self._scales[0])).requires_grad_(True)
        written = _Gate.apply(embedded, None, self._add_hidden)
        output = self._base(inputs_embeds=written, use_cache=False).last_hidden_state
        gradient, loss = self._loss_gradient(output.detach(), ids)
        output.backward(gradient)
        layers, head_dim = range(self.architecture.num_hidden_layers), self.architecture.structure.head_dim
        heads = torch.stack([self._found["heads", number] for number in layers], 1)
        neurons = torch.stack([self._found["neurons", number] for number in layers], 1)
        assert self._hidden is not None
        return GateGradients(
            heads.unflatten(-1, (-1, head_dim)).sum(-1).cpu().numpy(),
            neurons.cpu().numpy(),
            self._hidden.cpu().numpy(),
            loss,
            ids[:, 1:].numel(),
        )

    @torch.no_grad()
    def _loss_gradient(self, output: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Gradient of the summed loss with respect to the final hidden states, in closed form, few positions at a time.

        Returns:
            ``[batch, sequence, hidden]`` and the loss in nats.
        """
        scale = self._scales[1]
        hidden, targets = output[:, :-1].flatten(0, 1) * scale, ids[:, 1:].flatten()
        gradient, loss = torch.empty_like(hidden), 0.0
        for group in spans(len(targets), _HEAD_TOKENS):
            wanted = targets[group, None]
            logits = capped(functional.linear(hidden[group], self._head), self._cap)
            probabilities = logits.softmax(-1)
            loss -= float(probabilities.gather(1, wanted).float().clamp_min(1e-30).log().sum())
            if self._cap is None:
                gradient[group] = scale * (probabilities @ self._head - self._head[wanted[:, 0]])
                continue
            slopes = 1 - (logits / self._cap).square()
            own = slopes.gather(1, wanted) * self._head[wanted[:, 0]]
            gradient[group] = scale * ((slopes * probabilities) @ self._head - own)
        padded = output.new_zeros(output.shape)
        padded[:, :-1] = gradient.view(len(ids), -1, hidden.shape[-1])
        return padded, loss
