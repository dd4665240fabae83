"""Which of a teacher's units a sub-network keeps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.records.architecture import Architecture, LayerShape, Structure


@dataclass(frozen=True)
class LayerUnits:
    """What is kept of one of the teacher's layers."""

    source: int  # The teacher's layer it comes from
    kv_heads: tuple[int, ...]  # The teacher's key-value heads that are kept, ascending. Empty: attention is skipped.
    # For each kept key-value head, its kept query heads (the teacher's indices), ascending; as many for one as for
    # another
    query_heads: tuple[tuple[int, ...], ...]
    # The teacher's MLP neurons, or a mixture's experts, that are kept, ascending. Empty: the MLP is skipped.
    neurons: tuple[int, ...]

    def shape_in(self, whole: LayerShape) -> LayerShape:
        """The sizes of this layer, cut out of a teacher's."""
        window = whole.sliding_window if self.kv_heads else 0
        return LayerShape(sum(map(len, self.query_heads)), len(self.kv_heads), len(self.neurons), window)

    @property
    def flat_query_heads(self) -> tuple[int, ...]:
        """All kept query heads, in the order of their key-value heads."""
        return tuple(head for group in self.query_heads for head in group)


@dataclass(frozen=True)
class SubnetSpec:
    """A sub-network: the residual channels it keeps, and what it keeps of which layers, in order."""

    hidden: tuple[int, ...]
    layers: tuple[LayerUnits, ...]
    vocabulary: tuple[int, ...] | None = None  # The token ids that are kept, ascending; None: all rows there are

    def architecture_in(self, teacher: Architecture) -> Architecture:
        """The sizes of this sub-network, after checking that the teacher has every unit it names.

        Raises:
            ValueError: A unit does not exist, is named twice or out of order, a query head is not of its key-value
                head, a layer keeps nothing, or no layer keeps attention.
        """
        _check_indices("hidden channels", self.hidden, teacher.hidden_size)
        if not any(layer.kv_heads for layer in self.layers):
            raise ValueError("at least one layer must keep attention")
        _check_indices("source layers", [layer.source for layer in self.layers], teacher.num_hidden_layers)
        for layer in self.layers:
            _check_layer(layer, teacher.layers[layer.source], teacher.structure)
        shapes = (layer.shape_in(teacher.layers[layer.source]) for layer in self.layers)
        structure = teacher.structure
        if self.vocabulary is not None:
            _check_indices("token ids", self.vocabulary, structure.vocab_size)
            structure = dataclasses.replace(structure, vocab_size=len(self.vocabulary))
        return Architecture(structure, len(self.hidden), tuple(shapes))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary with index lists written as ranges; :meth:`from_json` reads it back."""
        return {
            **({} if self.vocabulary is None else {"vocabulary": to_ranges(self.vocabulary)}),
            "hidden": to_ranges(self.hidden),
            "layers": [
                {
                    "source": layer.source,
                    "kv_heads": to_ranges(layer.kv_heads),
                    "query_heads": [to_ranges(group) for group in layer.query_heads],
                    "neurons": to_ranges(layer.neurons),
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SubnetSpec:
        """Read what :meth:`to_json` wrote."""
        layers = tuple(
            LayerUnits(
                int(layer["source"]),
                from_ranges(layer["kv_heads"]),
                tuple(from_ranges(group) for group in layer["query_heads"]),
                from_ranges(layer["neurons"]),
            )
            for layer in value["layers"]
        )
        kept = value.get("vocabulary")
        return cls(from_ranges(value["hidden"]), layers, None if kept is None else from_ranges(kept))

    @property
    def digest(self) -> str:
        """Equal sub-networks of one teacher have equal digests."""
        return digest_json(self.to_json())


def _check_indices(what: str, indices: Sequence[int], count: int) -> None:
    if not indices:
        raise ValueError(f"{what}: at least one must be kept")
    if any(b <= a for a, b in itertools.pairwise(indices)) or indices[0] < 0 or indices[-1] >= count:
        raise ValueError(f"{what}: indices must ascend within 0..{count - 1}, got {to_ranges(indices)}")


def _check_layer(layer: LayerUnits, shape: LayerShape, structure: Structure) -> None:
    name = f"layer {layer.source}"
    if not layer.kv_heads and not layer.neurons:
        raise ValueError(f"{name} keeps nothing: leave it out")
    if len(layer.query_heads) != len(layer.kv_heads) or len({len(group) for group in layer.query_heads}) > 1:
        raise ValueError(f"{name}: every kept key-value head needs the same number of query heads")
    if layer.kv_heads:
        _check_indices(f"{name}, key-value heads", layer.kv_heads, shape.num_key_value_heads)
        per_group = shape.num_attention_heads // shape.num_key_value_heads
        for kv_head, group in zip(layer.kv_heads, layer.query_heads, strict=True):
            _check_indices(f"{name}, query heads", group, shape.num_attention_heads)
            if any(head // per_group != kv_head for head in group):
                raise ValueError(f"{name}: query heads {group} do not all belong to key-value head {kv_head}")
    if layer.neurons:
        _check_indices(f"{name}, {structure.mlp_unit}", layer.neurons, shape.intermediate_size)
        if len(layer.neurons) < structure.experts_per_token:
            raise ValueError(
                f"{name}: a token goes through {structure.experts_per_token} experts, got {len(layer.neurons)}"
            )


def full_subnet(teacher: Architecture) -> SubnetSpec:
    """The sub-network that keeps everything."""
    layers = []
    for index, shape in enumerate(teacher.layers):
        kv_heads = tuple(range(shape.num_key_value_heads))
        per_group = shape.num_attention_heads // shape.num_key_value_heads if kv_heads else 0
        groups = tuple(tuple(range(kv * per_group, (kv + 1) * per_group)) for kv in kv_heads)
        layers.append(LayerUnits(index, kv_heads, groups, tuple(range(shape.intermediate_size))))
    return SubnetSpec(tuple(range(teacher.hidden_size)), tuple(layers))


def to_ranges(indices: Sequence[int]) -> str:
    """Write ascending indices as ranges: ``(0, 1, 2, 7)`` is ``"0-2,7"``."""
    parts: list[str] = []
    start = previous = None
    for index in [*indices, None]:
        if start is None:
            start = index
        elif index is None or previous is None or index != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = index
        previous = index
    return ",".join(parts)


def from_ranges(text: str) -> tuple[int, ...]:
    """Read what :func:`to_ranges` wrote."""
    indices: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        indices.extend(range(int(first), int(last or first) + 1))
    return tuple(indices)
