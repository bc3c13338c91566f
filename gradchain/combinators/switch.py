"""One rule, and from some update on another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from gradchain.combinators.masked import as_chain, check_link
from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.roles import TakesTurns
from gradchain.core.scalars import Count, whole_number
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights


class SwitchState(State):
    """What switch remembers: how often each parameter went the second way, and the states of both."""

    count: Count
    links: Mapping[str, State] = field(default_factory=dict)


class switch(TakesTurns):
    """Let one link make the updates, and from some update on another.

        u = first(g) while step < at, else second(g)

    As Adam first and then SGD with momentum. The state of the second begins when it does: its moments are zero, its
    bias correction counts its own updates, and what it makes of the weights it makes of those of that moment. Schedules
    in it read the applied updates of the whole run: a warm-up of its own is written `join((at, at + 100, linear(…)))`.
    Both states are there all the time, in memory and in a checkpoint; that of the first is kept as it was left.

    Args:
        first: a Transform; with a learning rate, if the second has one.
        second: a Transform.
        at: how many updates are the first one's, an integer of at least 0.

    Shapes: as the links.
    State: that of both links, and a count.
    Raises: TypeError or ValueError for a wrong argument; RuntimeError where the context has no step.
    Equals: making a torch.optim optimizer anew after `at` steps.

    >>> import gradchain as gch
    >>> gch.switch(gch.adam(1e-3), gch.sgd(0.1, momentum=0.9), at=1000)
    switch(
        chain(scale_by_adam(), scale_by_learning_rate(0.001)),
        chain(trace(0.9), scale_by_learning_rate(0.1)),
        at=1000,
    )
    """

    descends = False
    per_parameter = True

    first: Transform
    second: Transform
    begins: int  # `at`, which is a method of every link

    def __init__(
        self, first: Transform, second: Transform, at: int | None = None, *, begins: int | None = None
    ) -> None:
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "second", second)
        object.__setattr__(
            self, "begins", begins if at is None else at
        )  # the keyword is what dataclasses.replace calls
        self.check()

    def check(self) -> None:
        check_link("switch", "first", self.first)
        check_link("switch", "second", self.second)
        begins = whole_number(self.begins)
        if begins is None:
            raise TypeError(f"switch: at must be a number of applied updates, got {self.begins!r}.")
        if begins < 0:
            raise ValueError(f"switch: at must be at least 0, got {self.begins!r}.")
        object.__setattr__(self, "begins", begins)

    def as_call(self) -> Iterator[tuple[str, Any]]:
        yield from (("", self.first), ("", self.second), ("at", self.begins))

    def written(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "at": self.begins}

    def __reduce__(self) -> tuple[Any, ...]:
        return switch, (self.first, self.second, self.begins)

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        return [("first", as_chain(self.first), index), ("second", as_chain(self.second), index)]

    def init(self, params: Tensors) -> SwitchState:
        return SwitchState(Count(params.index), super().init(params).held())

    def update(self, g: Tensors | Weights, state: SwitchState, ctx: Context) -> tuple[Tensors | Weights, SwitchState]:
        links: dict[str, Any] = dict(state.links)
        count = state.count
        if ctx.step < self.begins:
            name, link = "first", as_chain(self.first)
        else:
            name, link = "second", as_chain(self.second)
            if count.uniform == 0:
                links[name] = link.init(ctx.params.select(count.names))
            count = count.tick(dict.fromkeys(g.index.names))
        out, links[name] = link.update(g, links[name], ctx.enter(name))
        if out is None:
            raise RuntimeError("switch: a link in it held the chain. Move that link to the outermost chain.")
        return out, SwitchState(count, links)
