"""Sum the gradients of several micro-batches and let the chain go on once per window."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import KeepsWindow, WindowState
from gradchain.core.scalars import binade
from gradchain.core.tensors import Tensors


class AccumulateState(WindowState):
    """What accumulate remembers of the open window."""

    added: ClassVar[frozenset[str]] = frozenset({"reference"})

    reference: Annotated[float, "(0, inf)"] = 1.0  # r: weights, or the 1 of each in a sum, are taken relative to it


class accumulate(KeepsWindow):
    """Sum the gradients of `every` micro-batches, and hold the chain until the window is full.

        loss_i ← loss_i / k,        u = Σ g_i               the mean
        loss_i ← loss_i · w_i / r,  u = Σ g_i / Σ (w_i / r)  where update is given weight=w_i, the sums over all ranks
        loss_i ← loss_i · w_i / r,  u = r Σ g_i              reduce="sum", where w_i is 1 if no weight is given

    k is fixed when a window opens, and r, k times the first weight (its mean over ranks; for a sum the power of two
    below that): what is summed stays of the size of one gradient, which in float16 is all there is room for. On one
    rank r grows with a weight that is much larger than the first.

    A micro-batch of weight 0, such as one without labels, adds nothing, whatever its loss is; a window of nothing else
    is dropped, for the reason "empty", and nothing is applied.

    A window goes on into the next epoch; `updater.update(loss, last=True)` and `updater.flush()` close it early, and
    the mean is then over the n micro-batches it has. First in the outermost chain, the window lives in `.grad` and
    costs no memory; in a branch of `partition` it is a buffer.

    Args:
        every: micro-batches to a window, an integer of at least 1; a schedule of the applied updates.
        reduce: "mean" over the window, or "sum".
        dtype: the dtype of a buffer for the window; None sums where the gradients are, with their rounding.

    Shapes: elementwise, any.
    State: the window: one tensor per parameter while one is open.
    Units: unchanged.
    Raises: ValueError for `every` below 1 or a `reduce` that is neither.
    Equals: optax.MultiSteps, without its inner steps; MMEngine's accumulative_counts, but for its last window.

    >>> import gradchain as gch
    >>> gch.chain(gch.accumulate(4), gch.clip_by_norm(1.0))
    chain(accumulate(4), clip_by_norm(1.0))
    """

    descends = False
    uniform = frozenset({"every"})

    multiplies_loss = True
    factor_holds = True

    every: Annotated[Hyper, "integer [1, inf)"]
    reduce: str = "mean"
    dtype: torch.dtype | None = None

    def sums_in_grad(self) -> bool:
        """Without a dtype of its own, the window may lie where autograd sums."""
        return self.dtype is None

    def check(self) -> None:
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"accumulate: reduce must be 'mean' or 'sum', got {self.reduce!r}.")
        dtype: object = self.dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"accumulate: dtype must be a floating-point torch.dtype or None, got {self.dtype!r}.")

    def init(self, params: Tensors) -> AccumulateState:
        return AccumulateState(params.select(()))

    def drop_window(self, state: AccumulateState) -> AccumulateState:
        return AccumulateState(state.window.select(()))

    def scale_loss(self, loss: Any, state: AccumulateState, ctx: Context) -> Any:
        if state.micro:
            self._check_alike(state, ctx.micro.weight is not None, True)
        return loss * self._factor(state, ctx)

    def size(self, state: AccumulateState) -> int:
        return state.size if state.micro else math.trunc(self.every)

    def _factor(self, state: AccumulateState, ctx: Context) -> float:
        """What a micro-batch's gradient is multiplied by as it enters the window."""
        weight = ctx.micro.weight
        if weight is None and self.reduce == "mean":
            return 1.0 / self.size(state)
        return (1.0 if weight is None else weight) / self._reference(state, ctx)

    def _reference(self, state: AccumulateState, ctx: Context) -> float:
        """What weights are relative to in the window that is open with this micro-batch."""
        if ctx.micro.weight is None and self.reduce == "mean":
            return 1.0
        if not state.micro:
            return self._relative_to(ctx.micro.mean_weight or 1.0, self.size(state))
        if ctx.micro.averaged_over_ranks or ctx.micro.weight == 0:
            return state.reference  # ranks talk where it opens only
        wanted = self._relative_to(1.0 if ctx.micro.weight is None else ctx.micro.weight, state.size)
        return wanted if state.weight == 0 or wanted >= 4 * state.reference else state.reference

    def _relative_to(self, weight: float, size: int) -> float:
        """A reference for `size` micro-batches of that weight. Equal weights are then what none are, to the bit."""
        whole = min(size * weight, sys.float_info.max)
        return whole if self.reduce == "mean" else binade(whole)

    def with_room(self, state: AccumulateState, ctx: Context) -> AccumulateState:
        return self._relative(state, self._reference(state, ctx))

    @staticmethod
    def _relative(state: AccumulateState, reference: float) -> AccumulateState:
        """The state with an open window that is relative to `reference`."""
        if not state.micro or reference == state.reference:
            return state
        if state.weight == 0:  # there is nothing in it
            return state.replace(reference=reference)
        less = state.reference / reference
        window = (state.window * less).stored_as(state.window)
        return state.replace(window=window, weight=state.weight * less, loss=state.loss * less, reference=reference)

    def update(self, g: Tensors, state: AccumulateState, ctx: Context) -> tuple[Tensors | None, AccumulateState]:
        if not ctx.micro.flushing:
            state = self.added(g, state, ctx)
        elif state.micro:
            state = state.replace(window=_beside(g, state.window))
        if not state.micro or (state.micro < state.size and not ctx.micro.last):
            return None, state
        weight = ctx.micro.over_ranks(state.weight) if state.weighted else state.weight
        if weight == 0:
            ctx.explain("every micro-batch of the window has weight 0")
            ctx.held("empty")
            return None, self.drop_window(state)
        if ctx.has_loss or ctx.micro.flushing:
            ctx.micro.close(self._loss(state), state.scaled)
        return self._reduced(state, weight), self.drop_window(state)

    def _loss(self, state: AccumulateState) -> Any:
        """The loss of a window that closes, of what it has on this rank."""
        if self.reduce == "sum":
            return state.loss * (state.reference if state.weighted else 1.0)
        return state.loss / (1.0 if state.weight == 0 else state.weight)

    def _reduced(self, state: AccumulateState, weight: float) -> Tensors:
        """The mean or sum of a window that closes, of that weight."""
        if self.reduce == "sum":
            return state.window if state.reference == 1.0 else state.window * state.reference
        if state.weighted:
            return state.window / weight
        return state.window if state.micro == state.size else state.window * (state.size / state.micro)

    @staticmethod
    def _check_alike(state: AccumulateState, weighted: bool, scaled: bool) -> None:
        """Refuse a micro-batch that cannot be summed with those in the open window."""
        if state.micro and state.weighted != weighted:
            raise ValueError(
                "accumulate: in one window all micro-batches must have a weight, or none. Pass it to each."
            )
        if state.micro and state.scaled != scaled:
            raise RuntimeError(
                "accumulate: the losses of one window must all go through updater.backward or update, or none. "
                "updater.zero_grad() drops the open window."
            )

    def added(self, g: Tensors, state: AccumulateState, ctx: Context) -> AccumulateState:
        micro = ctx.micro
        weight, scaled = micro.weight, micro.scaled
        if weight is not None and not scaled and micro.averaged_over_ranks:
            raise ValueError(
                "accumulate: weight= under DDP or FSDP2 needs accumulate in the outermost chain: in a branch the "
                "gradients are averaged over ranks before the weight is known. Move it there, or multiply the loss "
                "yourself."
            )
        self._check_alike(state, weight is not None, scaled)
        reference = self._reference(state, ctx)
        if not micro.summed:
            state = state.replace(window=_beside(g, state.window))
        state = self._relative(state, reference)
        window = g
        if not micro.summed:  # else autograd added this micro-batch to the window where it lies, in .grad
            if not scaled:
                g = g * self._factor(state, ctx)
            if self.dtype is not None:
                g = g.to(self.dtype)
            window = state.window.overlay(g).overlay(g + state.window)
        share = 1.0 if weight is None else weight / reference
        loss = state.loss
        if ctx.has_loss and weight != 0:  # whose loss may be NaN
            loss = loss + (ctx.loss if weight is None else share * ctx.loss)
        total, size = state.weight + share, self.size(state)
        return AccumulateState(window, state.micro + 1, size, total, scaled, loss, weight is not None, reference)


def _beside(g: Tensors, window: Tensors) -> Tensors:
    """The window as Tensors of the kind that the updates are, even where those have no entries, as in a flush."""
    return g.select(()).overlay(window)
