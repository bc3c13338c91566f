"""The window of micro-batches that lies in `.grad`, and the micro-batch that comes next."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.roles import KeepsWindow, WindowState
from gradchain.core.row_gradients import as_gradients
from gradchain.core.scalars import as_number
from gradchain.core.state import Links
from gradchain.core.tensors import Tensors
from gradchain.updater.ranks import (
    largest,
    over_ranks,
    put_back_unreduced,
    synchronise,
    taken_unreduced,
    unreduced,
)
from gradchain.updater.target import Target


def weight_of(weight: Any) -> float:
    """The weight of a micro-batch as Python has it, read from wherever it lies. ValueError where it can be none."""
    number = as_number(weight)
    if number is None or not 0 <= number <= sys.float_info.max:
        raise ValueError(f"update: weight must be a finite number of at least 0, got {weight!r}.")
    return number


@dataclass
class MicroBatch:
    """What is known of the micro-batch between its first backward and its step."""

    backwards: int = 0
    loss: Any = None
    weight: float | None = None
    last: bool = False
    unsynchronised: bool = False  # it ran without reducing over ranks
    _mean_weight: float | None = None  # over ranks, once a link asked

    def add(self, loss: Tensor) -> None:
        """One more backward of it is done."""
        self.backwards += 1
        detached = loss.detach()
        self.loss = detached if self.loss is None else self.loss + detached

    def mean_weight(self, weight: float, target: Target) -> float:
        """The mean over ranks of its weight. The ranks talk the first time, and only if all ask."""
        if self._mean_weight is None:
            self._mean_weight = over_ranks(target, weight)
        return self._mean_weight

    def check(self, loss: Any, weight: Any, gated: Callable[[], bool]) -> None:
        """Refuse a loss that backward cannot or should not take, before anything happens.

        Args:
            loss: what the user passed.
            weight: the weight of the micro-batch, a number, or None.
            gated: gives whether a link will stop a non-finite gradient.
        """
        if not isinstance(loss, Tensor):
            got = type(loss).__name__
            cure = " Return the loss." if loss is None else ""
            cure = " It must have its graph: leave out .item()." if isinstance(loss, (int, float)) else cure
            raise TypeError(f"update: loss must be a scalar tensor or a closure that returns one, got {got}.{cure}")
        if loss.numel() != 1:
            raise ValueError(f"update: loss must be a scalar, got shape {tuple(loss.shape)}. Reduce it: loss.mean().")
        if loss.is_complex():
            raise TypeError(f"update: loss must be real, got {loss.dtype}. Take its abs() or .real.")
        if loss.layout is not torch.strided:
            raise TypeError(f"update: loss must be a dense tensor, got layout {loss.layout}. Use loss.to_dense().")
        if not loss.requires_grad:
            raise ValueError(
                "update: loss has no graph: it was computed under torch.no_grad(), detached, or from no parameter."
            )
        if self.backwards and weight != self.weight:
            raise ValueError(
                f"update: weight must be that of the micro-batch's first backward, {self.weight!r}, got {weight!r}."
            )
        if weight == 0:
            return  # a mean over no labels is NaN, and nothing is made of it
        if loss.is_cpu and not math.isfinite(loss.item()) and not gated():
            raise FloatingPointError(
                f"update: loss is {loss.item()}; weights and state are untouched. To skip such updates put "
                "skip_nonfinite() in the chain."
            )


class Window:
    """The window of the first link, where that link lets it lie in `.grad`.

    Attributes:
        name: that link's name, or None: then there is no window in `.grad`, and every micro-batch stands alone.
        unsynchronised: whether the open window differs from rank to rank.
        begun: whether a backward has run: the first of all must reduce under DDP with static_graph.
    """

    def __init__(self, tx: chain, target: Target) -> None:
        name, link = tx.named[0] if tx.named else (None, None)
        self._link = link if isinstance(link, KeepsWindow) and link.sums_in_grad() else None
        self.name = None if self._link is None else name
        self._target = target
        self.unsynchronised = False
        self.begun = False
        self._unreduced: list[tuple[Any, str, Tensor]] = []  # the window, where FSDP2 keeps it from `.grad`

    def state(self, state: Links) -> WindowState | None:
        """The state of the window's link, or None where there is none."""
        held = None if self.name is None else state.links[self.name]
        assert held is None or isinstance(held, WindowState)
        return held

    def micro(self, state: Links) -> int:
        """How many micro-batches the open window has."""
        held = self.state(state)
        return 0 if held is None else held.micro

    def only_adds(self, state: Links, now: Callable[[], Context], last: bool) -> bool:
        """Whether the coming micro-batch opens a window or is added to one, and leaves that open."""
        return self.name is not None and not self.closes(state, now, last)

    def added(self, received: Tensors, state: Links, ctx: Context) -> Links:
        """`state` after such a micro-batch, of which the context notes that it holds the chain."""
        assert self.name is not None and self._link is not None
        ctx = ctx.enter(self.name)
        ctx.held(self._link.holds)
        link = self._link if self.micro(state) else self._link.at(ctx)
        made = link.added(received, state.links[self.name], ctx)
        return state.holding({**state.links, self.name: made})

    def closes(self, state: Links, now: Callable[[], Context], last: bool) -> bool:
        """Whether the coming micro-batch closes the window; it does where there is none."""
        return self.name is None or last or self.micro(state) + 1 >= self.every(state, now)

    def every(self, state: Links, now: Callable[[], Context]) -> int:
        """How many micro-batches the open window, or the coming one, is to have."""
        held = self.state(state)
        if self.name is None or self._link is None or held is None:
            return 1
        return (self._link if held.micro else self._link.at(now().enter(self.name))).size(held)

    def with_room(self, state: Links, ctx: Context) -> Links:
        """`state` with an open window that has room for the coming micro-batch, whatever its weight."""
        if self.name is None or self._link is None or not self.micro(state):
            return state
        held = self.state(state)
        made = self._link.with_room(held, ctx.enter(self.name))
        return state if made is held else state.holding({**state.links, self.name: made})

    def in_dtypes_of(self, state: Links, weights: Mapping[str, Tensor]) -> Links:
        """`state` with an open window in the dtypes that the weights have now, which may have been moved since."""
        held = self.state(state)
        if held is None or not held.scaled or all(t.dtype == weights[n].dtype for n, t in held.window.items()):
            return state
        window = as_gradients(self._target.index, {n: t.to(weights[n].dtype) for n, t in held.window.items()})
        return state.holding({**state.links, str(self.name): held.replace(window=window)})

    def park(self) -> None:
        """Take from FSDP2 what it has not reduced; a window in `.grad` the link has taken. It may be done again."""
        if not self._target.sharded:
            return
        self._unreduced = self._unreduced or unreduced(self._target)
        taken_unreduced(self._target)

    def put_back(self) -> None:
        """Give FSDP2 what was taken."""
        if not self._target.sharded:
            return
        put_back_unreduced(self._target, self._unreduced)
        self._unreduced = []

    def forget(self) -> None:
        """Nothing is open any more."""
        self._unreduced = []
        taken_unreduced(self._target)
        synchronise(self._target, True)  # which a backward that was broken off may have left undone
        self.unsynchronised = False

    def differs(self, state: Links) -> bool:
        """Whether an open window differs from rank to rank: in its gradients, or in the sum of its weights."""
        return self.unsynchronised or bool(self._weighed(state))

    def _weighed(self, state: Links) -> dict[str, WindowState]:
        """The open windows whose micro-batches were weighed by each rank for itself, wherever they lie."""
        if not self._target.distributed:
            return {}
        windows = {name: held for name, held in state.links.items() if isinstance(held, WindowState)}
        return {name: held for name, held in windows.items() if held.micro and held.weighted}

    def reduced(self, state: Links, owner: str) -> Links:
        """`state` with what differs from rank to rank made the mean over ranks, as closing the window would have.

        All ranks must call it, whatever their windows are.
        """
        state = self._synchronised(state, owner)
        for name, held in self._weighed(state).items():
            weight, loss = over_ranks(self._target, held.weight), over_ranks(self._target, held.loss)
            state = state.holding({**state.links, name: held.replace(weight=weight, loss=loss)})
        return state

    def _synchronised(self, state: Links, owner: str) -> Links:
        """`state` with an unsynchronised window made the mean over ranks."""
        if self.unsynchronised and self._target.sharded:
            raise RuntimeError(
                f"{owner}: FSDP2 holds the window's gradients where they cannot be reduced now. Close the window with "
                "its last micro-batch: updater.context(last=True)."
            )
        held = self.state(state)
        if self.name is None or held is None or not self._target.replicated:
            return state
        names = self._agreed(held, owner)
        if not names:
            return state
        facts = {f.name: f.parameter for f in self._target.index.facts}
        found = {n: held.window[n] if n in held.window else torch.zeros_like(facts[n]) for n in names}
        mean = EagerTensors.at(self._target.index, {n: over_ranks(self._target, t) for n, t in found.items()})
        weight, loss = over_ranks(self._target, held.weight), over_ranks(self._target, held.loss)
        self.unsynchronised = False
        return state.holding({**state.links, self.name: held.replace(window=mean, weight=weight, loss=loss)})

    def _agreed(self, held: WindowState, owner: str) -> list[str]:
        """The names in the windows of all ranks; none where there is nothing to reduce."""
        names = self._target.index.names
        numbers = [held.micro, -held.micro, int(self.unsynchronised), *(int(n in held.window) for n in names)]
        most, least, reduce, *present = largest(self._target, numbers)
        if most != -least:
            raise RuntimeError(
                f"{owner}: every rank must have as many micro-batches in its open window, got {-least} to {most}. "
                "Give each rank as many, or drop the window with updater.zero_grad() on every rank."
            )
        return [name for name, there in zip(names, present, strict=True) if there and reduce]
