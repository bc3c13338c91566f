"""The moving average of the updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction


class EmaState(State):
    """What ema remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"ema": MEAN}

    count: Count  # t, updates of each parameter so far
    ema: Tensors  # m, the mean


class ema(Transform):
    """Replace the updates by their exponential moving average.

        m_t = decay m_(t-1) + (1 - decay) g
        u   = m_t / (1 - decay^t)      (m_t itself with debias=False)

    A mean, where `trace` is a sum: under a steady gradient u is that gradient, whatever the decay. `t` counts the
    updates of each parameter. That of the weights is `average_params`.

    Args:
        decay: how much of the mean stays, in [0, 1).
        debias: whether the mean is corrected for its start at zero.
        accumulator_dtype: the dtype `ema` is stored in; None for the parameter's, and float32 for float16. This
            update uses it unrounded.

    Shapes: elementwise, any.
    State: `count`; `ema`, one tensor per parameter: 4 bytes per float32 element.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.ema; with debias=False torch.optim.SGD's momentum with dampening equal to it, but that torch's begins
        at the first gradient.

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.ema(0.9), gch.scale_by_learning_rate(0.1))
    chain(ema(0.9), scale_by_learning_rate(0.1))
    """

    descends = False
    per_parameter = True

    decay: Annotated[Hyper, "[0, 1)"]
    debias: bool = True
    accumulator_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> EmaState:
        return EmaState(Count(params.index), params.slot(self.accumulator_dtype))

    def update(self, g: Tensors, state: EmaState, ctx: Context) -> tuple[Tensors, EmaState]:
        count = state.count.tick(g)
        mean = state.ema.lerp(g, 1 - self.decay)
        return (mean / correction(self.decay, count) if self.debias else mean), EmaState(count, mean)
