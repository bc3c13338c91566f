"""Divide by the root of a sum of squares: Adagrad's direction."""

from __future__ import annotations

from typing import Annotated

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms.rms import started


class RssState(State):
    """What scale_by_rss remembers."""

    count: Count  # t, updates of each parameter so far
    sum_of_squares: Annotated[Tensors, "[0, inf] or NaN"]  # s


class scale_by_rss(Transform):
    """Divide the updates by the root of the sum of all their squares: Adagrad.

        s_t = s_(t-1) + g²
        u   = g / (sqrt(s_t) + eps) / (1 + lr_decay (t - 1))
        (with eps_in_sqrt: g / sqrt(s_t + eps), and 0 where s_t + eps is 0)

    Nothing is forgotten: steps become shorter with every gradient, as 1 / sqrt(t) where gradients are alike. Elements
    with few gradients keep long steps, so it is for sparse ones. `t` counts the updates of each parameter.

    Args:
        initial_accumulator_value: what the sum starts at, at least 0; Optax has 0.1. It is read once.
        eps: added to the root in units of the gradient, or with `eps_in_sqrt` inside it in those of its square; at
            least 0.
        eps_in_sqrt: whether `eps` is added inside the root, as in Optax.
        lr_decay: how fast steps become shorter beside that, at least 0.
        dtype: the dtype `sum_of_squares` is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `sum_of_squares`, one tensor per parameter: 4 bytes per float32 element.
    Units: gradient → dimensionless, at most 1 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.Adagrad after scale_by_learning_rate; optax.scale_by_rss with eps_in_sqrt=True, and its
        defaults 0.1 and 1e-7.
    Paper: Duchi et al., 2011, https://jmlr.org/papers/v12/duchi11a.html

    >>> import gradchain as gch
    >>> gch.scale_by_rss(0.1, eps=1e-7, eps_in_sqrt=True)
    scale_by_rss(initial_accumulator_value=0.1, eps=1e-07, eps_in_sqrt=True)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    read_once = uniform = frozenset({"initial_accumulator_value"})

    initial_accumulator_value: Hyper = Hyper(0.0, "[0, inf)")
    eps: Hyper = Hyper(1e-10, "[0, inf)")
    eps_in_sqrt: bool = False
    lr_decay: Hyper = Hyper(0.0, "[0, inf)")
    dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> RssState:
        return RssState(Count(params.index), started(params.slow_slot(self.dtype), self.initial_accumulator_value))

    def update(self, g: Tensors, state: RssState, ctx: Context) -> tuple[Tensors, RssState]:
        count = state.count.tick(g)
        total = state.sum_of_squares + g * g
        slower = 1 + self.lr_decay * (count - 1)
        if self.eps_in_sqrt:
            square = total + self.eps
            u = (g / (square.sqrt() * slower)).where(square > 0, 0.0)
        else:
            u = g / ((total.sqrt() + self.eps) * slower)
        return u, RssState(count, total)
