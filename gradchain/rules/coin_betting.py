"""Steps that a bettor on coins would make, without a learning rate: COCOB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._anchor import anchored
from gradchain.transforms.rms import started
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class CocobState(State):
    """What scale_by_cocob remembers."""

    count: Count  # updates of each parameter so far
    init_particles: Tensors  # w_0, the weights before the first update
    cumulative_gradients: Tensors  # θ, minus the sum of the gradients
    scale: Annotated[Tensors, "[0, inf] or NaN"]  # L, the largest gradient so far
    subgradients: Annotated[Tensors, "[0, inf] or NaN"]  # G, the sum of their magnitudes
    reward: Annotated[Tensors, "[0, inf] or NaN"]  # R, what the bets have won


class scale_by_cocob(Transform):
    """Replace the updates by steps that need no learning rate: each weight bets a part of what it has won.

        L = max(L, |g|),  G = G + |g|,  R = max(R - g (w - w_0), 0),  θ = θ - g
        u = w_0 + θ / (L max(G + L, alpha L)) (L + R) - w

    It takes gradients and makes steps down, so no learning rate stands behind it. One in front, with
    flip_sign=False, scales gradients, which changes nothing in the end.

    Args:
        alpha: how many gradients' worth the first bets are cautious for, at least 0.
        eps: L before the first update, above 0; read then only.

    Shapes: elementwise, any.
    State: `count`; `init_particles`, `cumulative_gradients`, `scale`, `subgradients` and `reward`, five tensors per
        parameter.
    Units: gradient → weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_cocob.
    Paper: Orabona and Tommasi, 2017, Algorithm 2, https://arxiv.org/abs/1705.07795

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.scale_by_cocob())
    chain(scale_by_cocob())
    """

    descends = True
    per_parameter = True
    read_once = uniform = frozenset({"eps"})

    alpha: Hyper = Hyper(100.0, "[0, inf)")
    eps: Hyper = Hyper(1e-8, "(0, inf)")

    def init(self, params: Tensors) -> CocobState:
        slow = params.slow_slot()
        start = started(slow, self.eps)
        return CocobState(Count(params.index), params.clone(), slow, start, params.slow_slot(), params.slow_slot())

    def update(self, g: Tensors, state: CocobState, ctx: Context) -> tuple[Tensors, CocobState]:
        count, w = state.count.tick(g), ctx.params
        start = anchored(state.count, state.init_particles, w).select(g.index)
        most, total = state.scale.maximum(g.abs()), state.subgradients + g.abs()
        reward = (state.reward - g * (w - start)).maximum(0.0)
        theta = state.cumulative_gradients - g
        u = start + theta / (most * maximum(total + most, self.alpha * most)) * (most + reward) - w
        return u, CocobState(count, start, theta, most, total, reward)


@answering
def cocob(
    learning_rate: Value = 1.0,
    alpha: Value = 100.0,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """COCOB with a penalty on what `mask` selects: Orabona and Tommasi, 2017, https://arxiv.org/abs/1705.07795.

    Equals optax.contrib.cocob: `learning_rate` scales the gradients. The number 0 leaves the penalty out.

    >>> import gradchain as gch
    >>> gch.rules.cocob()
    chain(scale_by_learning_rate(1.0, flip_sign=False), scale_by_cocob())
    """
    rate = scale_by_learning_rate(learning_rate, flip_sign=False)
    return chain(*parts.decay(weight_decay, mask), rate, scale_by_cocob(alpha, eps))
