"""Leave some parameters alone, for good or for a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradchain.combinators.masked import checked_selector
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.roles import Freezes
from gradchain.core.scalars import whole_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.selectors import SelectorLike


class freeze(Freezes):
    """Take the parameters a selector matches out of the updates, as if they had no gradient.

        u_i absent for i in selector while start <= step < until, else g_i

    First in the chain, or behind `accumulate` and the gates: links before it have already seen the gradient. "Frozen
    for a while" has three meanings, which end at different weights:

    - absent (DINO): moments, counts and decay rest too, and bias correction starts when it ends. This link.
    - learning rate 0 (DINOv2): moments move, the weight does not, and neither does decay.
      `masked(scale(lambda step: float(step >= until)), selector)` after the decay.
    - zero gradient: moments fade to zero, counts go on, decay acts.
      The same `masked(scale(…), selector)` as the first link.

    For good, `requires_grad_(False)` also saves the backward pass.

    Args:
        selector: which parameters.
        until: the applied updates at which it ends, an integer of at least 0; None is for good.
        start: the applied updates at which it begins, an integer of at least 0, and below `until`.

    Shapes: any.
    Units: unchanged.
    Raises: TypeError or ValueError for a wrong argument; ValueError at bind for a selector that matches nothing.
    Equals: setting `.grad` to None before optimizer.step(); optax.freeze gives a zero gradient instead.

    >>> import gradchain as gch
    >>> gch.chain(gch.freeze(gch.named("backbone.*"), until=1000), gch.scale_by_adam())
    chain(freeze(named("backbone.*"), until=1000), scale_by_adam())
    >>> gch.freeze(gch.norm, start=5000)
    freeze(norm, start=5000)
    """

    descends = False
    per_parameter = True

    selector: SelectorLike
    until: int | None = None
    start: int = 0

    def check(self) -> None:
        object.__setattr__(self, "selector", checked_selector("freeze", self.selector))
        for name, words in (("until", "a number of applied updates or None"), ("start", "a number of applied updates")):
            given = getattr(self, name)
            if name == "until" and given is None:
                continue
            number = whole_number(given)
            if number is None:
                raise TypeError(f"freeze: {name} must be {words}, got {given!r}.")
            if number < 0:
                raise ValueError(f"freeze: {name} must be at least 0, got {given!r}.")
            object.__setattr__(self, name, number)
        if self.start and self.until is not None and self.start >= self.until:
            raise ValueError(f"freeze: start must be below until, {self.until}, got {self.start}.")

    def written(self) -> dict[str, Any]:
        """Its fields; `start` only where it is, as configs of before there was any have it."""
        return {name: value for name, value in super().written().items() if name != "start" or value}

    def frozen(self, index: Index) -> Iterable[str]:
        return index.members(self.selector) if self.until is None and not self.start else ()

    def init(self, params: Tensors) -> State:
        params.index.members(self.selector)
        return super().init(params)

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors, State]:
        if (self.until is not None and ctx.step >= self.until) or (self.start and ctx.step < self.start):
            return g, state
        return g.select(g.index.without(ctx.members(self.selector))), state
