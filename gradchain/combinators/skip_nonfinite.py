"""Skip the update when a gradient is not finite."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.refusal import first_offender
from gradchain.core.roles import Gate
from gradchain.core.state import State
from gradchain.core.tensors import Tensors


class SkipState(State):
    """What skip_nonfinite remembers."""

    consecutive: Annotated[int, "integer [0, inf)"] = 0  # skips in a row so far


class skip_nonfinite(Gate):
    """Hold the chain when the updates have an inf or NaN; raise when that happens too often in a row.

        u = g if every element of g is finite, else nothing is applied

    A skipped update advances nothing: no schedule, no moment, no count. `info.detail` names the first offending
    parameter. What a link evaluates, as `sam` does, is held to the same, on whichever side of this link it stands. It
    reads one number from the device per update. After `accumulate` one bad micro-batch drops the window; before it,
    only itself. `amp_scale` already skips overflows: where it is active this link is not needed.

    Args:
        max_consecutive: how many updates in a row may be skipped, an integer of at least 0. 0 raises at the first; inf
            never raises.

    State: `consecutive`, one number.
    Units: unchanged.
    Raises: FloatingPointError for one skip more than `max_consecutive` in a row, naming the first offending parameter;
        ValueError or TypeError for an argument outside its range.
    Equals: optax.apply_if_finite, which wraps the chain and then applies the non-finite update where this raises.

    >>> import gradchain as gch
    >>> gch.chain(gch.skip_nonfinite(), gch.clip_by_norm(1.0))
    chain(skip_nonfinite(), clip_by_norm(1.0))
    """

    descends = False
    uniform = frozenset({"max_consecutive"})

    max_consecutive: Hyper = Hyper(5, "integer [0, inf]")

    def init(self, params: Tensors) -> SkipState:
        return SkipState()

    def update(self, g: Tensors, state: SkipState, ctx: Context) -> tuple[Tensors | None, SkipState]:
        if ctx.micro.flushing and not len(g):
            return g, state
        if g.all_finite():
            return g, SkipState()
        why = f"the updates have inf or NaN, the first offending parameter is {first_offender(g)!r}"
        return None, self.refused(why, state, ctx)

    def refused(self, why: str, state: SkipState, ctx: Context) -> SkipState:
        """The state after one more skip, for the updates or for what a link evaluated."""
        consecutive = state.consecutive + 1
        if consecutive > self.max_consecutive:
            raise FloatingPointError(
                f"skip_nonfinite: at most {self.max_consecutive} updates in a row may have inf or NaN, got "
                f"{consecutive}; {why}. Look at the loss and the data of this step, lower the learning rate, or raise "
                "max_consecutive."
            )
        ctx.explain(f"{why}; skipped in a row: {consecutive}")
        return SkipState(consecutive)
