"""Steps in the units of the weights: Adadelta's direction."""

from __future__ import annotations

from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class AdadeltaState(State):
    """What scale_by_adadelta remembers."""

    e_g: Annotated[Tensors, "[0, inf] or NaN"]  # the mean squared gradient
    e_x: Annotated[Tensors, "[0, inf] or NaN"]  # the mean squared update


class scale_by_adadelta(Transform):
    """Divide the updates by the root of their mean square, and multiply by that of what came out before.

        v_t = rho v_(t-1) + (1 - rho) g²
        u   = sqrt(x_(t-1) + eps) / sqrt(v_t + eps) g
        x_t = rho x_(t-1) + (1 - rho) u²

    Its steps have the size of the steps before them, so the learning rate behind it is 1. They begin at the size of
    sqrt(eps), and take long to grow where that is small.

    Args:
        rho: how much of both means stays, in [0, 1].
        eps: added inside both roots, at least 0; with 0 nothing ever moves.

    Shapes: elementwise, any.
    State: `e_g` and `e_x`, two tensors per parameter: 8 bytes per float32 element.
    Units: gradient → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.Adadelta after scale_by_learning_rate; optax.scale_by_adadelta.
    Paper: Zeiler, 2012, Algorithm 1, https://arxiv.org/abs/1212.5701

    >>> import gradchain as gch
    >>> gch.scale_by_adadelta(rho=0.95)
    scale_by_adadelta(rho=0.95)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    rho: Hyper = Hyper(0.9, "[0, 1]")
    eps: Hyper = Hyper(1e-6, "[0, inf)")

    def init(self, params: Tensors) -> AdadeltaState:
        return AdadeltaState(params.slow_slot(), params.slow_slot())

    def update(self, g: Tensors, state: AdadeltaState, ctx: Context) -> tuple[Tensors, AdadeltaState]:
        e_g = self.rho * state.e_g + (1 - self.rho) * g * g
        u = (state.e_x + self.eps).sqrt() / (e_g + self.eps).sqrt() * g
        e_x = self.rho * state.e_x + (1 - self.rho) * u * u
        return u, AdadeltaState(e_g, e_x)
