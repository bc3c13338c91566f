"""Adam that is momentum until the mean square is known well enough: RAdam's direction."""

from __future__ import annotations

from typing import Any

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, Scalar, maximum, sqrt, where
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction
from gradchain.transforms.adam import AdamState


class scale_by_radam(Transform):
    """Divide the mean gradient by its root mean square as far as that can be trusted; at first not at all.

        m_t = b1 m_(t-1) + (1 - b1) g,  m̂ = m_t / (1 - b1^t)
        v_t = b2 v_(t-1) + (1 - b2) g²
        ρ   = ρ_inf - 2 t b2^t / (1 - b2^t),  ρ_inf = 2 / (1 - b2) - 1
        u   = m̂ if ρ <= threshold, else
              m̂ sqrt((ρ - 4) (ρ - 2) ρ_inf / ((ρ_inf - 4) (ρ_inf - 2) ρ)) sqrt(1 - b2^t) / (sqrt(v_t) + eps)

    While ρ is small, in the first five updates by default, u is in units of the gradient: these steps are as long as
    those of plain momentum at this learning rate. It takes the place of a warm-up. `t` counts the updates of each
    parameter.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root of the corrected mean square, in its units; at least 0.
        threshold: how large ρ, the number of gradients that the mean square stands on, must be; above 4.
        nesterov: whether the numerator looks one step ahead, as that of `scale_by_adam`.
        eps_hat: True adds `eps` to the root of v_t as it is, as torch does; False to that of v_t / (1 - b2^t), as
            Optax does.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        nu_dtype: the dtype `nu` is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter: 8 bytes per float32 element, 6 per bfloat16 one.
    Units: gradient → dimensionless; at first unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.RAdam after scale_by_learning_rate; optax.scale_by_radam with eps_hat=False.
    Paper: Liu et al., 2019, Algorithm 2, https://arxiv.org/abs/1908.03265

    >>> import gradchain as gch
    >>> gch.rules.scale_by_radam(b2=0.99)
    scale_by_radam(b2=0.99)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    threshold: Hyper = Hyper(5.0, "(4, inf)")
    nesterov: bool = False
    eps_hat: bool = True
    mu_dtype: torch.dtype | None = None
    nu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> AdamState:
        return AdamState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot(self.nu_dtype))

    def update(self, g: Tensors, state: AdamState, ctx: Context) -> tuple[Tensors, AdamState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        first, second = 1 - self.b1**count, correction(self.b2, count)
        ahead = mu
        if self.nesterov:
            ahead = self.b1 * first / (1 - self.b1 ** (count + 1)) * mu + (1 - self.b1) * g
        trusted, part = rectified(self.b2, count, self.threshold)
        root = (nu + second * self.eps_root).sqrt() + (self.eps if self.eps_hat else second**0.5 * self.eps)
        factor = where(trusted, part * second**0.5, 1.0)
        return ahead / (where(trusted, root, 1.0) * (first / factor)), AdamState(count, mu, nu)


def rectified(b2: Scalar, count: Count, threshold: Scalar) -> tuple[Any, Any]:
    """Whether a mean square of so few gradients is trusted, and how much of a step it is good for: Algorithm 2.

    Args:
        b2: how much of the mean square stays.
        count: of how many gradients it is.
        threshold: how long the average must be for that, at least 4.
    """
    full = 2 / (1 - b2) - 1
    length = full - 2 * count * b2**count / correction(b2, count)
    trusted = length > threshold
    # where it is not trusted nothing of it is used, and it must not raise
    length = maximum(length, threshold)
    full = maximum(full, length)
    return trusted, sqrt((length - 4) * (length - 2) * full / ((full - 4) * (full - 2) * length))
