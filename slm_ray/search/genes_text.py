"""Genes as a line of text, for records: ``layers=x3fffffff;heads=3,2,3;…``."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.search.axes import BoundAxis, IntArray

_COUNTS = re.compile(r"[0-9]+(,[0-9]+)*", re.ASCII)
_HEX = re.compile(r"x[0-9a-f]+", re.ASCII)


def genes_to_text(axes: Iterable[BoundAxis], genes: IntArray) -> str:
    """Write genes: per axis, counts as decimal numbers, subsets as hexadecimal digits of four genes each."""
    parts = []
    for axis in axes:
        own = genes[axis.start : axis.stop]
        if not len(own):
            continue
        if axis.prefix:
            text = ",".join(map(str, own.tolist()))
        else:
            text = "x" + np.packbits(own.astype(bool)).tobytes().hex()[: -(-len(own) // 4)]
        parts.append(f"{axis.name}={text}")
    return ";".join(parts)


def text_to_genes(axes: Iterable[BoundAxis], text: str) -> IntArray:
    """Read what :func:`genes_to_text` wrote.

    Raises:
        UserError: The text is of another space, or of another teacher.
    """
    wanted = [axis for axis in axes if axis.genes_per_row]
    parts = [part.partition("=") for part in text.split(";")]
    names = [name for name, _, _ in parts]
    if names != [axis.name for axis in wanted]:
        rule = f"must name the axes {', '.join(axis.name for axis in wanted)} in this order, got {', '.join(names)}"
        raise UserError(f"genes {rule}: they were written for another search space")
    return np.concatenate([_read(axis, value) for axis, (_, _, value) in zip(wanted, parts, strict=True)])


def _read(axis: BoundAxis, text: str) -> IntArray:
    count = axis.stop - axis.start
    if axis.prefix:
        values = np.array([int(v) for v in text.split(",")] if _COUNTS.fullmatch(text) else [], dtype=np.int64)
        if len(values) == count and axis.least <= values.min() and values.max() <= axis.blocks:
            return values
        rule = f"{count} numbers within {axis.least}..{axis.blocks}"
    else:
        digits = -(-count // 4)
        if _HEX.fullmatch(text) and len(text) == 1 + digits:
            padded = text[1:] + "0" * (digits % 2)
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(padded), dtype=np.uint8)).astype(np.int64)
            if not bits[count:].any():
                return bits[:count]
        rule = f"x and {digits} hexadecimal digits for {count} choices"
    raise UserError(
        f"genes of {axis.name} must be {rule}, got '{text}': they were written for another teacher or space"
    )
