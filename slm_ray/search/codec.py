"""From a choice to the sub-network it stands for, and back."""

from __future__ import annotations

import numpy as np

from slm_ray.records.subnet import LayerUnits, SubnetSpec
from slm_ray.search.axes import BoolArray, BoundAxis, IntArray
from slm_ray.search.sizing import Choice, Sizer


def spec_of(sizer: Sizer, choice: Choice) -> SubnetSpec:
    """The sub-network of a choice: layers that keep nothing are left out, and some attention is always kept."""
    axes, sizes = sizer.axes, sizer.measure(choice)
    heads, neurons = sizer.per_layer(choice, "heads"), sizer.per_layer(choice, "neurons")
    layers = []
    for source, shape in sizes.layer_shapes():
        best = axes["heads"].order[source, :1].tolist()
        kv_heads = best if source == sizes.rescued else axes["heads"].kept_units(source, heads[source])
        ranked = axes["queries"].order[source, kv_heads, : sizes.queries[source]]
        groups = tuple(tuple(sorted(group)) for group in ranked.tolist())
        kept = axes["neurons"].kept_units(source, neurons[source]) if shape.intermediate_size else []
        layers.append(LayerUnits(source, tuple(kv_heads), groups, tuple(kept)))
    return SubnetSpec(tuple(axes["hidden"].kept_units(0, choice.hidden[0])), tuple(layers))


def genes_of(sizer: Sizer, spec: SubnetSpec) -> IntArray:
    """The genes whose sub-network this is.

    What the sub-network does not say (the heads of layers it leaves out) is set to "all", so that a search that brings
    the layer back brings it back whole.

    Raises:
        ValueError: No genes of this space give it.
    """
    for rescued in (False, True):
        if rescued and sum(len(layer.kv_heads) for layer in spec.layers) != 1:
            break
        genes = _attempt(sizer, spec, rescued)
        if genes is not None:
            return genes
    raise ValueError("this sub-network keeps units that no genes of this space keep")


def _attempt(sizer: Sizer, spec: SubnetSpec, rescued: bool) -> IntArray | None:
    """Genes for a sub-network, its only head taken for a rescued one if asked; None where they give another."""
    try:
        genes = sizer.contract(_choice_of(sizer, spec, rescued))
    except (ValueError, IndexError):
        return None
    for axis in sizer.axes.values():
        own = genes[axis.start : axis.stop]
        if axis.prefix and len(own) and own.min() < axis.least:
            return None
    return genes if spec_of(sizer, sizer.expand(genes)) == spec else None


def _choice_of(sizer: Sizer, spec: SubnetSpec, rescued: bool) -> Choice:
    axes, count = sizer.axes, sizer.num_layers
    masks = {name: np.ones((count, axes[name].blocks), dtype=bool) for name in ("heads", "queries", "neurons")}
    layers = _layer_mask(axes["layers"], [layer.source for layer in spec.layers])
    hidden = axes["hidden"].mask_of(0, spec.hidden)[None, :]
    choice = Choice(hidden, layers[None, :], masks["heads"], masks["queries"], masks["neurons"])
    kept = sizer.kept_layers(choice)
    choice.heads[kept] = choice.neurons[kept] = False
    says_queries = []
    for layer in spec.layers:
        choice.neurons[layer.source] = axes["neurons"].mask_of(layer.source, layer.neurons)
        if not layer.kv_heads:
            continue
        says_queries.append(layer.source)
        choice.queries[layer.source] = np.cumsum(axes["queries"].sizes) <= len(layer.query_heads[0])
        if not rescued:
            choice.heads[layer.source] = axes["heads"].mask_of(layer.source, layer.kv_heads)
    speaking = {"heads": np.flatnonzero(kept), "queries": np.array(says_queries), "neurons": np.flatnonzero(kept)}
    for name, rows in speaking.items():
        if not axes[name].per_layer:
            setattr(choice, name, choice.mask(name)[rows[:1]])
    return choice


def _layer_mask(axis: BoundAxis, sources: list[int]) -> BoolArray:
    """The layers to keep ``[blocks]``: those named and, where more are needed, the last ones in order.

    The last, so that none of them outranks a layer whose attention was rescued.
    """
    if not axis.free:
        return np.ones(axis.blocks, dtype=bool)
    named = np.isin(axis.order[0], sources)
    mask: BoolArray = np.add.reduceat(named, np.concatenate([[0], np.cumsum(axis.sizes)[:-1]])) > 0
    if axis.prefix:
        return np.asarray(np.arange(axis.blocks) < max(int(np.flatnonzero(mask).max()) + 1, axis.least))
    missing = np.flatnonzero(~mask)[::-1]
    mask[missing[: max(axis.least - int(mask.sum()), 0)]] = True
    return mask
