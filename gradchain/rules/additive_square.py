"""Divide the mean gradient by the root of a mean square that moves by additions: Yogi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.transforms._correction import correction
from gradchain.transforms.rms import started
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class YogiState(State):
    """What scale_by_yogi remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, what stands for the mean squared gradient


class scale_by_yogi(Transform):
    """Divide the mean gradient by the root of a mean square that grows and falls by no more than a squared gradient.

        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = v_(t-1) - (1 - b2) sign(v_(t-1) - g²) g²
        u   = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)

    Where gradients become small, Adam's mean square forgets the large ones at once and its steps grow; here it falls
    by small gradients slowly. m and v start at `initial_accumulator_value`, m too, as in Optax: the first steps go
    down a little where there is no gradient.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of what is new does not count, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0. It is large: 1e-3.
        eps_root: added inside the root, in units of the squared gradient; at least 0.
        initial_accumulator_value: what m and v are before the first update, at least 0; read then only.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, about 1 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_yogi; torch_optimizer.Yogi, and pytorch_optimizer's, after scale_by_learning_rate.
    Paper: Zaheer et al., 2018, Algorithm 2,
        https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization

    >>> import gradchain as gch
    >>> gch.rules.scale_by_yogi(eps=1e-2)
    scale_by_yogi(eps=0.01)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    read_once = uniform = frozenset({"initial_accumulator_value"})

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-3, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    initial_accumulator_value: Hyper = Hyper(1e-6, "[0, inf)")

    def init(self, params: Tensors) -> YogiState:
        slot, slow = params.slot(), params.slow_slot()
        start = self.initial_accumulator_value
        return YogiState(Count(params.index), started(slot, start), started(slow, start))

    def update(self, g: Tensors, state: YogiState, ctx: Context) -> tuple[Tensors, YogiState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = state.nu - (state.nu - g * g).sign() * ((1 - self.b2) * g * g)
        first, second = correction(self.b1, count), correction(self.b2, count)
        root = (nu + second * self.eps_root).sqrt() + second**0.5 * self.eps
        return mu / (root * (first / second**0.5)), YogiState(count, mu, nu)


@answering
def yogi(learning_rate: Value, b1: Value = 0.9, b2: Value = 0.999, eps: Value = 1e-3) -> chain:
    """Yogi, without weight decay: Zaheer et al., 2018.

    https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization. Equals optax.yogi.

    >>> import gradchain as gch
    >>> gch.rules.yogi(1e-2)
    chain(scale_by_yogi(), scale_by_learning_rate(0.01))
    """
    return parts.descent(scale_by_yogi(b1, b2, eps), learning_rate)
