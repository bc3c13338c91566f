"""NovoGrad: one mean square per tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS, of_whole
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class NovogradState(State):
    """What scale_by_novograd remembers."""

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the decaying sum of directions
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared norm: one number per parameter


class scale_by_novograd(Transform):
    """Divide the gradient of each tensor by its norm, in a mean over time, and sum with momentum.

        v_1 = ‖g‖²,  v_t = b2 v_(t-1) + (1 - b2) ‖g‖²
        m_t = b1 m_(t-1) + g / (sqrt(v_t + eps_root) + eps) + weight_decay w
        u   = m_t

    A sum, not a mean: under a steady gradient u grows to 1 / (1 - b1) in norm. Half of Adam's memory.

    Args:
        b1: how much of the sum stays, in [0, 1).
        b2: how much of the mean squared norm stays, in [0, 1).
        eps: added outside the root, in units of the gradient's norm; at least 0.
        eps_root: added inside the root; at least 0.
        weight_decay: at least 0; it enters the momentum. Behind this link `add_decayed_weights` decays apart from it.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.

    Shapes: any; one norm per tensor.
    State: `count`; `mu`, one tensor per parameter; `nu`, one number per parameter, in float32 or wider.
    Units: gradient → dimensionless, about 1 / (1 - b1) in norm per tensor.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.scale_by_novograd. torch_optimizer's and pytorch_optimizer's begin alike.
    Paper: Ginsburg et al., 2019, Algorithm 1, https://arxiv.org/abs/1905.11286

    >>> import gradchain as gch
    >>> gch.rules.scale_by_novograd(b1=0.95, b2=0.98)
    scale_by_novograd(b1=0.95, b2=0.98)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.25, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    weight_decay: Hyper = Hyper(0.0, "[0, inf)")
    mu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> NovogradState:
        return NovogradState(Count(params.index), params.slot(self.mu_dtype), params.norms(of_whole).zeros_like())

    def update(self, g: Tensors, state: NovogradState, ctx: Context) -> tuple[Tensors, NovogradState]:
        count = state.count.tick(g)
        b2 = where(count == 1, 0.0, self.b2)
        nu = b2 * state.nu + (1 - b2) * g.norms() ** 2
        mu = self.b1 * state.mu + g / ((nu + self.eps_root).sqrt() + self.eps) + self.weight_decay * ctx.params
        return mu, NovogradState(count, mu, nu)


@answering
def novograd(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.25,
    eps: Value = 1e-6,
    eps_root: Value = 0.0,
    weight_decay: Value = 0.0,
    *,
    mu_dtype: torch.dtype | None = None,
) -> chain:
    """NovoGrad, with the decay in its momentum: Ginsburg et al., 2019, https://arxiv.org/abs/1905.11286.

    Equals optax.novograd; torch has none. The paper's newest versions have b1 = 0.95 and b2 = 0.98.

    >>> import gradchain as gch
    >>> gch.rules.novograd(0.01, weight_decay=1e-3)
    chain(scale_by_novograd(eps=1e-06, weight_decay=0.001), scale_by_learning_rate(0.01))
    """
    direction = scale_by_novograd(b1, b2, eps, eps_root, weight_decay, mu_dtype)
    return chain(direction, scale_by_learning_rate(learning_rate))
