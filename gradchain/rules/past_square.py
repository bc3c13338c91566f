"""Normalise the gradient by what was known before it, then average: ADOPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class AdoptState(State):
    """What scale_by_adopt remembers."""

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean normalised gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class scale_by_adopt(Transform):
    """Divide the gradient by the root mean square of those before it, clip that, and average.

        n   = clip(g / max(sqrt(v_(t-1)), eps), ±(t - 1)^clip_exponent)
        m_t = b1 m_(t-1) + (1 - b1) n
        v_t = b2 v_(t-1) + (1 - b2) g²
        u   = m_t

    The first update makes no step: v_1 = g² and m_1 = 0. So n at the second is clipped to ±1, for any clip_exponent.
    That a gradient is not divided by itself makes the rule converge for any b2. `t` counts the updates of each
    parameter.

    Args:
        b1: how much of the mean stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: the least that is divided by, in units of the gradient; at least 0.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        nesterov: whether the result looks one step ahead: b1 m_t + (1 - b1) n.
        use_clipping: whether n is clipped. The authors' first version did not.
        clip_exponent: how fast the bound on n grows, at least 0.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, about 1 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_adopt, whose clip_value_fn is t ** 0.25 by default. timm's AdoptOptimizer has an
        exponent of 0.333 by default; pytorch_optimizer's ADOPT clips by the number of this update, one more.
    Paper: Taniguchi et al., 2024, Algorithm 2, https://arxiv.org/abs/2411.02853

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adopt(b2=0.999)
    scale_by_adopt(b2=0.999)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.9999, "[0, 1)")
    eps: Hyper = Hyper(1e-6, "[0, inf)")
    mu_dtype: torch.dtype | None = None
    nesterov: bool = False
    use_clipping: bool = True
    clip_exponent: Hyper = Hyper(0.25, "[0, inf)")

    def init(self, params: Tensors) -> AdoptState:
        return AdoptState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot())

    def update(self, g: Tensors, state: AdoptState, ctx: Context) -> tuple[Tensors, AdoptState]:
        count = state.count.tick(g)
        later = count > 1
        n = g / state.nu.sqrt().maximum(where(later, self.eps, 1.0))  # at first v is 0, and n is not used
        if self.use_clipping:
            bound = where(later, count - 1, 0.0) ** self.clip_exponent
            n = n.clamp(-bound, bound)
        new = where(later, 1 - self.b1, 0.0)
        mu = state.mu.lerp(n, new)
        b2 = where(later, self.b2, 0.0)
        nu = b2 * state.nu + (1 - b2) * g * g
        return (mu.lerp(n, new) if self.nesterov else mu), AdoptState(count, mu, nu)


@answering
def adopt(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.9999,
    eps: Value = 1e-6,
    mu_dtype: torch.dtype | None = None,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_exponent: Value = 0.25,
) -> chain:
    """ADOPT with decoupled decay of what `mask` selects: Taniguchi et al., 2024, https://arxiv.org/abs/2411.02853.

    Equals optax.contrib.adopt, which has no decay. The number 0 leaves it out.

    >>> import gradchain as gch
    >>> gch.rules.adopt(1e-3)
    chain(scale_by_adopt(), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adopt(b1, b2, eps, mu_dtype, nesterov, use_clipping, clip_exponent)
    return parts.descent(direction, learning_rate, weight_decay, mask)
