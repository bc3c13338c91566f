"""Momentum: a decaying sum of the gradients."""

from __future__ import annotations

from typing import Annotated

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class TraceState(State):
    """What trace remembers."""

    trace: Tensors  # t, the decaying sum of the gradients


class trace(Transform):
    """Replace the updates by their decaying sum: momentum.

        t_i = g + decay t_(i-1)
        u   = t_i      (with nesterov: g + decay t_i)

    A sum, not a mean: under a steady gradient u grows to g / (1 - decay), so a larger decay is a larger step. Before
    `scale_by_learning_rate` a change of the learning rate acts at once, as in torch; after it, as in LARS, earlier
    steps keep the rate they were made with.

    Args:
        decay: how much of the sum stays, in [0, 1).
        nesterov: whether the result looks one step ahead.
        accumulator_dtype: the dtype `trace` is stored in; None for the parameter's, and float32 for float16. This
            update uses it unrounded.

    Shapes: elementwise, any.
    State: `trace`, one tensor per parameter: 4 bytes per float32 element.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.trace; torch.optim.SGD's momentum with dampening=0.
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

    def init(self, params: Tensors) -> TraceState:
        return TraceState(params.slot(self.accumulator_dtype))

    def update(self, g: Tensors, state: TraceState, ctx: Context) -> tuple[Tensors, TraceState]:
        t = g + self.decay * state.trace
        return (g + self.decay * t if self.nesterov else t), TraceState(t)
