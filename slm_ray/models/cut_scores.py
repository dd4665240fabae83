"""What one cut alone costs: KL from the teacher to the teacher with a single sub-layer, or layer, cut down.

Additive scores of independent choices with an integer program over them are Puzzle's (arXiv 2411.19146), there for
replaced blocks. A cut changes nothing before it, so only the layers behind it are run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slm_ray.models.extraction import build_with
from slm_ray.models.families import HEAD, Family
from slm_ray.models.lm_head import kl_divergences
from slm_ray.models.sub_layers import ATTENTION, MLP, SubLayer, TakenApart

POSITION_STEP = 4  # KL is taken at every fourth position: the output head would cost as much as the layers do


class CutTeacher:
    """A teacher of which one sub-layer at a time is cut."""

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, family: Family, ids: torch.Tensor) -> None:
        """Run the whole teacher and keep its stream before every layer.

        Args:
            state: The teacher's state dict, in the type to compute in.
            config: Its config.
            family: Its family.
            ids: ``[sequences, length]`` calibration tokens.
        """
        self.apart = TakenApart(build_with(state, config, family), family)
        self.head = state.get(HEAD, state[family.embedding])
        self.num_layers = len(self.apart.layers)
        with torch.no_grad():
            self._before = [self.apart.begin(ids)]
            for layer in range(self.num_layers):
                self._before.append(self._layer(layer, self._before[-1]))
            self._wanted = self._final(self._before[-1])

    def _final(self, stream: torch.Tensor) -> torch.Tensor:
        positions = stream[:, POSITION_STEP - 1 :: POSITION_STEP]
        return self.apart.final_norm()(positions).flatten(0, 1)

    def _sub(self, layer: int, kind: int) -> SubLayer:
        sub = self.apart.sub_layer(layer, kind)
        assert sub is not None
        return sub

    def _layer(self, layer: int, stream: torch.Tensor, masks: Mapping[int, torch.Tensor | None] | None = None) -> Any:
        """A layer's output; ``masks`` says by kind what its writer is given (None: the sub-layer is skipped)."""
        entry, masks = stream, masks or {}
        for kind in (ATTENTION, MLP):
            if kind in masks and masks[kind] is None:
                continue
            sub = self._sub(layer, kind)
            read = entry if self.apart.is_parallel else stream
            inner = sub.inner(sub.norm(read), self.apart.call(kind, len(stream)))
            mask = masks.get(kind)
            stream = stream + sub.writer(inner if mask is None else inner * mask)
        return stream

    @torch.no_grad()
    def divergence(self, layer: int, masks: Mapping[int, torch.Tensor | None]) -> float:
        """Mean KL(teacher || cut teacher), in nats, of a cut in one layer.

        Args:
            layer: The layer.
            masks: By kind, ``[in]`` of ones and zeros on what the writer is given; None skips the sub-layer.
        """
        stream = self._layer(layer, self._before[layer], masks)
        for behind in range(layer + 1, self.num_layers):
            stream = self._layer(behind, stream)
        return float(kl_divergences(self._wanted, self._final(stream), self.head).double().mean())


def unit_mask(units: Sequence[int], width: int, size: int) -> torch.Tensor | None:
    """``[size]`` ones where a kept unit's values are, each ``width`` wide; None where no unit is kept."""
    if not len(units):
        return None
    mask = torch.zeros(size // width, width)
    mask[list(units)] = 1
    return mask.flatten()
