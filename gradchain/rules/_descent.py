"""What the aliases of this room end in: the decay of the weights, and the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.optimizers._parts import decay
from gradchain.selectors import SelectorLike
from gradchain.transforms.scale import scale_by_learning_rate

__all__ = ["decay", "descent"]

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


def descent(
    direction: Transform, learning_rate: Value, weight_decay: Value = 0.0, mask: SelectorLike | None = None
) -> chain:
    """A direction, the decoupled decay of what `mask` selects, none for the number 0, and the learning rate."""
    return chain(direction, *decay(weight_decay, mask), scale_by_learning_rate(learning_rate))
