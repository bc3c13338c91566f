"""What a link returns that owns the weights: the weights themselves, in place of updates to add."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradchain.core.index import Index
from gradchain.core.tensors import Tensors

if TYPE_CHECKING:
    from gradchain.core.context import Context


@dataclass(frozen=True, eq=False)
class Weights:
    """New weights for the entries of `tensors`. They are written as they are, not added.

    A projection written as a difference leaves some entries outside its bound by an ulp; this does not.

    Attributes:
        tensors: the new weights.
        write: of a link that writes where the weights lie, what gives the call that does so. `tensors` are then that
            very memory, and are new once the call has run: once for each update, when no gate can hold it any more. It
            is told, before anything is written, the ids of the tensors that others write to or keep; None for all.
    """

    tensors: Tensors
    write: Callable[[set[int] | None], Callable[[], object]] | None = None

    @property
    def index(self) -> Index:
        """The parameters that they are of."""
        return self.tensors.index

    def select(self, names: Iterable[str]) -> Weights:
        """Those of some parameters."""
        return Weights(self.tensors.select(names), self.write)

    def __len__(self) -> int:
        return len(self.tensors)


def apply_updates(params: Tensors, updates: Tensors | Weights | None) -> Tensors:
    """The new weights: `params + updates`, rounded to the dtype of `params`; absent entries stay.

    Where a link held the chain, `updates` is None and the weights stay. Pure: differentiable, and usable under
    `torch.func`.

    >>> import torch, gradchain as gch
    >>> params = gch.Tensors.of({"w": torch.tensor([1.0, 2.0])})
    >>> gch.apply_updates(params, -0.5 * params)["w"]
    tensor([0.5000, 1.0000])
    """
    for what, given in (("params", params), ("updates", updates)):
        if given is not None and not isinstance(given, (Tensors, Weights)):
            raise TypeError(
                f"apply_updates: {what} must be Tensors, got {type(given).__name__}. Write gch.Tensors.of(…) of it."
            )
    if updates is None:
        return params
    if isinstance(updates, Weights) and updates.write is not None:
        raise RuntimeError("apply_updates: in_place=True writes the weights of a bound model. Leave it out.")
    new = updates.tensors if isinstance(updates, Weights) else params + updates
    return new.stored_as(params)


def in_place_of(
    mine: Tensors | Weights, made: Tensors | Weights, g: Tensors | Weights, ctx: Context
) -> Tensors | Weights:
    """`g` with what a held link made of `mine`, some of its entries: one that the link left out is absent.

    Where the link, or one before it, owns the weights, all are weights: those of the others are what they would become.
    """
    if isinstance(made, Weights) or isinstance(g, Weights):
        made, g = _weights(made, ctx), _weights(g, ctx)
        return Weights(_overlaid(mine.index, made.tensors, g.tensors))
    return _overlaid(mine.index, made, g)


def _overlaid(mine: Index, made: Tensors, g: Tensors) -> Tensors:
    gone = mine.without(made.index)
    return (g.select(g.index.without(gone)) if len(gone) else g).overlay(made)


def _weights(updates: Tensors | Weights, ctx: Context) -> Weights:
    """The weights that these updates make."""
    return updates if isinstance(updates, Weights) else Weights(ctx.new_params(updates).select(updates.index))
