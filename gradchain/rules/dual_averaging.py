"""Weights that follow from where they began and the sum of all gradients: MADGRAD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._anchor import anchored
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class MadgradState(State):
    """What scale_by_madgrad remembers."""

    count: Count  # t, updates of each parameter so far
    grad_sum_sq: Annotated[Tensors, "[0, inf] or NaN"]  # ν, the weighted sum of the squared gradients
    s: Tensors  # the weighted sum of the gradients
    x0: Tensors  # the weights before the first update


class scale_by_madgrad(Transform):
    """Replace the updates by steps towards where dual averaging, with momentum, has the weights.

        λ   = (learning_rate + eps) sqrt(t)
        ν_t = ν_(t-1) + λ g²
        s_t = s_(t-1) + λ g
        z   = w_0 - s_t / (cbrt(ν_t) + eps)
        u   = (1 - momentum) (z - w)

    The learning rate is inside, since sums hold that of their time; no other stands in the chain. Decay acts badly with
    it: the paper's is a penalty, in front, and small. `t` counts the updates of each parameter.

    Args:
        learning_rate: at least 0; a number or a schedule.
        momentum: how much of the weights stays, in [0, 1).
        eps: added outside the root and to the learning rate; at least 0.

    Shapes: elementwise, any.
    State: `count`; `grad_sum_sq`, `s` and `x0`, three tensors per parameter: 12 bytes per float32 element.
    Units: gradient → weights; learning_rate is weights^1.5 per square root of the gradient's unit.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_madgrad; torch_optimizer.MADGRAD, which are the authors'.
    Paper: Defazio and Jelassi, 2021, Algorithm 1, https://arxiv.org/abs/2101.11075

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.scale_by_madgrad(gch.cosine(1e-3, 0.0, 100)))
    chain(scale_by_madgrad(cosine(0.001, 0.0, 100)))
    """

    descends = True
    role = "learning_rate"
    per_parameter = True

    learning_rate: Annotated[Hyper, "[0, inf)"]
    momentum: Hyper = Hyper(0.9, "[0, 1)")
    eps: Hyper = Hyper(1e-6, "[0, inf)")

    def init(self, params: Tensors) -> MadgradState:
        return MadgradState(Count(params.index), params.slow_slot(), params.slow_slot(), params.clone())

    def update(self, g: Tensors, state: MadgradState, ctx: Context) -> tuple[Tensors, MadgradState]:
        count = state.count.tick(g)
        rate = (self.learning_rate + self.eps) * count**0.5
        nu, s = state.grad_sum_sq + rate * g * g, state.s + rate * g
        x0 = anchored(state.count, state.x0, ctx.params).select(g.index)
        z = x0 - s / (nu.pow(1 / 3) + self.eps)
        return (1 - self.momentum) * (z - ctx.params), MadgradState(count, nu, s, x0)


@answering
def madgrad(
    learning_rate: Value,
    momentum: Value = 0.9,
    weight_decay: Value = 0.0,
    eps: Value = 1e-6,
    mask: SelectorLike | None = None,
) -> chain:
    """MADGRAD with a penalty on what `mask` selects: Defazio and Jelassi, 2021, https://arxiv.org/abs/2101.11075.

    Equals optax.contrib.madgrad, and torch_optimizer.MADGRAD. The number 0 leaves the penalty out.

    >>> import gradchain as gch
    >>> gch.rules.madgrad(1e-2)
    chain(scale_by_madgrad(0.01))
    """
    return chain(*parts.decay(weight_decay, mask), scale_by_madgrad(learning_rate, momentum, eps))
