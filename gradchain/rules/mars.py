"""Reduce the variance of gradients by what the last step saw."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS


class CorrectState(State):
    """What correct_gradient remembers: the last gradient."""

    previous: Tensors


class correct_gradient(Transform):
    """Add a multiple of the change of the gradient, and bound each tensor's norm by 1: MARS, in front of any rule.

        c = g + gamma b1 / (1 - b1) (g - g_prev),  u = c / max(1, ‖c‖),  g_prev = 0 at first, the norm per tensor

    It is the approximate form, in which g_prev is of the last batch and the last weights. b1 is that of the rule
    behind it: `chain(correct_gradient(b1=0.95), scale_by_adam(0.95, 0.99), …)` is MARS-AdamW, before `scale_by_lion`
    it is MARS-Lion. Its authors leave vectors out: `masked(correct_gradient(), min_ndim(2))`. A parameter without a
    gradient keeps its last one.

    Args:
        gamma: how much of the change is added, at least 0.
        b1: the momentum of the rule behind it, in [0, 1).

    Shapes: any; one norm over each whole tensor.
    State: one tensor per parameter.
    Units: gradient, of norm 1 at most.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: in front of scale_by_adam pytorch_optimizer's MARS with betas (b1, b2), for matrices, and timm's Mars.
    Paper: Yuan et al., 2024, Algorithm 2, https://arxiv.org/abs/2411.10438

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.correct_gradient(), gch.scale_by_adam(0.95, 0.99), gch.scale_by_learning_rate(3e-3))
    chain(correct_gradient(), scale_by_adam(b1=0.95, b2=0.99), scale_by_learning_rate(0.003))
    """

    descends = False
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    gamma: Hyper = Hyper(0.025, "[0, inf)")
    b1: Hyper = Hyper(0.95, "[0, 1)")

    def init(self, params: Tensors) -> CorrectState:
        return CorrectState(params.slot())

    def update(self, g: Tensors, state: CorrectState, ctx: Context) -> tuple[Tensors, CorrectState]:
        c = g + self.gamma * self.b1 / (1 - self.b1) * (g - state.previous)
        return c / maximum(c.norms(), 1.0), CorrectState(g)
