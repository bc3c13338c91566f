"""The sign of an interpolated momentum: Lion."""

from __future__ import annotations

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class LionState(State):
    """What scale_by_lion remembers."""

    mu: Tensors  # m, the mean gradient


class scale_by_lion(Transform):
    """Replace the updates by the sign of a mean of gradient and momentum.

        u   = sign(b1 m_(t-1) + (1 - b1) g)
        m_t = b2 m_(t-1) + (1 - b2) g

    Every element moves by exactly the learning rate, so it wants one 3 to 10 times smaller than Adam's, and a weight
    decay larger by as much. Half of Adam's memory. torch's sign of NaN is 0: one NaN gradient stays in the momentum and
    stops that element silently, so put `skip_nonfinite` or `amp_scale` before it.

    Args:
        b1: how much of the momentum counts in the direction, in [0, 1).
        b2: how much of the momentum stays, in [0, 1).
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: elementwise, any; complex parameters in their real and imaginary parts.
    State: `mu`, one tensor per parameter: 4 bytes per float32 element.
    Units: gradient → dimensionless, -1, 0 or 1: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_lion with its default mode. torch has none.
    Paper: Chen et al., 2023, Algorithm 2, https://arxiv.org/abs/2302.06675

    >>> import gradchain as gch
    >>> gch.scale_by_lion(b1=0.95, b2=0.98)
    scale_by_lion(b1=0.95, b2=0.98)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.99, "[0, 1)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> LionState:
        return LionState(params.slot(self.mu_dtype))

    def update(self, g: Tensors, state: LionState, ctx: Context) -> tuple[Tensors, LionState]:
        u = state.mu.lerp(g, 1 - self.b1).sign()
        mu = state.mu.lerp(g, 1 - self.b2)
        return u, LionState(mu)
