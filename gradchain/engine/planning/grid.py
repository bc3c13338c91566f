"""Grids: how columns of several shapes lie over the elements of one row, where some are one number per row or column.

An entry's dimensions are taken in the order they lie in memory. Those that all columns go along together, or stay
behind on together, are one axis; so most grids have two. A column that does not go along an axis is broadcast over it,
and one that a reduction is written to is reduced along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradchain.engine.operations import Unrecorded


@dataclass(frozen=True)
class Grid:
    """The axes of a program's rows, the outermost first.

    Attributes:
        spans: for each column, by axis: whether it goes along it.
        extents: for each row, the length of each axis.
    """

    spans: tuple[tuple[bool, ...], ...]
    extents: tuple[tuple[int, ...], ...]

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.spans[0])

    def sizes(self, column: int) -> list[int]:
        """How many elements of a column each row has."""
        spans = self.spans[column]
        return [math.prod(n for n, along in zip(row, spans, strict=True) if along) for row in self.extents]


def axes_of(
    shape: torch.Size, order: Sequence[int], tensors: Sequence[Tensor]
) -> tuple[tuple[tuple[bool, ...], ...], tuple[int, ...]]:
    """Which axes the columns of one row go along, and how long these are.

    Args:
        shape: what the tensors broadcast to.
        order: its dimensions as they lie in memory, the outermost first.
        tensors: one per column.

    Raises: Unrecorded for a tensor that lies in another order.
    """
    padded = [(1,) * (len(shape) - t.ndim) + tuple(t.shape) for t in tensors]
    axes: list[tuple[tuple[bool, ...], int]] = []
    for d in order:
        if shape[d] == 1:
            continue
        along = tuple(p[d] != 1 for p in padded)
        if axes and axes[-1][0] == along:
            axes[-1] = (along, axes[-1][1] * shape[d])
        else:
            axes.append((along, shape[d]))
    axes = axes or [((True,) * len(tensors), 1)]
    for tensor, mine in zip(tensors, padded, strict=True):
        _check_lies(tensor, mine, order)
    spans = tuple(tuple(along[i] for along, _ in axes) for i in range(len(tensors)))
    return spans, tuple(extent for _, extent in axes)


def _check_lies(tensor: Tensor, padded: tuple[int, ...], order: Sequence[int]) -> None:
    strides = (0,) * (len(padded) - tensor.ndim) + tensor.stride()
    expected = 1
    for d in reversed(order):
        if padded[d] != 1 and tensor.numel():
            if strides[d] != expected:
                raise Unrecorded(f"a tensor of shape {tuple(tensor.shape)} lies in another order than its weight")
            expected *= padded[d]


def grid_of(rows: Sequence[tuple[tuple[tuple[bool, ...], ...], tuple[int, ...]]], always: bool) -> Grid | None:
    """The grid of rows whose columns go along the same axes; None, unless `always`, where all go along the only one."""
    spans = rows[0][0]
    if not always and all(len(along) == 1 and along[0] for along in spans):
        return None
    return Grid(spans, tuple(extents for _, extents in rows))
