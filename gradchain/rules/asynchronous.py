"""Divide the gradient by how far those before it strayed from their mean: ACProp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, maximum, where
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules.belief import BeliefState
from gradchain.selectors import SelectorLike
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class scale_by_acprop(Transform):
    """Divide the gradient by the root mean square deviation from the mean, as both were known before it.

        u   = g / (sqrt(s_(t-1) / (1 - b2^(t-1))) + eps)      (g / (1 + eps) at the first update)
        s_t = b2 s_(t-1) + (1 - b2) (g - m_(t-1))² + eps_root
        m_t = b1 m_(t-1) + (1 - b1) g

    AdaBelief, asynchronous: a gradient is not divided by itself, and is not averaged. The first update is the gradient
    itself, in its own units, and the second is divided by one gradient only: warm the learning rate up.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared deviation stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added to the mean squared deviation, in units of the squared gradient; at least 0.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, from the second update on.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_acprop.
    Paper: Zhuang et al., 2021, Algorithm 2, https://arxiv.org/abs/2110.05454

    >>> import gradchain as gch
    >>> gch.rules.scale_by_acprop(b2=0.99)
    scale_by_acprop(b2=0.99)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    eps: Hyper = Hyper(1e-16, "[0, inf)")
    eps_root: Hyper = Hyper(1e-16, "[0, inf)")

    def init(self, params: Tensors) -> BeliefState:
        return BeliefState(Count(params.index), params.slot(), params.slow_slot())

    def update(self, g: Tensors, state: BeliefState, ctx: Context) -> tuple[Tensors, BeliefState]:
        count = state.count.tick(g)
        later = count > 1
        correction = where(later, 1 - self.b2 ** maximum(count - 1, 0), 1.0)
        root = state.nu.sqrt() / correction**0.5 + (self.eps + where(later, 0.0, 1.0))  # at first nu is 0
        stray = g - state.mu
        nu = self.b2 * state.nu + (1 - self.b2) * stray * stray + self.eps_root
        return g / root, BeliefState(count, state.mu.lerp(g, 1 - self.b1), nu)


@answering
def acprop(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-16,
    eps_root: Value = 1e-16,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """ACProp with decoupled decay of what `mask` selects: Zhuang et al., 2021, https://arxiv.org/abs/2110.05454.

    Equals optax.contrib.acprop. The number 0 leaves the decay out.

    >>> import gradchain as gch
    >>> gch.rules.acprop(1e-3)
    chain(scale_by_acprop(), scale_by_learning_rate(0.001))
    """
    return parts.descent(scale_by_acprop(b1, b2, eps, eps_root), learning_rate, weight_decay, mask)
