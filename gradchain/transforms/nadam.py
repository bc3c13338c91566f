"""Adam that looks one step ahead, with a momentum that grows: NAdam's direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, Scalars
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction


class NadamState(State):
    """What scale_by_nadam remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu_product: Annotated[Scalars, "[0, 1]"]  # Π, of the momenta of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class scale_by_nadam(Transform):
    """Divide a mean gradient that looks one step ahead by its root mean square; the momentum grows to b1.

        μ_t = b1 (1 - 0.96^(t momentum_decay) / 2),  Π_t = μ_1 μ_2 … μ_t
        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) g²
        u   = (μ_(t+1) m_t / (1 - Π_t μ_(t+1)) + (1 - μ_t) g / (1 - Π_t)) / (sqrt(v_t / (1 - b2^t)) + eps)

    `momentum_decay` is how fast that is: half of the way takes 17 / momentum_decay updates, 4200 by default. With
    `math.inf` the momentum is b1 from the beginning, and the rule is `scale_by_adam(nesterov=True)`. `t` counts the
    updates of each parameter, and the product is taken in float64.

    Args:
        b1: how much of the mean gradient stays, and what the momentum grows to, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        momentum_decay: how fast the momentum grows, in [0, inf]; 0 leaves it at b1 / 2.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        nu_dtype: the dtype `nu` is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `mu_product`, a number per parameter; `mu` and `nu`, two tensors per parameter: 8 bytes per float32
        element, 6 per bfloat16 one.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.NAdam after scale_by_learning_rate, which keeps its product in float32 unless torch's default
        dtype is float64; optax.scale_by_adam(nesterov=True) with momentum_decay=math.inf.
    Paper: Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ

    >>> import gradchain as gch
    >>> gch.rules.scale_by_nadam(momentum_decay=0.01)
    scale_by_nadam(momentum_decay=0.01)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    momentum_decay: Hyper = Hyper(4e-3, "[0, inf]")
    mu_dtype: torch.dtype | None = None
    nu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> NadamState:
        product = Scalars.of(params.index, 1.0)
        return NadamState(Count(params.index), product, params.slot(self.mu_dtype), params.slow_slot(self.nu_dtype))

    def update(self, g: Tensors, state: NadamState, ctx: Context) -> tuple[Tensors, NadamState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        now, then = self._momentum(count), self._momentum(count + 1)
        product = state.mu_product.select(g) * now
        second = correction(self.b2, count)
        ahead = then / (1 - product * then) * mu + (1 - now) / (1 - product) * g
        return ahead / (nu.sqrt() / second**0.5 + self.eps), NadamState(count, product, mu, nu)

    def _momentum(self, t: Any) -> Any:
        return self.b1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))
