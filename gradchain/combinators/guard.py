"""Notice that a run has left its way, and say where to go back to."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

from gradchain.combinators.skip_nonfinite import nonfinite_before
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.refusal import Diverged, first_offender
from gradchain.core.roles import Gate
from gradchain.core.scalars import Scalars, maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors


class GuardState(State):
    """What guard remembers: statistics of the updates that were nothing unusual."""

    norms: Annotated[Scalars, "[0, inf)"]  # of each parameter, in the last of them
    norms_before: Annotated[Scalars, "[0, inf)"]  # and in the one before that
    consecutive: Annotated[int, "integer [0, inf)"] = 0  # unusual ones in a row so far
    count: Annotated[int, "integer [0, inf)"] = 0  # updates in the statistics
    loss: Annotated[Any, "(-inf, inf)"] = 0.0  # the running mean of the loss
    gap: Annotated[Any, "[0, inf)"] = 0.0  # and of how far it was from that
    norm: Annotated[Any, "[0, inf)"] = 0.0  # the running mean of the norm over all parameters
    last_good: str = ""  # the checkpoint that was the last one when the first of those in a row came


class guard(Gate):
    """Raise Diverged where too many updates in a row are not finite, or far above what is usual.

        unusual are:  a loss or an update that is not finite;  a loss > m + (loss - 1) max(|m|, d);  a norm > norm n

    m and n are the running means of the loss and of the norm over all parameters, d that of |loss - m|, so that the
    second bound is `loss` times m where losses are positive and no noise. Unusual updates are in no mean. One that is
    not finite is never applied. All others are by default: until it raises, a run is the one without a guard, bit for
    bit. With `skip` they are held too, and weights and state are then those before the first of them when it raises.

    Nothing is written when it raises. `error.last_good` is the checkpoint to go back to. It is the one that was the
    last when the first of those in a row came, since a later one may hold what went wrong; if that is gone, the last.

    Put it behind `accumulate` and `amp_scale`: it then sees what one update is made of, unscaled, and no overflow. The
    means are state, and are saved. All ranks find the same, for the loss is their mean. `info.detail` and the error
    name the first offending parameter, or the one whose norm has grown most, with the norms that it had lately.

    Args:
        max_consecutive: how many updates in a row may be unusual, an integer of at least 0. inf never raises.
        loss: how many times its mean the loss may be, above 1; inf for any.
        norm: how many times its mean the norm may be, above 1; inf for any.
        skip: whether unusual updates that are finite are held too.
        decay: what stays of the means at each update, in [0, 1).
        warmup: how many updates are in the means before anything finite is unusual, an integer of at least 1.
        last_good: a path, or a function that gives one or None, such as `lambda: keeper.last_good`. It is called when
            an unusual update comes, and at no other time.

    Shapes: any; norms over whole tensors.
    State: two numbers per parameter, and six; a path.
    Units: unchanged.
    Raises: Diverged, a FloatingPointError, for one unusual update more than `max_consecutive` in a row; ValueError or
        TypeError for an argument outside its range.
    Equals: nothing of torch or Optax; a float64 twin in the tests.

    >>> import gradchain as gch
    >>> gch.chain(gch.guard(loss=5.0, norm=20.0), gch.adamw(1e-3)).links[0]
    guard(loss=5.0, norm=20.0)
    """

    descends = False
    uniform = frozenset({"max_consecutive", "loss", "norm", "decay", "warmup"})

    max_consecutive: Hyper = Hyper(5, "integer [0, inf]")
    loss: Hyper = Hyper(3.0, "(1, inf]")
    norm: Hyper = Hyper(math.inf, "(1, inf]")
    skip: bool = False
    decay: Hyper = Hyper(0.98, "[0, 1)")
    warmup: Hyper = Hyper(25, "integer [1, inf)")
    last_good: Callable[[], Any] | str | None = None

    def check(self) -> None:
        if not isinstance(self.skip, bool):
            raise TypeError(f"guard: skip must be True or False, got {self.skip!r}.")
        given = self.last_good
        if isinstance(given, os.PathLike):
            object.__setattr__(self, "last_good", os.fspath(given))
        elif not (given is None or isinstance(given, str) or callable(given)):
            raise TypeError(f"guard: last_good must be a path, a function that gives one, or None, got {given!r}.")

    def init(self, params: Tensors) -> GuardState:
        zeros = Scalars.of(params.index, 0.0)
        return GuardState(zeros, zeros)

    def update(self, g: Tensors, state: GuardState, ctx: Context) -> tuple[Tensors | None, GuardState]:
        if not len(g):  # a window that is flushed, or nothing to judge
            return g, state
        norm, norms = g.norm(), g.norms()
        ctx.record("norm", norm)
        why = nonfinite_before(g, ctx) or ("" if norm < math.inf else "the norm is beyond what a float holds")
        if why:
            return None, self.refused(f"{why}{_lately(state, _offender(g))}", state, ctx)
        loss = ctx.micro.over_ranks(ctx.loss) if ctx.has_loss else state.loss
        why = self._unusual(loss, norm, state) if state.count >= self.warmup else ""
        if why:
            counted = self.refused(f"{why}{_lately(state, _most_grown(norms, state), norms)}", state, ctx)
            if self.skip:
                ctx.held("unusual")
            return None if self.skip else g, counted
        part, off = maximum(1 / (state.count + 1), 1 - self.decay), abs(loss - state.loss)
        mean, gap = state.loss + part * (loss - state.loss), part * off + (1 - part) * state.gap
        return g, GuardState(
            norms, state.norms.select(g), 0, state.count + 1, mean,
            gap if state.count > 0 else 0.0, state.norm + part * (norm - state.norm),
        )  # fmt: skip

    def _unusual(self, loss: Any, norm: Any, state: GuardState) -> str:
        """What is far above its mean, in words; "" where nothing is."""
        bound = state.loss + (self.loss - 1) * maximum(abs(state.loss), state.gap)
        if loss > bound:
            return f"the loss is {float(loss):.6g}, above {float(bound):.6g}; its mean is {float(state.loss):.6g}"
        if norm > self.norm * state.norm:
            return f"the norm is {float(norm):.6g}, above {float(self.norm)} times its mean, {float(state.norm):.6g}"
        return ""

    def refused(self, why: str, state: GuardState, ctx: Context) -> GuardState:
        """The state after one more unusual update, or evaluation of a link."""
        if ctx.recorder is not None and callable(self.last_good):
            ctx.recorder.reads(ctx.address, "the last good checkpoint")  # which is for each time, and no number
        consecutive = state.consecutive + 1
        path = state.last_good if state.consecutive > 0 else ""
        if not path or not os.path.exists(path):
            path = self._last_good()
        if consecutive > self.max_consecutive:
            before = "the first of them" if self.skip else "this one"
            go_back = f"load {path!r}" if path else "load a checkpoint of before; guard(last_good=…) is told which"
            raise Diverged(
                f"guard: at most {self.max_consecutive} updates in a row may be unusual, got {consecutive}; {why}. "
                f"Weights and state are those before {before}. Lower the learning rate or leave these batches out; to "
                f"go back, {go_back}.",
                path or None,
            )
        ctx.explain(f"{why}; unusual in a row: {consecutive}")
        return state.replace(consecutive=consecutive, last_good=path)

    def _last_good(self) -> str:
        """The last good checkpoint as the user tells it, "" where there is none."""
        given = self.last_good
        path: Any = given() if callable(given) else given
        if path is None:
            return ""
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"guard: last_good must give a path or None, got {path!r}.")
        return str(os.fspath(path))


def _offender(g: Tensors) -> str | None:
    """The first parameter with inf or NaN; None where the loss alone has one."""
    return None if g.all_finite() else first_offender(g)


def _most_grown(norms: Scalars, state: GuardState) -> str:
    """The parameter whose norm is the most times what it was."""
    last = state.norms
    return max(norms, key=lambda name: float(norms[name]) / max(float(last.get(name, 0.0)), _SMALLEST))


def _lately(state: GuardState, name: str | None, norms: Scalars | None = None) -> str:
    """The norms that a parameter has had, oldest first, in words."""
    if name is None:
        return ""
    known = (state.norms_before, state.norms, *(() if norms is None else (norms,)))
    seen = [float(each[name]) for each in known if name in each]
    return f"; the norms of {name!r} lately: {', '.join(f'{n:.4g}' for n in seen)}"


_SMALLEST = sys.float_info.min
