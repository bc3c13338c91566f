"""Shapes of the entries of Tensors: how those that meet broadcast, and that what a state keeps stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradchain.core.index import Index

if TYPE_CHECKING:
    from gradchain.core.tensors import Tensors

Shapes = tuple[torch.Size, ...]
"""One shape per entry, in the order of an Index."""


def check_shapes(op: str, names: Sequence[str], columns: Sequence[Sequence[torch.Size]]) -> None:
    """ValueError for the first entry whose operands do not broadcast against each other."""
    for name, *shapes in zip(names, *columns, strict=True):
        broadcast(op, name, shapes)


def broadcast(op: str, name: str, shapes: Sequence[torch.Size]) -> torch.Size:
    """The shape that these broadcast to. ValueError where they do not."""
    rank, met = max(map(len, shapes)), []
    for d in range(-rank, 0):
        sizes = {shape[d] for shape in shapes if len(shape) >= -d} - {1}
        if len(sizes) > 1:
            listed = " and ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"Tensors: the operands of {op} must broadcast against each other, got the shapes {listed} for "
                f"{name!r}."
            )
        met.append(sizes.pop() if sizes else 1)
    return torch.Size(met)


def narrowed_shapes(index: Index, shapes: Shapes, part: Index, plain: Shapes) -> Shapes | None:
    """The shapes of some of the entries, whose weights have the `plain` ones; None where these are the same."""
    few = shapes if part is index else tuple(shapes[index.position[name]] for name in part.names)
    return None if few == plain else few


def met_shapes(op: str, index: Index, operands: Sequence[Any], plain: Shapes) -> Shapes | None:
    """The shapes that entries of these Tensors broadcast to; None where each is the plain one, that of its weight."""
    columns = []
    for tensors in operands:
        shapes = tensors._shapes()
        columns.append([shapes[tensors.index.position[name]] for name in index.names])
    rows = zip(index.names, *columns, strict=True)
    met = tuple(broadcast(op, name, shapes) for name, *shapes in rows)
    return None if met == plain else met


def overlaid_shapes(under: Any, over: Any, plain: Shapes) -> Shapes | None:
    """The shapes of entries of which some take the place of others."""
    if under.shapes is None and over.shapes is None:
        return None
    mine, theirs, position = under._shapes(), over._shapes(), over.index.position
    laid = tuple(theirs[position[n]] if n in position else mine[i] for i, n in enumerate(under.index.names))
    return None if laid == plain else laid


def check_kept_shapes(names: Sequence[str], shapes: Sequence[torch.Size], old: Tensors) -> None:
    """ValueError for the first entry that has another shape than what it takes the place of."""
    before = dict(zip(old.index.names, old._shapes(), strict=True))
    for name, shape in zip(names, shapes, strict=True):
        if shape != before[name]:
            raise ValueError(
                f"an entry must keep its shape, got {tuple(shape)} for {name!r}, which was {tuple(before[name])}"
            )
