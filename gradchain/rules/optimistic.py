"""Go on as the gradient went on: optimistic gradient descent, and optimistic Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class OptimisticGradientState(State):
    """What scale_by_optimistic_gradient remembers."""

    count: Count  # t, updates of each parameter so far
    previous_gradient: Tensors  # that of the parameter's last update


class scale_by_optimistic_gradient(Transform):
    """Add to the gradient how it changed since the last: a guess of the next one.

        u = alpha g + beta (g - g_previous)      (alpha g at the first update)

    For games, as adversarial training is, where plain gradient descent runs in circles. The last gradient is that of
    the parameter's last update, however long ago.

    Args:
        alpha: how much the gradient counts, any finite number.
        beta: how much its change counts, any finite number.

    Shapes: elementwise, any.
    State: `count`; `previous_gradient`, one tensor per parameter: 4 bytes per float32 element.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument that is not a finite number.
    Equals: optax.scale_by_optimistic_gradient.
    Paper: Mokhtari et al., 2019, https://arxiv.org/abs/1901.08511

    >>> import gradchain as gch
    >>> gch.rules.scale_by_optimistic_gradient(beta=0.5)
    scale_by_optimistic_gradient(beta=0.5)
    """

    descends = False
    per_parameter = True

    alpha: Hyper = Hyper(1.0)
    beta: Hyper = Hyper(1.0)

    def init(self, params: Tensors) -> OptimisticGradientState:
        return OptimisticGradientState(Count(params.index), params.slot())

    def update(
        self, g: Tensors, state: OptimisticGradientState, ctx: Context
    ) -> tuple[Tensors, OptimisticGradientState]:
        count = state.count.tick(g)
        beta = where(count > 1, self.beta, 0.0)
        return (self.alpha + beta) * g - beta * state.previous_gradient, OptimisticGradientState(count, g)


@answering
def optimistic_gradient_descent(learning_rate: Value, alpha: Value = 1.0, beta: Value = 1.0) -> chain:
    """Gradient descent that goes on as the gradient went on: Mokhtari et al., 2019, https://arxiv.org/abs/1901.08511.

    Equals optax.optimistic_gradient_descent.

    >>> import gradchain as gch
    >>> gch.rules.optimistic_gradient_descent(0.1)
    chain(scale_by_optimistic_gradient(), scale_by_learning_rate(0.1))
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


@answering
def optimistic_adam(
    learning_rate: Value,
    *,
    alpha: Value = 1.0,
    beta: Value = 1.0,
    b1: Value = 0.9,
    b2: Value = 0.999,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    mu_dtype: torch.dtype | None = None,
    nesterov: bool = True,
) -> chain:
    """Adam whose direction goes on as it went on: Daskalakis et al., 2017, https://arxiv.org/abs/1711.00141.

    Equals optax.optimistic_adam_v2. Optax's deprecated optimistic_adam has one argument, `optimism`, for both alpha
    and beta.

    >>> import gradchain as gch
    >>> gch.rules.optimistic_adam(1e-3, nesterov=False)
    chain(scale_by_adam(), scale_by_optimistic_gradient(), scale_by_learning_rate(0.001))
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov, mu_dtype)
    return chain(direction, scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))
