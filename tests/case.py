"""A row of the table of links: what each is, who its peer is, and which laws it obeys.

Flags stand in the row. A test that asked for names would skip the next link that needs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import Problem, plain, problem
from peers import Peer
from torch import Tensor

import gradchain as gch


@dataclass(frozen=True)
class Clip:
    """What a row's link bounds.

    Attributes:
        size: of updates, what must not exceed the bound.
        bound: the bound.
        keeps_direction: whether the result is a multiple of the updates.
    """

    size: Callable[[dict[str, Tensor]], float]
    bound: float
    keeps_direction: bool = True


@dataclass(frozen=True)
class Case:
    """One row: a link, its peers, and what the generic tests need to know.

    Attributes:
        id: names the row.
        link: what is tested.
        peers: who else computes it. At least one.
        covers: the registered class or alias that the row is for; that of `link` by default.
        lr: the learning rate behind the link in the tests of parity; None where the link ends in its own.
        draw: how gradients are drawn.
        bend: how much the gradient depends on the weights.
        scaled: whether gradients come from a loss that the chain scaled.
        watch: what of the state the peers give too.
        scope: what an element of the result depends on: its own "element", its "tensor", or "joint" on all.
        degree: k in f(c g) = c^k f(g), where there is such a k.
        uses_step, uses_params, needs_closure, may_hold: what it asks of the context, and what it may do.
        gate: why it runs neither under vmap nor without reading the device, where it does not.
        in_place: why it neither runs under vmap nor has derivatives, where it works in place.
        own_time: whether a step in which a parameter is absent is no step to it.
        counted: whether what it does follows from the count that it keeps.
        rests: whether it, or a link in it, rests in some updates, and does not count those.
        alone: whether it works on each parameter by itself: not if a selector in it would match nothing.
        zero: whether a gradient of zero gives finite updates.
        low: why gradients at the ends of float16 and bfloat16 do not give what the same numbers give in float64.
        clip: what it bounds, where it does.
    """

    id: str
    link: gch.Transform
    peers: tuple[Peer, ...]
    covers: str = ""
    lr: Any = 0.7
    draw: Callable[[str, Tensor, int], Tensor] = plain
    bend: float = 0.0
    scaled: bool = False
    watch: Callable[[Any], dict[str, Any]] = lambda state: {}
    scope: str = "element"
    degree: float | None = None
    uses_step: bool = False
    uses_params: bool = False
    needs_closure: bool = False
    may_hold: bool = False
    gate: str = ""
    in_place: str = ""
    own_time: bool = True
    counted: bool = True
    rests: bool = False
    alone: bool = True
    zero: bool = True
    low: str = ""
    clip: Clip | None = None

    @property
    def subject(self) -> str:
        """The name of the class or alias the row is for."""
        return self.covers or type(self.link).__name__

    @property
    def tx(self) -> gch.Transform:
        """The link as a chain that moves weights: with a learning rate behind it, or before it if it comes last."""
        if self.lr is None:
            return gch.chain(self.link)
        rate = gch.scale_by_learning_rate(self.lr)
        return gch.chain(rate, self.link) if self.link.role in ("weights", "average") else gch.chain(self.link, rate)

    def problem(self, seed: int = 0, **changes: Any) -> Problem:
        """What the row is run on."""
        # a chain with a learning rate of its own has, by convention of the table, 0.5
        drawn = {"draw": self.draw, "bend": self.bend, "lr": 0.5 if self.lr is None else self.lr}
        return problem(seed, **{**drawn, **changes})
