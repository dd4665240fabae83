"""Streaming ridge regression towards given weights.

With inputs X ``[rows, in]``, targets Y ``[rows, out]`` and weights W0 ``[out, in]``, the update is the exact minimum of
``|Y - X W^T|^2 + ridge * mean(diag(X^T X)) * |W - W0|^2``, a ridge regression of W0's residuals. Only ``X^T X`` and
``X^T (Y - X W0^T)`` are kept, in fp64, so memory does not grow with the number of rows.

Rows computed in bf16 may be multiplied in bf16 too (:func:`rough_products`), with sums in fp32: the rounding is
noise of 2^-9 of a number, negligible beside the ridge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

_BLOCKS = 4  # of columns: 5/8 of a square is then computed; more are smaller products, and hardly faster


def square_flops(width: int) -> int:
    """FLOPs that one row of inputs costs in ``X^T X``, of which only blocks on and above the diagonal are computed."""
    return 2 * sum((rows.stop - rows.start) * (rest.stop - rest.start) for rows, rest in _blocks(width))


def _blocks(width: int) -> list[tuple[slice, slice]]:
    """Blocks on and above the diagonal of a square matrix: its rows, and their columns."""
    step = -(-width // _BLOCKS)
    return [(slice(start, min(start + step, width)), slice(start, width)) for start in range(0, width, step)]


@contextlib.contextmanager
def rough_products(is_bf16: bool) -> Iterator[None]:
    """A context in which fp32 matrices may be multiplied in bf16, with fp32 results; it holds for all threads."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if is_bf16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Update:
    """An update of a projection, and the squared error before and after it.

    Attributes:
        weight: ``[out, in]`` fp64.
        bias: ``[out]`` fp64; None where the projection has none.
        before: Summed squared error of the old weights.
        after: Of the new ones; never more, for the old weights are the ridge's own starting point.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    before: float
    after: float


class Sums:
    """Sums over rows of inputs and residuals."""

    def __init__(
        self, num_inputs: int, num_outputs: int, *, bias: bool, device: torch.device | str = "cpu"
    ) -> None:
        """Start with empty sums.

        Args:
            num_inputs: Width of the inputs.
            num_outputs: Width of the targets.
            bias: Fit a bias too: a column of ones that the ridge does not penalise.
            device: Where rows come from.
        """
        self.bias = bias
        width = num_inputs + bias
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)  # its upper half, once rows came in
        self.cross = torch.zeros(width, num_outputs, dtype=torch.float64, device=device)
        self.squares = 0.0
        self._blocks = _blocks(width)

    def add(self, inputs: torch.Tensor, left: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add rows.

        Args:
            inputs: ``[rows, in]``.
            left: ``[rows, out]``, the residuals of the old weights.
            weights: ``[rows]``, the weight of each row; 1 by default.
        """
        if self.bias:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
        weighted = inputs if weights is None else inputs * weights[:, None]
        for rows, rest in self._blocks:  # the products are symmetric: what lies below these is not computed
            self.gram[rows, rest] += weighted[:, rows].T @ inputs[:, rest]
        self.cross += weighted.T @ left
        squares = torch.linalg.vector_norm(left, dim=1).double().square()
        self.squares += float((squares if weights is None else squares * weights).sum())

    def solve(self, ridge: float) -> Update:
        """The update.

        Args:
            ridge: Ridge strength as a share of the inputs' mean square; above 0.
        """
        num_inputs = len(self.gram) - self.bias
        scale = float(self.gram.diagonal()[:num_inputs].mean())
        if not scale > 0.0:  # nothing comes in, so nothing can be explained with it
            zeros = torch.zeros_like(self.cross)
            return Update(*self._split(zeros), self.squares, self.squares)
        held = torch.full((len(self.gram),), ridge * scale, dtype=torch.float64, device=self.gram.device)
        if self.bias:  # only so much that the system stays regular where an input is constant
            held[-1] = 1e-9 * float(self.gram[-1, -1])
        factor = torch.linalg.cholesky(self.gram + torch.diag(held), upper=True)
        change = torch.cholesky_solve(self.cross, factor, upper=True)
        # c^T X^T X c is c^T (X^T Y - ridge c), for c solves the system.
        explained = float((change * self.cross).sum()) + float(held @ change.square().sum(1))
        return Update(*self._split(change), self.squares, max(self.squares - explained, 0.0))

    def _split(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (change[:-1].T, change[-1]) if self.bias else (change.T, None)
