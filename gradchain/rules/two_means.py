"""A second, slow mean of the gradients beside Adam's: AdEMAMix, and its simplification to one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, Scalar, exp, log, maximum, minimum, where
from gradchain.core.state import MEAN, SQUARE, SUM, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.optimizers import _parts as parts
from gradchain.selectors import SelectorLike
from gradchain.transforms._correction import correction
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.core.hyper import Value


class AdemamixState(State):
    """What scale_by_ademamix remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"m1": MEAN, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    m1: Tensors  # the fast mean gradient
    m2: Tensors  # the slow mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # the mean squared gradient


class scale_by_ademamix(Transform):
    """Divide a fast and a slow mean gradient, added up, by the root mean square of the gradient.

        m1_t = b1 m1_(t-1) + (1 - b1) g
        m2_t = β m2_(t-1) + (1 - β) g
        v_t  = b2 v_(t-1) + (1 - b2) g²
        u    = (m1_t / (1 - b1^t) + α m2_t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)
        α    = alpha min(t / alpha_warmup, 1)
        β    = b3 from t = b3_warmup on; before, 1 / ln β goes in a straight line from 1 / ln b1 to 1 / ln b3

    The slow mean remembers ten thousand updates, and is not corrected for its start at zero. Without the warm-ups of
    the paper early training may diverge: give both the number of updates of the run. They count the updates of each
    parameter from 1; a schedule in `alpha` or `b3` reads the applied updates from 0, as Optax has it.

    Args:
        b1: how much of the fast mean stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        b3: how much of the slow mean stays, in [0, 1).
        alpha: how much the slow mean counts, at least 0.
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root, in units of the squared gradient; at least 0.
        mu_dtype: the dtype `m1` and `m2` are stored in; None for the parameter's, and float32 for float16, and `m2` of
            bfloat16, in which it would stand still.
        alpha_warmup: updates until alpha is reached, at least 0.
        b3_warmup: updates until b3 is reached, at least 0.

    Shapes: elementwise, any.
    State: `count`; `m1`, `m2` and `nu`, three tensors per parameter: 12 bytes per float32 element.
    Units: gradient → dimensionless, up to 1 + alpha in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_ademamix, which has schedules for warm-ups; pytorch_optimizer's AdEMAMix after
        scale_by_learning_rate, whose t_alpha_beta3 is both warm-ups.
    Paper: Pagliardini et al., 2024, Algorithm 1, https://arxiv.org/abs/2409.03137

    >>> import gradchain as gch
    >>> gch.rules.scale_by_ademamix(alpha=8.0, alpha_warmup=10_000, b3_warmup=10_000)
    scale_by_ademamix(alpha=8.0, alpha_warmup=10000, b3_warmup=10000)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.9, "[0, 1)")
    b2: Hyper = Hyper(0.999, "[0, 1)")
    b3: Hyper = Hyper(0.9999, "[0, 1)")
    alpha: Hyper = Hyper(6.0, "[0, inf)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")
    mu_dtype: torch.dtype | None = None
    alpha_warmup: Hyper = Hyper(0, "[0, inf)")
    b3_warmup: Hyper = Hyper(0, "[0, inf)")

    def init(self, params: Tensors) -> AdemamixState:
        fast, slow = params.slot(self.mu_dtype), params.slow_slot(self.mu_dtype)
        return AdemamixState(Count(params.index), fast, slow, params.slow_slot())

    def update(self, g: Tensors, state: AdemamixState, ctx: Context) -> tuple[Tensors, AdemamixState]:
        count = state.count.tick(g)
        m1 = state.m1.lerp(g, 1 - self.b1)
        m2 = state.m2.lerp(g, 1 - self._b3(count))
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        alpha = self.alpha * minimum(count / maximum(self.alpha_warmup, 1.0), 1.0)
        first, second = correction(self.b1, count), correction(self.b2, count)
        root = (nu + second * self.eps_root).sqrt() + second**0.5 * self.eps
        return (m1 + alpha * first * m2) / (root * (first / second**0.5)), AdemamixState(count, m1, m2, nu)

    def _b3(self, count: Count) -> Scalar:
        """What stays of the slow mean in an update: on its way from b1 to b3, the half-life grows evenly."""
        way = minimum(count / maximum(self.b3_warmup, 1.0), 1.0)
        life = minimum((1 - way) / log(self.b1) + way / log(self.b3), _SHORTEST)
        return where(way < 1, exp(1 / life), self.b3)


_SHORTEST = -sys.float_info.min  # of a mean of which nothing stays it is -0


@answering
def ademamix(
    learning_rate: Value,
    b1: Value = 0.9,
    b2: Value = 0.999,
    b3: Value = 0.9999,
    alpha: Value = 5.0,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
    *,
    alpha_warmup: Value = 0,
    b3_warmup: Value = 0,
) -> chain:
    """AdEMAMix with decoupled decay of what `mask` selects: Pagliardini et al., 2024, https://arxiv.org/abs/2409.03137.

    Equals optax.contrib.ademamix, and pytorch_optimizer's AdEMAMix with weight_decouple=True. The number 0 leaves the
    decay out. The paper's warm-ups are those of `scale_by_ademamix`.

    >>> import gradchain as gch
    >>> gch.rules.ademamix(1e-3, alpha_warmup=1000, b3_warmup=1000)
    chain(scale_by_ademamix(alpha=5.0, alpha_warmup=1000, b3_warmup=1000), scale_by_learning_rate(0.001))
    """
    direction = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype, alpha_warmup, b3_warmup)
    return parts.descent(direction, learning_rate, weight_decay, mask)


class SimplifiedAdemamixState(State):
    """What scale_by_simplified_ademamix remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": SUM, "nu": SQUARE}

    count: Count  # t, updates of each parameter so far
    mu: Tensors  # m, the decaying sum of the gradients
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # n, the mean squared gradient


