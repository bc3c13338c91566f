"""Divide the mean gradient by the largest of late: Adamax's direction."""

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


class AdamaxState(State):
    """What scale_by_adamax remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # n, the largest gradient, which fades


class scale_by_adamax(Transform):
    """Divide the mean gradient by a largest gradient that fades: Adam with the infinity norm.

        m_t = b1 m_(t-1) + (1 - b1) g
        n_t = max(b2 n_(t-1), |g| + eps)
        u   = m_t / ((1 - b1^t) n_t)

    Elements of u are at most about 1. `t` counts the updates of each parameter.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the largest gradient stays, in [0, 1).
        eps: added to each gradient's size, in its units; at least 0. With 0 an element that never had a gradient is
            NaN.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter: 8 bytes per float32 element, 6 per bfloat16 one.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.Adamax after scale_by_learning_rate; optax.scale_by_adamax.
    Paper: Kingma and Ba, 2014, Algorithm 2, https://arxiv.org/abs/1412.6980

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adamax(b2=0.99)
    scale_by_adamax(b2=0.99)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> AdamaxState:
        return AdamaxState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot())

    def update(self, g: Tensors, state: AdamaxState, ctx: Context) -> tuple[Tensors, AdamaxState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = (self.b2 * state.nu).maximum(g.abs() + self.eps)
        return mu / (nu * (1 - self.b1**count)), AdamaxState(count, mu, nu)
