"""Divide the mean gradient by how far gradients stray from it: AdaBelief."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class BeliefState(State):
    """What scale_by_belief remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # s, the mean squared deviation from it


class scale_by_belief(Transform):
    """Divide the mean gradient by the root mean square of the gradient's deviation from it.

        m_t = b1 m_(t-1) + (1 - b1) g
        s_t = b2 s_(t-1) + (1 - b2) (g - m_t)² + eps_root
        u   = (m_t / (1 - b1^t)) / (sqrt(s_t / (1 - b2^t)) + eps)

    A gradient that is as expected makes a large step, one that is not a small one. `eps_root` is added to what is
    remembered, at every update: in the long run it is eps_root / (1 - b2) inside the root. With `nesterov` the
    numerator looks one step ahead, as in `scale_by_adam`.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared deviation stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added to the mean squared deviation, in units of the squared gradient; at least 0.
        nesterov: whether the numerator looks one step ahead.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless; a steady gradient makes steps far larger than 1.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_belief; torch_optimizer.AdaBelief, and pytorch_optimizer's, after scale_by_learning_rate,
        with rectify=False: their eps is both of ours.
    Paper: Zhuang et al., 2020, Algorithm 2, https://arxiv.org/abs/2010.07468

    >>> import gradchain as gch
    >>> gch.rules.scale_by_belief(b2=0.99)
    scale_by_belief(b2=0.99)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-16, "[0, inf)")
    eps_root: Hyper = Hyper(1e-16, "[0, inf)")
    nesterov: bool = False

    def init(self, params: Tensors) -> BeliefState:
        return BeliefState(Count(params.index), params.slot(), params.slow_slot())

    def update(self, g: Tensors, state: BeliefState, ctx: Context) -> tuple[Tensors, BeliefState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        stray = g - mu
        nu = self.b2 * state.nu + (1 - self.b2) * stray * stray + self.eps_root
        first, second = correction(self.b1, count), correction(self.b2, count)
        ahead = mu
        if self.nesterov:
            ahead = self.b1 * first / (1 - self.b1 ** (count + 1)) * mu + (1 - self.b1) * g
        root = nu.sqrt() + second**0.5 * self.eps
        return ahead / (root * (first / second**0.5)), BeliefState(count, mu, nu)


@answering
def adabelief(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-16,
    eps_root: Value = 1e-16,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    nesterov: bool = False,
) -> chain:
    """AdaBelief with decoupled decay of what `mask` selects: Zhuang et al., 2020, https://arxiv.org/abs/2010.07468.

    Equals optax.adabelief, and torch_optimizer.AdaBelief with its rectify=False. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.rules.adabelief(1e-3)
    chain(scale_by_belief(), scale_by_learning_rate(0.001))
    """
    return parts.descent(scale_by_belief(b1, b2, eps, eps_root, nesterov), learning_rate, weight_decay, mask)
