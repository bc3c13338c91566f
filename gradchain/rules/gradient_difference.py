"""Divide a mean gradient that looks ahead by its root mean square: Adan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import MEAN, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.rules._units import among
from gradchain.rules.proximal import step_proximally
from gradchain.selectors import SelectorLike
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class AdanState(State):
    """What scale_by_adan remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    diff: Tensors  # v, the mean difference of gradients
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # n, the mean square of the gradient that looks ahead
    previous: Tensors  # the gradient of the parameter's last update


class scale_by_adan(Transform):
    """Divide mean gradient and mean difference of gradients by the root mean square of their sum.

        d   = g - g_previous, 0 at the first update
        m_t = b1 m_(t-1) + (1 - b1) g
        v_t = b2 v_(t-1) + (1 - b2) d
        n_t = b3 n_(t-1) + (1 - b3) (g + b2 d)²
        u   = (m_t / (1 - b1^t) + b2 v_t / (1 - b2^t)) / (sqrt(n_t / (1 - b3^t) + eps_root) + eps)

    These are the paper's formulas, whose betas are 1 less these. The difference is that to the gradient the parameter
    had last: where it was absent in between, that of before. Gradients must be of one size: a loss scale that changes,
    or a clip that acts now and then, is seen as a difference.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean difference stays, and how far the gradient looks ahead, in [0, 1).
        b3: how much of the mean square stays, in [0, 1).
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root, in units of the squared gradient; at least 0.

    Shapes: elementwise, any.
    State: `count`; `mu`, `diff`, `nu` and `previous`, four tensors per parameter: 16 bytes per float32 element.
    Units: gradient → dimensionless, about 1 in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: the authors' code and pytorch_optimizer.Adan, whose t counts the steps of its group: here each parameter's
        own. optax.scale_by_adan 0.2.8 is another rule from the second update on: it has 1 - b2 where the paper has b2.
    Paper: Xie et al., 2022, Algorithm 1, https://arxiv.org/abs/2208.06677

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adan(b3=0.98)
    scale_by_adan(b3=0.98)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.98, "[0, 1)")
    b2: Hyper = Hyper(0.92, "[0, 1)")
    b3: Hyper = Hyper(0.99, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")

    def init(self, params: Tensors) -> AdanState:
        return AdanState(Count(params.index), params.slot(), params.slot(), params.slow_slot(), params.slot())

    def update(self, g: Tensors, state: AdanState, ctx: Context) -> tuple[Tensors, AdanState]:
        count = state.count.tick(g)
        d = where(count > 1, 1.0, 0.0) * (g - state.previous)
        mu, diff, ahead = state.mu.lerp(g, 1 - self.b1), state.diff.lerp(d, 1 - self.b2), g + self.b2 * d
        nu = self.b3 * state.nu + (1 - self.b3) * ahead * ahead
        first, second, third = (correction(b, count) for b in (self.b1, self.b2, self.b3))
        root = (nu + third * self.eps_root).sqrt() + third**0.5 * self.eps
        u = (mu + self.b2 * first / second * diff) / (root * (first / third**0.5))
        return u, AdanState(count, mu, diff, nu, g)


@answering
def adan(
    learning_rate: Value,
    b1: Value = 0.98,
    b2: Value = 0.92,
    b3: Value = 0.99,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    proximal: bool = True,
) -> chain:
    """Adan with decay of what `mask` selects: Xie et al., 2022, https://arxiv.org/abs/2208.06677.

    The paper's decay is proximal: the new weights are divided by 1 + learning_rate · weight_decay. With
    proximal=False it is decoupled, as in AdamW; the number 0 leaves it out. Equals the authors' code and
    pytorch_optimizer.Adan, whose weight_decouple is our `not proximal`. optax.adan is another rule: see
    `scale_by_adan`.

    >>> import gradchain as gch
    >>> gch.rules.adan(1e-3)
    chain(scale_by_adan(), scale_by_learning_rate(0.001))
    >>> gch.rules.adan(1e-3, weight_decay=0.02)
    chain(scale_by_adan(), step_proximally(0.001, 0.02))
    """
    direction = scale_by_adan(b1, b2, b3, eps, eps_root)
    if not proximal or parts.is_zero(weight_decay):
        return parts.descent(direction, learning_rate, weight_decay, mask)
    return chain(direction, step_proximally(learning_rate, among(weight_decay, mask)))
