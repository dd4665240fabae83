"""The prices of an integer program, measured on the teacher once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.models.cut_scores import POSITION_STEP, CutTeacher, unit_mask
from slm_ray.models.reconstruct_layers import ATTENTION, MLP
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.search.axes import BoundAxis, FloatArray
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.milp import CutPrices, check_space
from slm_ray.search.space import SearchSpace

PRICED_TOKENS = 1024
_LEVELS = 4  # numbers of blocks that are measured, of heads and of neurons; those between are interpolated
_VERSION = 1


def levels_of(blocks: int) -> list[int]:
    """The numbers of kept blocks that are measured: 0, and others evenly up to all but one block."""
    return sorted({blocks * number // _LEVELS for number in range(_LEVELS)})


def interpolate(levels: list[int], values: list[float], blocks: int) -> FloatArray:
    """Prices of ``0 .. blocks`` kept blocks; rising as fewer are kept, and 0 where all are.

    Args:
        levels: Numbers of blocks measured, ascending from 0.
        values: What they measured.
        blocks: All blocks.
    """
    falling = np.maximum.accumulate(np.array([*values, 0.0])[::-1])[::-1]
    curve = PchipInterpolator([*levels, blocks], falling) if blocks > 1 else lambda at: np.interp(at, [0, 1], falling)
    prices = np.asarray(curve(np.arange(blocks + 1)), dtype=np.float64)
    prices[-1] = 0.0
    return prices


def num_cuts(space: SearchSpace, teacher: Architecture) -> int:
    """How many cuts are measured: of the heads and of the neurons of every layer, and the whole layer."""
    shape, per_layer = teacher.layers[0], 1
    for name, units in (("heads", shape.num_key_value_heads), ("neurons", shape.intermediate_size)):
        per_layer += len(levels_of(-(-units // space.axes[name].step))) if name in space.axes else 0
    return teacher.num_hidden_layers * per_layer


def priced_tokens(sequence_length: int) -> int:
    """Tokens that every cut is measured on."""
    return max(1, PRICED_TOKENS // sequence_length) * sequence_length


def price_flops(space: SearchSpace, teacher: Architecture, sequence_length: int) -> float:
    """FLOPs of measuring the prices: the layers behind every cut, and the output head at some positions."""
    count, head = teacher.num_hidden_layers, 2 * teacher.structure.vocab_size * teacher.hidden_size
    body = flops_per_token(teacher, sequence_length) - head
    cuts = num_cuts(space, teacher)
    passes = 1 + cuts * (count + 1) / (
        2 * count
    )  # the mean share of the layers that lie behind a cut, its own included
    return priced_tokens(sequence_length) * (body * passes + 2 * cuts * head / POSITION_STEP)


def price_cuts(inputs: SearchInputs, genome: Genome, on_cut: Callable[[int], None]) -> tuple[CutPrices, bool]:
    """Measure every cut of a genome's orders on train text, or read what was measured before.

    Args:
        inputs: What the search started from.
        genome: Says in which order units are dropped.
        on_cut: Told how many cuts are measured.

    Returns:
        The prices, and whether they came from the cache.

    Raises:
        UserError: The space has choices that the integer program has not.
    """
    check_space(genome)
    axes = genome.bound_axes()
    length = inputs.train.sequence_length
    ids = torch.from_numpy(inputs.train.ids[: priced_tokens(length) // length].astype(np.int64))
    key = {
        "version": _VERSION, "teacher": inputs.teacher.digest, "tokens": inputs.train.digest, "sequences": len(ids),
        "orders": [axes[name].order.tolist() for name in ("heads", "neurons")],
        "sizes": [axes[name].sizes.tolist() for name in ("heads", "neurons")],
    }  # fmt: skip
    path = cache_folder() / "cuts" / f"{digest_json(key)}.json"
    if (found := _read(path, genome)) is not None:
        return found, True
    prices = _measure(inputs, genome, ids, on_cut)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {name: getattr(prices, name).tolist() for name in ("heads", "neurons", "layers")})
    return prices, False


def _read(path: Any, genome: Genome) -> CutPrices | None:
    """Prices from the cache; None where there are none, or damaged ones, which are measured again."""
    try:
        saved = read_json(path) if path.is_file() else None
        prices = None if saved is None else CutPrices(*(np.array(saved[key]) for key in ("heads", "neurons", "layers")))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    count = genome.teacher.num_hidden_layers
    return prices if prices is not None and prices.layers.shape == (count,) else None


def _measure(inputs: SearchInputs, genome: Genome, ids: torch.Tensor, on_cut: Callable[[int], None]) -> CutPrices:
    axes, teacher = genome.bound_axes(), inputs.teacher
    cut = CutTeacher(teacher.state_as(torch.float32), teacher.config(), teacher.family(), ids)
    shape, head_dim = genome.teacher.layers[0], genome.teacher.structure.head_dim
    group = shape.num_attention_heads // shape.num_key_value_heads
    sizes = {
        ATTENTION: (group * head_dim, shape.num_attention_heads * head_dim), MLP: (1, shape.intermediate_size),
    }  # fmt: skip
    done, tables, layers = 0, {ATTENTION: [], MLP: []}, []  # type: ignore[var-annotated]
    for layer in range(genome.teacher.num_hidden_layers):
        for kind, axis in ((ATTENTION, axes["heads"]), (MLP, axes["neurons"])):
            levels, values = levels_of(axis.blocks), []
            for level in levels:
                mask = unit_mask(_best(axis, layer, level), *sizes[kind])
                values.append(cut.divergence(layer, {kind: mask}))
                done += 1
                on_cut(done)
            tables[kind].append(interpolate(levels, values, axis.blocks))
        layers.append(cut.divergence(layer, {ATTENTION: None, MLP: None}))
        done += 1
        on_cut(done)
    return CutPrices(np.array(tables[ATTENTION]), np.array(tables[MLP]), np.array(layers))


def _best(axis: BoundAxis, layer: int, level: int) -> list[int]:
    return axis.order[layer][: int(axis.sizes[:level].sum())].tolist()
