"""Amplify what gradients have in common over many steps."""

from __future__ import annotations

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, where
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class GrokfastState(State):
    """What grokfast remembers."""

    count: Count
    mu: Tensors


class grokfast(Transform):
    """Add a multiple of the gradient's moving average to it: a low-pass filter, in front of any rule.

        mu ← g at the first gradient, then alpha mu + (1 - alpha) g
        u = g + lamb mu

    Where a network first memorises and generalises much later, the slow part of its gradients is what generalises, and
    this brings that forward by an order of magnitude. Strong decay, ten times the usual, goes with it.

    Args:
        alpha: what stays of the average at each step, in [0, 1).
        lamb: how often it is added, at least 0.

    Shapes: elementwise, any.
    State: `mu`, one tensor per parameter.
    Units: gradient.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: gradfilter_ema of ironjr/grokfast and pytorch_optimizer, called before the step.
    Paper: Lee et al., 2024, Algorithm 2, https://arxiv.org/abs/2405.20233

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.grokfast(alpha=0.98, lamb=2.0), gch.adamw(1e-3, weight_decay=1.0))
    chain(grokfast(), scale_by_adam(), add_decayed_weights(1.0), scale_by_learning_rate(0.001))
    """

    descends = False
    per_parameter = True

    alpha: Hyper = Hyper(0.98, "[0, 1)")
    lamb: Hyper = Hyper(2.0, "[0, inf)")

    def init(self, params: Tensors) -> GrokfastState:
        return GrokfastState(Count(params.index), params.slow_slot())

    def update(self, g: Tensors, state: GrokfastState, ctx: Context) -> tuple[Tensors, GrokfastState]:
        count = state.count.tick(g)
        mu = state.mu.lerp(g, where(count == 1, 1.0, 1 - self.alpha))
        return g + self.lamb * mu, GrokfastState(count, mu)
