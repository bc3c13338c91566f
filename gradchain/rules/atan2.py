"""The angle between mean gradient and root mean square, in place of their quotient: Adam-atan2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class AdamAtan2State(State):
    """What scale_by_adam_atan2 remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class scale_by_adam_atan2(Transform):
    """Replace the updates by the angle of Adam's mean gradient over its root mean square.

        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) g²
        u   = a atan2(m_t / (1 - b1^t), b sqrt(v_t / (1 - b2^t)))

    No eps: gradients of any size make the same updates, and an element whose gradient is zero has an update of zero.
    The angle is bounded, where Adam's quotient is not: |u| ≤ a π / 2. At the defaults a step under a steady gradient
    is 1.27 π / 4, which is 1 to a quarter of a percent.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        a: factor on the angle, at least 0.
        b: factor on the root mean square, above 0: the larger, the nearer to Adam's quotient, a / b times it.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, at most a π / 2 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: a twin from the paper, where a = b = 1. adam-atan2-pytorch has the defaults here.
    Paper: Everett et al., 2024, Section 4.3, https://arxiv.org/abs/2407.05872

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adam_atan2(a=1.0)
    scale_by_adam_atan2(a=1.0)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    a: Hyper = Hyper(1.27, "[0, inf)")
    b: Hyper = Hyper(1.0, "(0, inf)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> AdamAtan2State:
        return AdamAtan2State(Count(params.index), params.slot(self.mu_dtype), params.slow_slot())

    def update(self, g: Tensors, state: AdamAtan2State, ctx: Context) -> tuple[Tensors, AdamAtan2State]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        first, second = correction(self.b1, count), correction(self.b2, count)
        u = self.a * mu.atan2(nu.sqrt() * (self.b * first / second**0.5))
        return u, AdamAtan2State(count, mu, nu)


@answering
def adam_atan2(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    a: Value = 1.27,
    b: Value = 1.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """Adam-atan2 with decoupled decay of what `mask` selects: Everett et al., 2024, https://arxiv.org/abs/2407.05872.

    The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.rules.adam_atan2(1e-3)
    chain(scale_by_adam_atan2(), scale_by_learning_rate(0.001))
    """
    return parts.descent(scale_by_adam_atan2(b1, b2, a, b, mu_dtype), learning_rate, weight_decay, mask)
