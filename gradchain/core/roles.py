"""What a link, or its state, may be to those who run a chain: declared here, and asked for by type.

A link or state of a user's takes part by deriving from one of these in place of `Transform` or `State`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from gradchain.core.context import Context
from gradchain.core.index import Index
from gradchain.core.state import AVERAGE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform

# states


class WindowState(State):
    """The state of a link that keeps a window of micro-batches open from one update to the next.

    >>> import gradchain as gch
    >>> gch.accumulate(4).init(gch.Tensors.of({})).micro
    0
    """

    whole: ClassVar[frozenset[str]] = frozenset({"window"})
    added: ClassVar[frozenset[str]] = frozenset({"weighted"})

    window: Tensors  # the sum of the gradients; no entries while no window is open
    micro: Annotated[int, "integer [0, inf)"] = 0  # micro-batches in the window so far
    # how many it is to have, fixed when it opened; 0 while none is open
    size: Annotated[int, "integer [0, inf)"] = 0
    weight: Annotated[float, "[0, inf]"] = 0.0  # the sum of their weights
    scaled: bool = False  # whether the chain scaled their losses: then it may lie in `.grad`, else the link sums
    # the sum of weight times loss; a number, or a 0-d tensor where the loss is on an accelerator
    loss: Annotated[Any, "[-inf, inf] or NaN"] = 0.0
    weighted: bool = False  # whether its micro-batches were given weights: then each rank has a sum of its own

    def problem(self) -> str | None:
        if self.micro:
            return None if self.micro < self.size else f"size must be above micro, {self.micro!r}, got {self.size!r}"
        entries = ", ".join(self.window)
        if self.size or self.weight or entries:
            found = f"size {self.size!r}, weight {self.weight!r} and a window of {entries or 'nothing'}"
            return f"where micro is 0 no window is open, got {found}"
        return None


class AverageState(State):
    """The state of a link that averages the weights: what `updater.averaged()` swaps in.

    >>> import torch, gradchain as gch
    >>> gch.average_params(0.9).init(gch.Tensors.of({"w": torch.ones(2)})).average["w"]
    tensor([1., 1.])
    """

    kinds: ClassVar[Mapping[str, str]] = {"average": AVERAGE}
    whole: ClassVar[frozenset[str]] = frozenset({"buffers"})

    average: Tensors  # the average weights, of every parameter
    buffers: Tensors  # the model's buffers as the average has them; no entries for those that stay the model's

    def buffers_after(self) -> Tensors:
        """The buffers where the average has moved and nothing averages them: statistics made at it are of before."""
        return self.buffers.select(()) if len(self.buffers) else self.buffers


# links


class KeepsWindow(Transform, role_only=True):
    """A link that keeps a window of micro-batches, in a `WindowState`.

    It holds the chain for the reason "window". First in the outermost chain, its window may lie in `.grad`, where
    autograd sums: it then finds the sum in the updates, and the updater asks it how long the window is, so that ranks
    reduce once.

    >>> import gradchain as gch
    >>> isinstance(gch.accumulate(4), gch.KeepsWindow)
    True
    """

    holds = "window"

    def sums_in_grad(self) -> bool:
        """Whether the window may lie in `.grad`."""
        return False

    def size(self, state: Any) -> int:
        """How many micro-batches the open window is to have, which its state says; or the one that opens now.

        There every schedule is a number.
        """
        raise NotImplementedError(f"{type(self).__name__}: a link that keeps a window needs size(state).")

    def added(self, g: Tensors, state: Any, ctx: Context) -> Any:
        """The state with one more micro-batch that leaves the window open: what `update` gives beside None.

        Asked where nothing else is to happen: the window lies in `.grad`, and `g` is the sum there. Where none is open
        yet, every schedule is a number.
        """
        _, new = self.update(g, state, ctx)
        return new

    def with_room(self, state: Any, ctx: Context) -> Any:
        """The state with an open window that has room for the coming micro-batch; before its backward."""
        return state


class Gate(Transform, role_only=True):
    """A link that holds the chain where the updates are not finite, so that nothing is applied and the run goes on.

    Where it holds, its new state is what `refused` returns. While a gate is active a loss that is not finite is no
    error. The reason it holds for is "nonfinite", or a `holds` of its own.

    >>> import gradchain as gch
    >>> isinstance(gch.skip_nonfinite(), gch.Gate)
    True
    """

    holds = "nonfinite"

    def active(self, ctx: Context) -> bool:
        """Whether it looks at the updates at all."""
        return True

    def looks_behind(self) -> bool:
        """Whether it holds too where what the links behind it make is not finite: the updates, or their new state."""
        return False

    def refused(self, why: str, state: Any, ctx: Context) -> State:
        """The state after it held for what is not finite: a scale backed off, a skip counted. `why` says what was."""
        same: State = state
        return same


class AtTicks(Transform, role_only=True):
    """A link that does its work when a named clock ticks, where it is given one: not at updates, without gradients.

    `updater.tick(clock)` asks it for its new state. Its schedules, and `ctx.step`, are then in that clock: they read
    how often it has ticked. Its `update` is still asked at updates.

    >>> import gradchain as gch
    >>> gch.average_params(0.9, on="ema").clock
    'ema'
    """

    @property
    def clock(self) -> str | None:
        """The name of the clock, or None where it works at updates as other links do."""
        raise NotImplementedError(f"{type(self).__name__}: a link that works at ticks needs clock.")

    def ticked(self, state: Any, ctx: Context) -> State:
        """The state after one more tick; its tensors are of the same parameters. Changes none of its arguments."""
        raise NotImplementedError(f"{type(self).__name__}: a link that works at ticks needs ticked(state, ctx).")


class TicksClock(Transform, role_only=True):
    """A link that ticks a named clock when a number is observed that it `observes`: not at updates.

    `updater.observe` asks it for its new state, and whether the clock ticks, which schedules read from then on. It
    never holds the chain, and its `update` passes the updates on.

    Attributes:
        clock: its name.
    """

    clock: str

    def looked(self, x: float, state: Any, ctx: Context) -> tuple[State, bool]:
        """The state after one more observation, and whether the clock ticks. Changes none of its arguments."""
        raise NotImplementedError(f"{type(self).__name__}: a link that ticks a clock needs looked(x, state, ctx).")


class WritesBuffers(Transform, role_only=True):
    """A link that may write buffers of the model: it gives `ctx.write_buffers` what they are to be, by name.

    They are written when the update is, all or nothing, and of no other link.

    >>> import gradchain as gch
    >>> issubclass(gch.WritesBuffers, gch.Transform)
    True
    """


class Wraps(Transform, role_only=True):
    """A link around others that makes something of what they make, and cannot hold the chain for them.

    So what may hold does not stand in it, and neither does a window. Branches of `partition` may hold.

    >>> import gradchain as gch
    >>> isinstance(gch.masked(gch.scale(0.1), gch.bias), gch.Wraps)
    True
    """


class TakesTurns(Wraps, role_only=True):
    """A link of whose parts one works in an update: they are no row, and each may be a whole rule.

    >>> import gradchain as gch
    >>> isinstance(gch.switch(gch.adam(0.1), gch.sgd(0.1), at=10), gch.TakesTurns)
    True
    """


class Freezes(Transform, role_only=True):
    """A link that makes the entries of some parameters absent, for good or for a while.

    >>> import gradchain as gch
    >>> isinstance(gch.freeze(gch.bias), gch.Freezes)
    True
    """

    role = "freeze"

    def frozen(self, index: Index) -> Iterable[str]:
        """Those of `index` that it leaves alone for good: nothing else on their way matters."""
        return ()
