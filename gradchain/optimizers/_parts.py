"""What aliases are made of: the links in front of a rule and behind it, where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.combinators.masked import masked
from gradchain.core.chain import chain
from gradchain.core.transform import Transform
from gradchain.selectors import SelectorLike
from gradchain.transforms.ascent import maximize as climb
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.transforms.trace import trace

if TYPE_CHECKING:
    import torch

    from gradchain.core.hyper import Value


def decay(weight_decay: Value, mask: SelectorLike | None) -> list[Transform]:
    """The decay as none or one link: none for the number 0, masked where there is a mask."""
    if is_zero(weight_decay):
        return []
    return [among(add_decayed_weights(weight_decay), mask)]


def among(link: Transform, mask: SelectorLike | None) -> Transform:
    """A link, for what `mask` selects."""
    return link if mask is None else masked(link, mask)


def momentum(
    decay: Value, nesterov: bool, accumulator_dtype: torch.dtype | None, dampening: Value = 0.0
) -> list[Transform]:
    """Momentum as none or one link: none for the number 0."""
    return [] if is_zero(decay) else [trace(decay, nesterov, accumulator_dtype, dampening)]


def ascent(maximize: bool) -> list[Transform]:
    """What turns gradients round, where the chain is to climb."""
    return [climb()] if maximize else []


def rule(
    direction: Transform,
    learning_rate: Value,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    maximize: bool = False,
    *,
    decoupled: bool = False,
    momentum: list[Transform] | None = None,
) -> chain:
    """A rule with its decay, before it as a penalty or after it, and its learning rate."""
    decays = decay(weight_decay, mask)
    before, after = ([], decays) if decoupled else (decays, [])
    links = [*ascent(maximize), *before, direction, *(momentum or []), *after]
    return chain(*links, scale_by_learning_rate(learning_rate))


def descent(
    direction: Transform, learning_rate: Value, weight_decay: Value = 0.0, mask: SelectorLike | None = None
) -> chain:
    """A direction, the decoupled decay of what `mask` selects, none for the number 0, and the learning rate."""
    return rule(direction, learning_rate, weight_decay, mask, decoupled=True)


def is_zero(value: Value) -> bool:
    """Whether it is the number 0, and no schedule or other number: then a link is left out."""
    return isinstance(value, (int, float)) and value == 0
