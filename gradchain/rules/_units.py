"""What the parts of a weight are that have a number of their own: rows, units, the whole; and the parts of aliases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.index import Index
from gradchain.core.scalars import Scalar, maximum
from gradchain.core.tensors import Tensors
from gradchain.selectors import choose

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike

WHOLE_WEIGHTS = "needs numbers of whole weights. Give dense gradients: nn.Embedding(…, sparse=False)."
"""Why a rule with a number per tensor or per row cannot take a sparse gradient."""


def of_row(rank: int) -> tuple[int, ...]:
    """The dimensions of a row, what makes one output in torch's layout: all but the first; none of a vector."""
    return tuple(range(1, rank))


def of_unit(rank: int) -> tuple[int, ...]:
    """The same, but a vector is one unit as a whole."""
    return tuple(range(rank > 1, rank))


def of_whole(rank: int) -> tuple[int, ...]:
    """All dimensions."""
    return tuple(range(rank))


def rms(tensors: Tensors) -> Scalar:
    """The root of the mean square of each entry: one number per parameter, 0 for an empty one."""
    return tensors.norms() / maximum(tensors.numels(), 1) ** 0.5


def matrices(index: Index) -> Index:
    """The entries of two dimensions and more. There may be none."""

    def decide() -> list[tuple[None, Index]]:
        return [(None, index.subset([f.name for f in index.facts if f.parameter.ndim > 1]))]

    return index.parts(matrices, decide)[0][1]


def among(value: Value, mask: SelectorLike | None) -> Value:
    """A hyperparameter that is 0 for all that a mask does not select."""
    return value if mask is None else choose((mask, value), rest=0.0)
