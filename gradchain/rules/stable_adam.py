"""StableAdamW: Adam whose steps are held back where its second moment is out of date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, maximum
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.rules._units import WHOLE_WEIGHTS, among, rms
from gradchain.transforms._correction import correction
from gradchain.transforms.scale import scale_by_learning_rate
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value
    from gradchain.selectors import SelectorLike


class StableAdamState(State):
    """What scale_by_stable_adam remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class scale_by_stable_adam(Transform):
    """Adam's direction and decay, both smaller where the gradient is larger than its second moment says.

        m̂, v̂ = the corrected moments of scale_by_adam
        r    = rms(g / sqrt(max(v̂, eps²)))
        u    = (m̂ / (sqrt(v̂) + eps) + weight_decay w) / max(1, r)

    It is Adafactor's clip, of the learning rate in place of the update: of g, not of m̂, so a spike is damped in the
    step in which it comes. There is nothing to clip before it.

    Args:
        b1: how much of the mean gradient stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        eps: added outside the root, in units of the gradient; above 0.
        weight_decay: at least 0; it is held back with the step. Behind this link `add_decayed_weights` is not.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16.
        nu_dtype: the dtype `nu` is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: any; one number per tensor.
    State: `count`; `mu` and `nu`, two tensors per parameter: 8 bytes per float32 element.
    Units: gradient → dimensionless, at most about 1 in root mean square per tensor.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: pytorch_optimizer.StableAdamW, whose moments are corrected as they are stored.
    Paper: Wortsman et al., 2023, Algorithm 2, https://arxiv.org/abs/2304.13013

    >>> import gradchain as gch
    >>> gch.rules.scale_by_stable_adam(b2=0.95)
    scale_by_stable_adam(b2=0.95)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    refuses_rows = WHOLE_WEIGHTS

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.99, "[0, 1)")
    eps: Hyper = Hyper(1e-6, "(0, inf)")
    weight_decay: Hyper = Hyper(0.0, "[0, inf)")
    mu_dtype: torch.dtype | None = None
    nu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> StableAdamState:
        return StableAdamState(Count(params.index), params.slot(self.mu_dtype), params.slow_slot(self.nu_dtype))

    def update(self, g: Tensors, state: StableAdamState, ctx: Context) -> tuple[Tensors, StableAdamState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, 1 - self.b1)
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        first, second = 1 - self.b1**count, correction(self.b2, count)
        size = second**0.5  # sqrt(v̂) is sqrt(v) over it
        r = rms(g / nu.sqrt().maximum(size * self.eps)) * size
        u = mu / ((nu.sqrt() + size * self.eps) * (first / size))
        return (u + self.weight_decay * ctx.params) / maximum(r, 1.0), StableAdamState(count, mu, nu)


@answering
def stable_adamw(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.99,
    eps: Value = 1e-6,
    weight_decay: Value = 0.01,
    mask: SelectorLike | None = None,
    *,
    mu_dtype: torch.dtype | None = None,
    nu_dtype: torch.dtype | None = None,
) -> chain:
    """StableAdamW, with the decay of what `mask` selects: Wortsman et al., 2023, https://arxiv.org/abs/2304.13013.

    Equals pytorch_optimizer.StableAdamW with eps=1e-6; torch and Optax have none.

    >>> import gradchain as gch
    >>> gch.rules.stable_adamw(1e-3)
    chain(scale_by_stable_adam(weight_decay=0.01), scale_by_learning_rate(0.001))
    """
    direction = scale_by_stable_adam(b1, b2, eps, among(weight_decay, mask), mu_dtype, nu_dtype)
    return chain(direction, scale_by_learning_rate(learning_rate))
