"""Divide the mean gradient by its root mean square: the Adam family's direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction


class AdamState(State):
    """What scale_by_adam remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class scale_by_adam(Transform):
    """Divide the mean gradient by its root mean square, both corrected for their start at zero.

        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) g²
        u   = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)

    With `nesterov`, the numerator looks one step ahead: b1 m_t / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t).
    `t` counts the updates of each parameter, so one that sat out keeps its own correction.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root, in units of the squared gradient; at least 0. Above 0 it makes the rule
            differentiable where the gradient is zero.
        nesterov: whether the numerator looks one step ahead (NAdam without its momentum schedule).
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16. This update uses it
            unrounded.
        nu_dtype: the dtype `nu` is stored in; None for the parameter's, and float32 for float16 and bfloat16, in which
            it would vanish or stand still.
        eps_hat: True adds `eps` to the root of v_t as it is, the paper's ε̂, as torch.optim.SparseAdam does.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter: 8 bytes per float32 element, 6 per bfloat16 one.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_adam; torch.optim.Adam after scale_by_learning_rate, and SparseAdam with eps_hat=True.
        torch's NAdam, which schedules its momentum, is `scale_by_nadam`; its amsgrad is `scale_by_amsgrad`.
    Paper: Kingma and Ba, 2014, Algorithm 1, https://arxiv.org/abs/1412.6980; nesterov: Dozat, 2016,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ

    >>> import gradchain as gch
    >>> gch.scale_by_adam(b1=0.95)
    scale_by_adam(b1=0.95)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    nesterov: bool = False
    mu_dtype: torch.dtype | None = None
    nu_dtype: torch.dtype | None = None
    eps_hat: bool = False

    def written(self) -> dict[str, Any]:
        """Its fields; `eps_hat` only where it is, as configs of before there was any have it."""
        fields = super().written()
        return fields if self.eps_hat else {name: fields[name] for name in fields if name != "eps_hat"}

    def init(self, params: Tensors) -> AdamState:
        return AdamState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot(self.nu_dtype))

    def update(self, g: Tensors, state: AdamState, ctx: Context) -> tuple[Tensors, AdamState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g  # in this order: g * g alone would sooner be infinite
        # the corrections are one number for all elements, of which each divides once: nu over one might be infinite
        first, second = 1 - self.b1**count, correction(self.b2, count)
        ahead = mu
        if self.nesterov:
            ahead = self.b1 * first / (1 - self.b1 ** (count + 1)) * mu + (1 - self.b1) * g
        root = (nu + second * self.eps_root).sqrt() + (self.eps if self.eps_hat else second**0.5 * self.eps)
        return ahead / (root * (first / second**0.5)), AdamState(count, mu, nu)
