"""Part gradient, part mean gradient: quasi-hyperbolic momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class QhmState(State):
    """What scale_by_qhm remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    mu: Tensors  # m, the mean gradient


class scale_by_qhm(Transform):
    """Replace the updates by a weighted mean of the gradient and its moving average.

        m_t = decay m_(t-1) + (1 - decay) g
        u   = (1 - nu) g + nu m_t

    At nu = 0 it is gradient descent, at nu = 1 momentum, at nu = decay that of Nesterov; in between, a decay close to
    1 does not make the direction stale.

    Args:
        decay: how much of the mean stays, in [0, 1).
        nu: how much the mean counts, in [0, 1].

    Shapes: elementwise, any.
    State: `mu`, one tensor per parameter: 4 bytes per float32 element.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch_optimizer.QHM after scale_by_learning_rate, whose momentum is our decay.
    Paper: Ma and Yarats, 2018, Algorithm 1, https://arxiv.org/abs/1810.06801

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.scale_by_qhm(), gch.scale_by_learning_rate(1.0))
    chain(scale_by_qhm(), scale_by_learning_rate(1.0))
    """

    descends = False
    per_parameter = True

    decay: Hyper = Hyper(0.999, "[0, 1)")
    nu: Hyper = Hyper(0.7, "[0, 1]")

    def init(self, params: Tensors) -> QhmState:
        return QhmState(params.slot())

    def update(self, g: Tensors, state: QhmState, ctx: Context) -> tuple[Tensors, QhmState]:
        mu = state.mu.lerp(g, 1 - self.decay)
        return g.lerp(mu, self.nu), QhmState(mu)