class scale_by_simplified_ademamix(Transform):
    """Divide a decaying sum of the gradients, and some of the newest, by the root mean square of the gradient.

        m_t = b1 m_(t-1) + g
        n_t = b2 n_(t-1) + (1 - b2) g²
        u   = (m_t + alpha g) / (sqrt(n_t / (1 - b2^t) + eps_root) + eps)

    A sum, not a mean: under a steady gradient u grows to 1 / (1 - b1) + alpha, so it wants a learning rate a hundred
    times smaller than Adam's.

    Args:
        b1: how much of the sum stays, in [0, 1).
        b2: how much of the mean squared gradient stays, in [0, 1).
        alpha: how much the newest gradient counts besides, at least 0.
        eps: added outside the root, in units of the gradient; at least 0.
        eps_root: added inside the root, in units of the squared gradient; at least 0.

    Shapes: elementwise, any.
    State: `count`; `mu` and `nu`, two tensors per parameter.
    Units: gradient → dimensionless, up to 1 / (1 - b1) + alpha in size.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: optax.contrib.scale_by_simplified_ademamix. pytorch_optimizer's SimplifiedAdEMAMix is another rule: it
        divides by the root of 1 - b2^t once more, where this multiplies by it.
    Paper: Morwani et al., 2025, Section 5, https://arxiv.org/abs/2502.02431

    >>> import gradchain as gch
    >>> gch.rules.scale_by_simplified_ademamix(alpha=10.0)
    scale_by_simplified_ademamix(alpha=10.0)
    """

    descends = False
    role = "normalise"
    per_parameter = True

    b1: Hyper = Hyper(0.99, "[0, 1)")
    b2: Hyper = Hyper(0.95, "[0, 1)")
    alpha: Hyper = Hyper(0.0, "[0, inf)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    eps_root: Hyper = Hyper(0.0, "[0, inf)")

    def init(self, params: Tensors) -> SimplifiedAdemamixState:
        return SimplifiedAdemamixState(Count(params.index), params.slot(), params.slow_slot())

    def update(
        self, g: Tensors, state: SimplifiedAdemamixState, ctx: Context
    ) -> tuple[Tensors, SimplifiedAdemamixState]:
        count = state.count.tick(g)
        mu = self.b1 * state.mu + g
        nu = self.b2 * state.nu + (1 - self.b2) * g * g
        second = correction(self.b2, count)
        root = (nu + second * self.eps_root).sqrt() + second**0.5 * self.eps
        return (mu + self.alpha * g) / (root / second**0.5), SimplifiedAdemamixState(count, mu, nu)


@answering
def simplified_ademamix(
    learning_rate: Value,
    b1: Value = 0.99,
    b2: Value = 0.95,
    alpha: Value = 0.0,
    eps: Value = 1e-8,
    eps_root: Value = 0.0,
    weight_decay: Value = 0.0,
    mask: SelectorLike | None = None,
) -> chain:
    """Simplified AdEMAMix with decay of what `mask` selects: Morwani et al., 2025, https://arxiv.org/abs/2502.02431.

    Equals optax.contrib.simplified_ademamix. The number 0 leaves the decoupled decay out.

    >>> import gradchain as gch
    >>> gch.rules.simplified_ademamix(1e-5, alpha=10.0)
    chain(scale_by_simplified_ademamix(alpha=10.0), scale_by_learning_rate(1e-05))
    """
    return parts.descent(scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root), learning_rate, weight_decay, mask)
