"""Amplify what gradients have in common over many steps."""

from __future__ import annotations

import torch
from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count, maximum, minimum, where, whole_number
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


class GrokfastMaState(State):
    """What grokfast_ma remembers."""

    count: Count
    window: Tensors  # the last gradients of each parameter, the latest first


class grokfast_ma(Transform):
    """Add a multiple of the mean of the last gradients to the gradient: `grokfast` with a window.

        u = g + lamb mean(the last window_size gradients, g among them)

    It is a sharper filter than the moving average, and its memory is window_size times the weights: that of `grokfast`
    is one. Strong decay goes with both.

    Args:
        window_size: so many gradients, an integer of at least 1.
        lamb: how often the mean is added, at least 0.
        warmup: whether nothing is added before the window is full; else the mean is that of those there are.

    Shapes: any.
    State: `count`; `window`, window_size tensors per parameter.
    Units: gradient.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: gradfilter_ma of ironjr/grokfast and pytorch_optimizer, called before the step.
    Paper: Lee et al., 2024, Algorithm 1, https://arxiv.org/abs/2405.20233

    >>> import gradchain as gch
    >>> gch.chain(gch.rules.grokfast_ma(50), gch.adamw(1e-3, weight_decay=1.0))
    chain(grokfast_ma(window_size=50), scale_by_adam(), add_decayed_weights(1.0), scale_by_learning_rate(0.001))
    """

    descends = False
    per_parameter = True
    refuses_rows = "keeps whole gradients. Give dense ones: nn.Embedding(…, sparse=False)."

    window_size: int = 100
    lamb: Hyper = Hyper(5.0, "[0, inf)")
    warmup: bool = True

    def check(self) -> None:
        size = whole_number(self.window_size)
        if size is None or size < 1:
            raise ValueError(f"grokfast_ma: window_size must be an integer of at least 1, got {self.window_size!r}.")
        object.__setattr__(self, "window_size", size)

    def init(self, params: Tensors) -> GrokfastMaState:
        return GrokfastMaState(Count(params.index), params.map(_empty, self.window_size).slot())

    def update(self, g: Tensors, state: GrokfastMaState, ctx: Context) -> tuple[Tensors, GrokfastMaState]:
        count = state.count.tick(g)
        total, window = g.map(_pushed, state.window, batched=True, results=2)
        many = maximum(minimum(count, self.window_size), 1)
        share = where(count >= self.window_size, self.lamb / many, 0.0) if self.warmup else self.lamb / many
        return g + share * total, GrokfastMaState(count, window)


def _empty(x: Tensor, many: int) -> Tensor:
    return x.new_zeros(many, *x.shape)


def _pushed(g: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a window with one more gradient, and that window; of stacks."""
    window = torch.cat([g.unsqueeze(1), window[:, :-1]], 1)
    return window.sum(1), window
