"""Momentum: a decaying sum of the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import SUM, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class TraceState(State):
    """What trace remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"trace": SUM}

    trace: Tensors  # t, the decaying sum of the gradients


class DampedTraceState(TraceState):
    """What trace remembers where it is dampened."""

    count: Count  # i, updates of each parameter so far


class trace(Transform):
    """Replace the updates by their decaying sum: momentum.

        t_i = g + decay t_(i-1)      (with dampening: (1 - dampening) g + decay t_(i-1), but t_1 = g)
        u   = t_i      (with nesterov: g + decay t_i)

    A sum, not a mean: under a steady gradient u grows to g / (1 - decay), so a larger decay is a larger step. Before
    `scale_by_learning_rate` a change of the learning rate acts at once, as in torch; after it, as in LARS, earlier
    steps keep the rate they were made with.

    Args:
        decay: how much of the sum stays, in [0, 1).
        nesterov: whether the result looks one step ahead.
        accumulator_dtype: the dtype `trace` is stored in; None for the parameter's, and float32 for float16. This
            update uses it unrounded.
        dampening: how much of each gradient but the first of a parameter is left out, in [0, 1]; with dampening =
            decay the sum is a mean. Where it is the number 0 nothing is counted, and there is nothing to override.

    Shapes: elementwise, any.
    State: `trace`, one tensor per parameter: 4 bytes per float32 element; with dampening also `count`.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.trace without dampening; torch.optim.SGD's momentum, which has no dampening with nesterov.
    Paper: Polyak, 1964, https://doi.org/10.1016/0041-5553(64)90137-5; nesterov as in Sutskever et al., 2013,
        https://proceedings.mlr.press/v28/sutskever13.html

    >>> import gradchain as gch
    >>> gch.trace(0.9, nesterov=True)
    trace(0.9, nesterov=True)
    """

    descends = False
    per_parameter = True

    decay: Annotated[Hyper, "[0, 1)"]
    nesterov: bool = False
    accumulator_dtype: torch.dtype | None = None
    dampening: Hyper = Hyper(0.0, "[0, 1]")

    @property
    def _is_damped(self) -> bool:
        given = self.__dict__["dampening"]
        return not isinstance(given, (int, float)) or given != 0

    def check(self) -> None:
        if not self._is_damped:
            self.__dict__["hypers"] = {name: self.hypers[name] for name in self.hypers if name != "dampening"}

    def written(self) -> dict[str, Any]:
        """Its fields; `dampening` only where it is, as configs of before there was any have it."""
        fields = super().written()
        return fields if self._is_damped else {name: fields[name] for name in fields if name != "dampening"}

    def init(self, params: Tensors) -> TraceState:
        slot = params.slot(self.accumulator_dtype)
        return DampedTraceState(slot, Count(params.index)) if self._is_damped else TraceState(slot)

    def update(self, g: Tensors, state: TraceState, ctx: Context) -> tuple[Tensors, TraceState]:
        if isinstance(state, DampedTraceState):
            return self._damped(g, state)
        t = g + self.decay * state.trace
        return (g + self.decay * t if self.nesterov else t), TraceState(t)

    def _damped(self, g: Tensors, state: DampedTraceState) -> tuple[Tensors, DampedTraceState]:
        count = state.count.tick(g)
        t = where(count == 1, 1.0, 1 - self.dampening) * g + self.decay * state.trace
        return (g + self.decay * t if self.nesterov else t), DampedTraceState(t, count)
