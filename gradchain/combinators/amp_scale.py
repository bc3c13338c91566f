"""Scale the loss so that float16 gradients do not underflow, and skip the update when they overflow."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import Gate
from gradchain.core.scalars import maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors


class AmpState(State):
    """What amp_scale remembers."""

    scale: Annotated[float, "(0, inf)"]  # what the loss is multiplied by
    # updates in a row without overflow since the scale last changed
    growth_tracker: Annotated[int, "integer [0, inf)"] = 0


class amp_scale(Gate):
    """Multiply the loss by a scale before backward, and divide the gradients by it; hold the chain on overflow.

        loss ← scale · loss;   u = g / scale
        on inf or NaN in g:                   scale ← max(backoff_factor · scale, 2^-126), nothing is applied
        after growth_interval good updates:   scale ← growth_factor · scale

    It owns only the scale; the compute dtype is `bind(model, autocast=torch.float16)`. Where neither the autocast nor
    a parameter is float16 it does nothing, so that one recipe serves bfloat16 too. After `accumulate` it unscales once
    per window and one overflow drops the window; before it, only the micro-batch that overflowed is dropped. Clip
    after it: gradients before it are scaled. Gradients that did not come from `updater.backward` are true ones: they
    are not unscaled. What a link evaluates, as `sam` does, passes it too, before or after it: an overflow there is one.
    2^-126 is float32's smallest normal number, of which one over it is finite too; a gradient that overflows under that
    is infinite itself.

    Args:
        init_scale: the first scale, above 0; 2^-126 where it is less.
        growth_factor: above 1.
        backoff_factor: in (0, 1).
        growth_interval: good updates in a row before the scale grows, an integer of at least 1.
        dynamic: False keeps the scale as it is; an overflow still skips the update.
        always: scale whatever the dtypes.

    State: `scale` and `growth_tracker`, two numbers.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.amp.GradScaler, step by step where the factors are powers of 2, down to the least scale: GradScaler
        goes on to 0. It keeps its scale in float32, and this is a float64 number: other factors are rounded there.
    Paper: Micikevicius et al., 2017, section 3.2, https://arxiv.org/abs/1710.03740

    >>> import gradchain as gch
    >>> gch.amp_scale(growth_interval=1000)
    amp_scale(growth_interval=1000)
    """

    descends = False
    role = "unscale"
    holds = "overflow"
    multiplies_loss = True
    factor_holds = True
    read_once = frozenset({"init_scale"})
    uniform = frozenset({"init_scale", "growth_factor", "backoff_factor", "growth_interval"})

    init_scale: Hyper = Hyper(65536.0, "(0, inf)")
    growth_factor: Hyper = Hyper(2.0, "(1, inf)")
    backoff_factor: Hyper = Hyper(0.5, "(0, 1)")
    growth_interval: Hyper = Hyper(2000, "integer [1, inf)")
    dynamic: bool = True
    always: bool = False

    def init(self, params: Tensors) -> AmpState:
        if callable(self.init_scale):
            raise TypeError("amp_scale: init_scale must be a number: it is read once, before the first update.")
        return AmpState(maximum(float(self.init_scale), _LEAST))

    def active(self, ctx: Context) -> bool:
        """Whether there is a float16 gradient to protect."""
        return (
            self.always
            or ctx.autocast == torch.float16
            or any(f.parameter.dtype == torch.float16 for f in ctx.params.index.facts)
        )

    def scale_loss(self, loss: Any, state: AmpState, ctx: Context) -> Any:
        return loss * self._scale(state) if self.active(ctx) else loss

    def update(self, g: Tensors, state: AmpState, ctx: Context) -> tuple[Tensors | None, AmpState]:
        if not self.active(ctx) or (ctx.micro.flushing and not len(g)):
            return g, state
        if not g.all_finite():
            return None, self.refused("the updates have inf or NaN", state, ctx)
        scale = self._scale(state)
        ctx.record("scale", scale)
        return (g * (1 / scale), self._adjusted(state, True)) if ctx.micro.scaled else (g, state)

    @staticmethod
    def _scale(state: AmpState) -> float:
        """The scale; a checkpoint may have one below the least."""
        return maximum(state.scale, _LEAST)  # type: ignore[no-any-return]  # a number, as these are

    def refused(self, why: str, state: AmpState, ctx: Context) -> AmpState:
        """The state after an overflow, in the updates or in what a link evaluated."""
        ctx.record("scale", self._scale(state))
        return self._adjusted(state, False) if ctx.micro.scaled else state

    def _adjusted(self, state: AmpState, finite: bool) -> AmpState:
        """The state after one update that did or did not overflow."""
        if not self.dynamic:
            return state
        if not finite:
            return AmpState(maximum(state.scale * self.backoff_factor, _LEAST))
        if state.growth_tracker + 1 < self.growth_interval:
            return AmpState(state.scale, state.growth_tracker + 1)
        grown = state.scale * self.growth_factor
        return AmpState(grown if _fits_float32(grown) else state.scale)


_LEAST = torch.finfo(torch.float32).tiny


def _fits_float32(value: float) -> bool:
    # GradScaler keeps its scale in float32 and does not grow it to infinity
    return value <= torch.finfo(torch.float32).max
