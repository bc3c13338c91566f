"""Normalise the gradient first, then average: LaProp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class LapropState(State):
    """What scale_by_laprop remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean normalised gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # n, the mean squared gradient


class scale_by_laprop(Transform):
    """Divide the gradient by its root mean square, and average the result.

        n_t = b2 n_(t-1) + (1 - b2) g²
        m_t = b1 m_(t-1) + (1 - b1) g / (sqrt(n_t / (1 - b2^t)) + eps)
        u   = m_t / (1 - b1^t)

    Adam averages first and divides the mean by what is known at its end; here each gradient is divided by what was
    known when it came, so b1 may be close to 1 with any b2.

    Args:
        b1: how much of the mean stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, about 1 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: a twin from the paper; pytorch_optimizer's LaProp after scale_by_learning_rate, but that it adds 1e-15 to
        the mean square. Its means hold the learning rate of their time: under a schedule it is another rule.
    Paper: Ziyin et al., 2020, Algorithm 1, https://arxiv.org/abs/2002.04839

    >>> import gradchain as gch
    >>> gch.rules.scale_by_laprop(b2=0.99)
    scale_by_laprop(b2=0.99)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-15, "[0, inf)")

    def init(self, params: Tensors) -> LapropState:
        return LapropState(Count(params.index), params.slot(), params.slow_slot())

    def update(self, g: Tensors, state: LapropState, ctx: Context) -> tuple[Tensors, LapropState]:
        count = state.count.tick(g)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        second = correction(self.b2, count)
        n = g / ((nu.sqrt() + second**0.5 * self.eps) / second**0.5)
        mu = state.mu.lerp(n, 1 - self.b1)
        return mu / correction(self.b1, count), LapropState(count, mu, nu)


@answering
def laprop(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-15,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """LaProp with decoupled decay of what `mask` selects: Ziyin et al., 2020, https://arxiv.org/abs/2002.04839.

    The number 0 leaves the decay out. pytorch_optimizer's LaProp decays after its step.

    >>> import gradchain as gch
    >>> gch.rules.laprop(4e-4, weight_decay=0.1, mask=gch.min_ndim(2))
    chain(scale_by_laprop(), masked(add_decayed_weights(0.1), min_ndim(2)), scale_by_learning_rate(0.0004))
    """
    return parts.descent(scale_by_laprop(b1, b2, eps), learning_rate, weight_decay, mask)
