"""Divide by the root of a mean square: RMSprop's direction, plain and centred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.scalars import Count
from gradchain.core.state import MEAN, SQUARE, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.transforms._correction import correction


class RmsState(State):
    """What scale_by_rms remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"nu": SQUARE}

    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class CorrectedRmsState(RmsState):
    """What scale_by_rms remembers where it corrects."""

    count: Count  # t, updates of each parameter so far


class scale_by_rms(Transform):
    """Divide the updates by the root of their mean square.

        v_t = decay v_(t-1) + (1 - decay) g²
        u   = g / (sqrt(v_t) + eps)      (with eps_in_sqrt: g / sqrt(v_t + eps))

    With `bias_correction` v_t / (1 - decay^t) takes the place of v_t. Without it, and from `initial_scale=0`, the first
    steps are 1 / sqrt(1 - decay) times as long as later ones, 10 times by default. `t` counts the updates of each
    parameter.

    Args:
        decay: how much of the mean square stays, in [0, 1); torch calls it alpha.
        eps: added to the root in units of the gradient, or with `eps_in_sqrt` inside it in those of its square; at
            least 0.
        initial_scale: what the mean square starts at, at least 0. It is read once.
        eps_in_sqrt: whether `eps` is added inside the root, as Optax does by default.
        bias_correction: whether the mean square is corrected for its start at zero.
        nu_dtype: the dtype `nu` is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `nu`, one tensor per parameter: 4 bytes per float32 element; with `bias_correction` also `count`.
    Units: gradient → dimensionless, about 1 in size: the learning rate is the size of a step.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.RMSprop after scale_by_learning_rate; optax.scale_by_rms with eps_in_sqrt=True, whose decay is
        0.9 by default.
    Paper: Tieleman and Hinton, 2012, http://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf

    >>> import gradchain as gch
    >>> gch.scale_by_rms(0.9, eps_in_sqrt=True)
    scale_by_rms(decay=0.9, eps_in_sqrt=True)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    read_once = uniform = frozenset({"initial_scale"})

    decay: Hyper = Hyper(0.99, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    initial_scale: Hyper = Hyper(0.0, "[0, inf)")
    eps_in_sqrt: bool = False
    bias_correction: bool = False
    nu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> RmsState:
        nu = started(params.slow_slot(self.nu_dtype), self.initial_scale)
        return CorrectedRmsState(nu, Count(params.index)) if self.bias_correction else RmsState(nu)

    def update(self, g: Tensors, state: RmsState, ctx: Context) -> tuple[Tensors, RmsState]:
        nu = self.decay * state.nu + (1 - self.decay) * g * g  # in this order: g * g alone would sooner be infinite
        if not isinstance(state, CorrectedRmsState):
            return g / root_with(nu, 1.0, self.eps, self.eps_in_sqrt), RmsState(nu)
        count = state.count.tick(g)
        root = root_with(nu, correction(self.decay, count), self.eps, self.eps_in_sqrt)
        return g / root, CorrectedRmsState(nu, count)


class StddevState(State):
    """What scale_by_stddev remembers."""

    kinds: ClassVar[Mapping[str, str]] = {"mu": MEAN, "nu": SQUARE}

    mu: Tensors  # m, the mean gradient
    nu: Annotated[Tensors, "[0, inf] or NaN"]  # v, the mean squared gradient


class CorrectedStddevState(StddevState):
    """What scale_by_stddev remembers where it corrects."""

    count: Count  # t, updates of each parameter so far


class scale_by_stddev(Transform):
    """Divide the updates by their standard deviation: RMSprop, centred.

        m_t = decay m_(t-1) + (1 - decay) g
        v_t = decay v_(t-1) + (1 - decay) g²
        u   = g / (sqrt(v_t - m_t²) + eps)      (with eps_in_sqrt: g / sqrt(v_t - m_t² + eps))

    Where gradients hardly change the deviation is near 0, and the step as large as `eps` lets it be. With
    `bias_correction` m_t / (1 - decay^t) and v_t / (1 - decay^t) take the places of m_t and v_t. A variance that
    rounding makes negative is 0 here, where torch and Optax make NaN of it.

    Args:
        decay: how much of the means stays, in [0, 1); torch calls it alpha.
        eps: added to the root in units of the gradient, or with `eps_in_sqrt` inside it in those of its square; at
            least 0.
        initial_scale: what the mean square starts at, at least 0. It is read once.
        eps_in_sqrt: whether `eps` is added inside the root, as Optax does by default.
        bias_correction: whether the means are corrected for their start at zero.
        mu_dtype: the dtype `mu` is stored in; None for the parameter's, and float32 for float16 and bfloat16: it is
            subtracted from what it nearly is.
        nu_dtype: the dtype `nu` is stored in; None for the same.

    Shapes: elementwise, any.
    State: `mu` and `nu`, two tensors per parameter: 8 bytes per float32 element; with `bias_correction` also `count`.
    Units: gradient → dimensionless.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.RMSprop with centered=True after scale_by_learning_rate; optax.scale_by_stddev with
        eps_in_sqrt=True, whose decay is 0.9 by default.
    Paper: Graves, 2013, equations 38 to 42, https://arxiv.org/abs/1308.0850

    >>> import gradchain as gch
    >>> gch.rules.scale_by_stddev(0.95, eps=1e-4)
    scale_by_stddev(decay=0.95, eps=0.0001)
    """

    descends = False
    role = "normalise"
    per_parameter = True
    read_once = uniform = frozenset({"initial_scale"})

    decay: Hyper = Hyper(0.99, "[0, 1)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    initial_scale: Hyper = Hyper(0.0, "[0, inf)")
    eps_in_sqrt: bool = False
    bias_correction: bool = False
    mu_dtype: torch.dtype | None = None
    nu_dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> StddevState:
        mu, nu = params.slow_slot(self.mu_dtype), started(params.slow_slot(self.nu_dtype), self.initial_scale)
        return CorrectedStddevState(mu, nu, Count(params.index)) if self.bias_correction else StddevState(mu, nu)

    def update(self, g: Tensors, state: StddevState, ctx: Context) -> tuple[Tensors, StddevState]:
        mu = state.mu.lerp(g, 1 - self.decay)
        nu = self.decay * state.nu + (1 - self.decay) * g * g
        if not isinstance(state, CorrectedStddevState):
            return self._divided(g, mu, nu, 1.0), StddevState(mu, nu)
        count = state.count.tick(g)
        return self._divided(g, mu, nu, correction(self.decay, count)), CorrectedStddevState(mu, nu, count)

    def _divided(self, g: Tensors, mu: Tensors, nu: Tensors, known: Any) -> Tensors:
        variance = (nu - mu * mu / known).maximum(0.0)
        return g / root_with(variance, known, self.eps, self.eps_in_sqrt)


def started(slot: Tensors, at: float) -> Tensors:
    """A slot of zeros that starts at a number instead."""
    return (slot + at).stored_as(slot)


def root_with(square: Tensors, known: Any, eps: float, inside: bool) -> Tensors:
    """The root of a mean square, of which so much is known, with eps inside it or beside it."""
    # divided once, and after the root: a mean square over one might be infinite
    scale = known**0.5
    root: Tensors = (square + known * eps).sqrt() / scale if inside else square.sqrt() / scale + eps
    return root
