"""Each reduction along dimensions, once: of tensors, in C and in Triton. It keeps the dimensions, with size 1.

What it gives meets what it was made of again, in arithmetic: a row's mean with the row. So dimensions stay, and Tensors
of such shapes broadcast against those of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gradchain.core.index import Index

Dims: TypeAlias = "int | tuple[int, ...] | Callable[[int], tuple[int, ...]]"
"""One dimension of an entry, or several; a negative one counts from the end. Or a function that says which they are of
how many an entry has: it may say none, and then each element is on its own."""


@dataclass(frozen=True)
class Along:
    """What makes one number of the elements along some dimensions, accumulated in float64 and rounded once.

    Attributes:
        truth: of a tensor in float64 and its dimensions, which stay.
        c: C of what one element `v` gives, a double.
        meet: C of two partial results, "{0}" and "{1}".
        start: C of the result over nothing.
        finish: C of the number, of the result "{0}" and how many elements "{1}" it is of.
        helper: C that stands before the kernel.
        pragma: what gcc has to be told of a loop that meets elements.
        triton: Triton of what elements `wide` give, which are float64.
        triton_meet, triton_start, triton_finish: Triton of what is C above.
        triton_block: Triton of a block "{0}" whose second axis is reduced.
    """

    truth: Callable[[Tensor, Sequence[int]], Tensor]
    c: str
    meet: str
    start: str = "0.0"
    finish: str = "{0}"
    helper: str = ""
    pragma: str = ""
    triton: str = "wide"
    triton_meet: str = "{0} + {1}"
    triton_start: str = "0.0"
    triton_finish: str = "{0}"
    triton_block: str = "tl.sum({0}, 1)"


def _amax(value: Tensor, dims: Sequence[int]) -> Tensor:
    if value.numel():
        return value.amax(tuple(dims), keepdim=True)
    return value.new_full(kept_shape(value.shape, dims), -torch.inf)  # of nothing, where torch has no answer


ALONG: dict[str, Along] = {
    "sum": Along(lambda v, dims: v.sum(tuple(dims), keepdim=True), "(double)v", "{0} + {1}"),
    "mean": Along(
        lambda v, dims: v.mean(tuple(dims), keepdim=True),
        "(double)v",
        "{0} + {1}",
        finish="{0} / (double)({1})",
        triton_finish="{0} / ({1}).to(tl.float64)",
    ),
    "norm": Along(
        lambda v, dims: torch.linalg.vector_norm(v, 2, tuple(dims), keepdim=True),
        "(double)v * (double)v",
        "{0} + {1}",
        finish="sqrt({0})",
        triton="wide * wide",
        triton_finish="tl.sqrt({0})",
    ),
    "amax": Along(
        _amax,
        "(double)v",
        "LARGER_OF({0}, {1})",
        start="-(double)INFINITY",
        helper="static inline double LARGER_OF(double a, double b) { double r = a <= b ? b : a; "
        "return b != b ? b : r; }",
        pragma="#pragma GCC unroll 1",  # gcc makes no vectors of choices once they are unrolled
        triton_meet="tl.where(({1} > {0}) | ({1} != {1}), {1}, {0})",
        triton_start="float('-inf')",
        triton_block="tl.max(tl.where({0} == {0}, {0}, float('-inf')), 1) + tl.sum(tl.where({0} != {0}, {0}, 0.0), 1)",
    ),
}
"""Every reduction along dimensions: sums, means, the root of the sum of squares, the largest element."""


def reduced(kind: str, value: Tensor, dims: Sequence[int]) -> Tensor:
    """The reduction of a tensor, which is in float64, along some of its dimensions, or along none."""
    if dims:
        return ALONG[kind].truth(value, dims)
    return value.abs() if kind == "norm" else value


def dims_of(word: str, kind: str, index: Index, name: str, shape: Sequence[int], dim: Dims) -> tuple[int, ...]:
    """The dimensions that a reduction of an entry is along: of a complex one, whose shape is that of pairs, too."""
    if name not in index.complex:
        return _checked(word, name, shape, dim)
    dims = _checked(word, name, shape[:-1], dim)
    return (*dims, len(shape) - 1) if kind == "norm" else dims  # a norm is of magnitudes


def _checked(word: str, name: str, shape: Sequence[int], dim: Dims) -> tuple[int, ...]:
    """The dimensions of an entry of this shape, counted from 0. TypeError for what is none, ValueError for too many."""
    rank = len(shape)
    said = dim(rank) if callable(dim) else dim
    given = said if isinstance(said, tuple) else (said,)
    whole = all(type(d) is int for d in given) and (isinstance(said, tuple) or not callable(dim))
    if not whole or not (given or callable(dim)):
        raise TypeError(f"Tensors.{word}: dim must be an int or a tuple of ints, got {said!r}.")
    wrong = next((d for d in given if not -rank <= d < rank), None)
    if wrong is not None:
        raise ValueError(
            f"Tensors.{word}: dim must be a dimension of every entry, got {wrong}, which {name!r} of shape "
            f"{tuple(shape)} has not. A link with `applies = min_ndim({max(_rank(given), rank + 1)})` sees only those "
            "that have it."
        )
    found = tuple(sorted(d % rank for d in given))
    if len(set(found)) != len(found):
        raise ValueError(f"Tensors.{word}: dim must name each dimension once, got {dim!r} for {name!r}.")
    return found


def _rank(dims: Sequence[int]) -> int:
    """How many dimensions an entry needs to have these."""
    return max(-d if d < 0 else d + 1 for d in dims)


def kept_shape(shape: Sequence[int], dims: Sequence[int]) -> torch.Size:
    """The shape of what is left."""
    return torch.Size([1 if d in dims else n for d, n in enumerate(shape)])
