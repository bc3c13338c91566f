"""What a link remembers of the weights before a parameter's first update."""

from __future__ import annotations

from gradchain.core.scalars import Count, Scalars, where
from gradchain.core.tensors import Tensors


def anchored(count: Count, kept: Tensors, params: Tensors) -> Tensors:
    """What is kept of each parameter; of one that was never updated its weights, whoever wrote them since bind.

    Args:
        count: how often each was updated, before this update.
        kept: what the state has.
        params: the weights before this update.
    """
    never = count == 0
    if isinstance(never, Scalars):
        chosen: Tensors = where(never, params.select(kept.index), kept)
        return chosen
    return params.select(kept.index) if never else kept
