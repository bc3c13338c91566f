"""Skip the update when a gradient is not finite, or what the chain would make of it."""

from __future__ import annotations

import math
from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.refusal import Diverged, first_offender
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

    A finite gradient may still make an update that is not finite, or a moment that is: the square of 1e20 is infinite
    in float32, and that parameter then stands still for good. `of="all"` looks at the loss, the updates that come in,
    those that the chain makes of them, and the new state of every link behind this one, and holds for any of them.

    Args:
        max_consecutive: how many updates in a row may be skipped, an integer of at least 0. 0 raises at the first; inf
            never raises.
        of: "updates", those that come in, or "all". That reads one number more from the device for the loss, the
            result and each field of a state, and the chain is computed twice.

    State: `consecutive`, one number.
    Units: unchanged.
    Raises: Diverged, a FloatingPointError, for one skip more than `max_consecutive` in a row, naming the first
        offending parameter: weights and state are those before the first of them. ValueError or TypeError for an
        argument outside its range.
    Equals: optax.apply_if_finite, which wraps the chain and then applies the non-finite update where this raises.

    >>> import gradchain as gch
    >>> gch.chain(gch.skip_nonfinite(), gch.clip_by_norm(1.0))
    chain(skip_nonfinite(), clip_by_norm(1.0))
    """

    descends = False
    uniform = frozenset({"max_consecutive"})

    max_consecutive: Hyper = Hyper(5, "integer [0, inf]")
    of: str = "updates"

    def check(self) -> None:
        if self.of not in ("updates", "all"):
            raise ValueError(f"skip_nonfinite: of must be 'updates' or 'all', got {self.of!r}.")

    def looks_behind(self) -> bool:
        return self.of == "all"

    def init(self, params: Tensors) -> SkipState:
        return SkipState()

    def update(self, g: Tensors, state: SkipState, ctx: Context) -> tuple[Tensors | None, SkipState]:
        if ctx.micro.flushing and not len(g):
            return g, state
        why = nonfinite_before(g, ctx) if self.of == "all" else _nonfinite(g)
        return (None, self.refused(why, state, ctx)) if why else (g, SkipState())

    def refused(self, why: str, state: SkipState, ctx: Context) -> SkipState:
        """The state after one more skip, for the updates or for what a link evaluated."""
        consecutive = state.consecutive + 1
        if consecutive > self.max_consecutive:
            raise Diverged(
                f"skip_nonfinite: at most {self.max_consecutive} updates in a row may have inf or NaN, got "
                f"{consecutive}; {why}. Look at the loss and the data of this step, lower the learning rate, or raise "
                "max_consecutive."
            )
        ctx.explain(f"{why}; skipped in a row: {consecutive}")
        return SkipState(consecutive)


def _nonfinite(g: Tensors) -> str:
    """What the updates have that is not finite, in words; "" where all is."""
    if g.all_finite():
        return ""
    return f"the updates have inf or NaN, the first offending parameter is {first_offender(g)!r}"


def nonfinite_before(g: Tensors, ctx: Context) -> str:
    """The same of the loss, where it is known, and of the updates. All ranks find the same."""
    of_updates = _nonfinite(g)
    if not ctx.has_loss or abs(loss := ctx.micro.over_ranks(ctx.loss)) < math.inf:
        return of_updates
    return f"the loss is {float(loss)}" + (f", and {of_updates}" if of_updates else "")
