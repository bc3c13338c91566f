"""Skip the update where its norm, or the loss, is far above what it has been."""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import Gate
from gradchain.core.scalars import maximum, sqrt
from gradchain.core.state import State
from gradchain.core.tensors import Tensors

_ROUNDING = 1e-6  # of the mean: numbers that are alike may differ by so much
_MEMORY = 0.98  # of the rate of skips: about the last 50 updates


class SpikeState(State):
    """What skip_spikes remembers: statistics of the updates that it let through."""

    count: Annotated[int, "integer [0, inf)"] = 0  # updates in the statistics
    mean: Annotated[Any, "(-inf, inf)"] = 0.0
    var: Annotated[Any, "[0, inf)"] = 0.0
    skip_rate: Annotated[float, "[0, 1]"] = 0.0


class skip_spikes(Gate):
    """Hold the chain where the norm of the updates, or the loss, exceeds its mean by many standard deviations.

        x = ‖g‖, or the loss;   nothing is applied where x > mean + z σ, or x is not finite
        otherwise, with a = max(1 / n, 1 - decay):   d = x - mean,  mean ← mean + a d,  var ← (1 - a) (var + a d²)

    The statistics are of updates that were applied: of all of them while they are few, then of about the last
    1 / (1 - decay). A spike is not in them, nor is the step it spoiled. They are state, so that a run that goes on
    knows what is usual. Ranks decide alike: gradients are the same on all of them, or norms are over all shards, and
    the loss is averaged. Where the level of x rises for good this would skip for ever: it warns when more than half of
    about the last 50 updates were skipped. Recorded are x as "value" and the bound as "bound".

    Args:
        z: how many standard deviations, above 0.
        decay: what stays of the statistics at each update, in [0, 1).
        warmup: how many updates are let through before there is a bound, an integer of at least 1.
        of: "norm", over all parameters in sight, or "loss".
        most: the part of skips above which it warns, in (0, 1].

    Shapes: any; one norm over whole tensors.
    State: four numbers.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range; RuntimeError where the loss is not known.
    Equals: llm.c's -sg, which has a window of 128 in place of the average.

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.skip_spikes(z=6.0), gch.adamw(1e-3)).links[0]
    skip_spikes()
    """

    descends = False
    holds = "spike"
    uniform = frozenset({"z", "decay", "warmup", "most"})

    z: Hyper = Hyper(6.0, "(0, inf)")
    decay: Hyper = Hyper(0.99, "[0, 1)")
    warmup: Hyper = Hyper(25, "integer [1, inf)")
    of: str = "norm"
    most: Hyper = Hyper(0.5, "(0, 1]")

    def check(self) -> None:
        if self.of not in ("norm", "loss"):
            raise ValueError(f"skip_spikes: of must be 'norm' or 'loss', got {self.of!r}.")

    def init(self, params: Tensors) -> SpikeState:
        return SpikeState()

    def update(self, g: Tensors, state: SpikeState, ctx: Context) -> tuple[Tensors | None, SpikeState]:
        if not len(g):  # a window that is flushed, or nothing to judge
            return g, state
        x = g.norm() if self.of == "norm" else ctx.micro.over_ranks(ctx.loss)
        bound = state.mean + self.z * maximum(sqrt(state.var), _ROUNDING * abs(state.mean))
        ctx.record("value", x)
        ctx.record("bound", bound)
        if not abs(x) < math.inf or (self.of == "loss" and not g.all_finite()):
            return None, self.refused(f"the {self.of} or the updates have inf or NaN", state, ctx)
        if state.count >= self.warmup and x > bound:
            return None, self.refused(f"the {self.of} is a spike: see what is recorded as value and bound", state, ctx)
        part, d = maximum(1 / (state.count + 1), 1 - self.decay), x - state.mean
        var = (1 - part) * (state.var + part * d * d)
        return g, SpikeState(state.count + 1, state.mean + part * d, var, _MEMORY * state.skip_rate)

    def refused(self, why: str, state: SpikeState, ctx: Context) -> SpikeState:
        """The state after one more skip."""
        ctx.explain(why)
        rate = _MEMORY * state.skip_rate + (1 - _MEMORY)
        if state.skip_rate <= self.most < rate:
            if ctx.recorder is not None:
                ctx.recorder.reads(ctx.address, "a warning")  # which is for each time, and no number
            warnings.warn(
                f"{ctx.address}: more than {float(self.most):.0%} of about the last 50 updates were skipped. What is "
                "usual may have changed for good: raise z, lower the learning rate, or reset the state of this link.",
                stacklevel=2,
            )
        return state.replace(skip_rate=rate)


class skip_large_updates(Gate):
    """Hold the chain where the squared norm of the updates is not below a bound.

        u = g where ‖g‖² < max_squared_norm, else nothing is applied

    A NaN is not below it. The bound does not learn: one that is too small skips nearly all updates, and `skip_spikes`
    finds its own. The norm is recorded as "norm".

    Args:
        max_squared_norm: above 0, a number or a schedule.

    Shapes: any; one norm over whole tensors.
    Units: unchanged.
    Raises: ValueError or TypeError for a bound that is not above 0 or not a number.
    Equals: optax.skip_large_updates in optax.MultiSteps.

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.skip_large_updates(100.0), gch.sgd(0.1))
    chain(skip_large_updates(100.0), scale_by_learning_rate(0.1))
    """

    descends = False
    holds = "large"
    uniform = frozenset({"max_squared_norm"})

    max_squared_norm: Annotated[Hyper, "(0, inf)"]

    def update(self, g: Tensors, state: State, ctx: Context) -> tuple[Tensors | None, State]:
        if not len(g):  # a window that is flushed, or nothing to judge
            return g, state
        norm = g.norm()
        ctx.record("norm", norm)
        if norm * norm < self.max_squared_norm:
            return g, state
        return None, self.refused("the squared norm is not below max_squared_norm", state, ctx)

    def refused(self, why: str, state: State, ctx: Context) -> State:
        """The state is as it was: there is none."""
        ctx.explain(why)
        return state
