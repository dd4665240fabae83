"""What the first layers of sub-networks made of a batch, kept for others that begin with the same layers.

A search varies a few layers at a time, so that many a candidate begins as one before it did. What its first layers
give is then the very same, and need not be computed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import nn

from slm_ray.records.subnet import LayerUnits, SubnetSpec

PARTS = 6  # a model's layers are kept after at most so many parts of it, for each place costs as much memory


def prefix_keys(spec: SubnetSpec) -> list[bytes]:
    """A digest for every number of first layers, 1 to all: equal where those layers, and the channels, are the same."""
    digest = blake2b(np.asarray(spec.hidden, dtype=np.int32).tobytes(), digest_size=16)
    keys = []
    for layer in spec.layers:
        digest.update(_layer_bytes(layer))
        keys.append(digest.digest())
    return keys


def _layer_bytes(layer: LayerUnits) -> bytes:
    """The units of a layer, their numbers before them, so that no two layers are written alike."""
    parts = (layer.kv_heads, layer.flat_query_heads, layer.neurons)
    numbers = [layer.source, *map(len, parts)]
    return np.asarray([*numbers, *(unit for part in parts for unit in part)], dtype=np.int32).tobytes()


class PrefixCache:
    """Outputs of layers by (first layers, batch), those used longest ago dropped first.

    Attributes:
        limit: Bytes that may be kept.
        held: Bytes that are kept.
    """

    def __init__(self, limit: int, num_layers: int) -> None:
        """An empty cache.

        Args:
            limit: Bytes that may be kept.
            num_layers: Layers of the teacher, in :data:`PARTS` of which outputs are kept.
        """
        self.limit, self.held = limit, 0
        self._every = max(1, -(-num_layers // PARTS))
        self._outputs: OrderedDict[tuple[bytes, Hashable], Any] = OrderedDict()

    def deepest(self, keys: list[bytes], batch: Hashable) -> tuple[int, Any]:
        """The most first layers whose output is kept, and the output; 0 layers and None where nothing is.

        Args:
            keys: Of a sub-network, as :func:`prefix_keys` gives them.
            batch: Which batch it is to run on.
        """
        for depth in range(len(keys) - len(keys) % self._every, 0, -self._every):
            output = self._outputs.get((keys[depth - 1], batch))
            if output is not None:
                self._outputs.move_to_end((keys[depth - 1], batch))
                return depth, output
        return 0, None

    def watch(self, layers: list[nn.Module], keys: list[bytes], batch: Hashable) -> None:
        """Keep what layers give when they run.

        Args:
            layers: A sub-network's, in order; they run once.
            keys: Of the sub-network.
            batch: Which batch they run on.
        """
        for depth in range(self._every, len(keys), self._every):
            if (keys[depth - 1], batch) not in self._outputs:
                layers[depth - 1].register_forward_hook(self._keeper((keys[depth - 1], batch)))

    def _keeper(self, key: tuple[bytes, Hashable]) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._outputs[key] = output
            self.held += _num_bytes(output)
            while self.held > self.limit:
                _, dropped = self._outputs.popitem(last=False)
                self.held -= _num_bytes(dropped)

        return keep


def _num_bytes(output: Any) -> int:
    """Bytes of a layer's output: a tensor, or a tuple that begins with one."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))


def replay(layers: list[nn.Module], output: Any) -> None:
    """Make layers give an output that is known already, whatever goes in; it was taken behind the last of them."""
    for layer in layers:
        layer.forward = lambda *_args, **_kwargs: output
