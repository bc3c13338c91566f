"""Averaged gradient descent: a decaying rate of each parameter's own time, and the mean of its weights."""

from __future__ import annotations

from typing import Annotated

import torch

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import AverageState
from gradchain.core.scalars import Count, Scalars, maximum
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights
from gradchain.transforms._anchor import anchored


class AsgdState(State):
    """What scale_by_asgd remembers."""

    count: Count  # t, updates of each parameter so far
    eta: Annotated[Scalars, "[0, inf)"]  # η, the rate of each parameter's next update; 0 before the first


class scale_by_asgd(Transform):
    """Multiply the updates by minus a rate that falls with each parameter's own updates, and decay the weights by it.

        u       = -η_t (g + lambd w)
        η_(t+1) = learning_rate / (1 + lambd learning_rate t)^alpha,  η_1 = learning_rate

    The rate of an update is that which the learning rate gave at the one before: a schedule acts one update late, but
    in the first. It stands where `scale_by_learning_rate` does. `t` counts the updates of each parameter.

    Args:
        learning_rate: what the rate starts at, at least 0; a number or a schedule.
        lambd: how much the weights decay, and how fast the rate falls; at least 0.
        alpha: the power with which it falls, at least 0.

    Shapes: elementwise, any.
    State: `count`; `eta`, a number per parameter.
    Units: weights per unit of the updates before it.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.ASGD, which keeps its rate in float32 unless torch's default dtype is float64.
    Paper: Bottou, 2012, section 5.2, https://doi.org/10.1007/978-3-642-35289-8_25; averages: Polyak and Juditsky, 1992,
        https://doi.org/10.1137/0330046

    >>> import gradchain as gch
    >>> gch.rules.scale_by_asgd(0.01, lambd=1e-3)
    scale_by_asgd(0.01, lambd=0.001)
    """

    descends = True
    role = "learning_rate"
    per_parameter = True
    refuses_rows = (
        "decays all rows. Put these parameters into another branch of gch.partition, with a rule that takes rows."
    )

    learning_rate: Annotated[Hyper, "[0, inf)"]
    lambd: Hyper = Hyper(1e-4, "[0, inf)")
    alpha: Hyper = Hyper(0.75, "[0, inf)")

    def init(self, params: Tensors) -> AsgdState:
        return AsgdState(Count(params.index), Scalars.of(params.index, 0.0))

    def update(self, g: Tensors, state: AsgdState, ctx: Context) -> tuple[Tensors, AsgdState]:
        count = state.count.tick(g)
        eta = state.eta.select(g) + (count == 1) * self.learning_rate
        later = self.learning_rate / (1 + self.lambd * self.learning_rate * count) ** self.alpha
        u = -eta * (g + self.lambd * ctx.params)
        return u, AsgdState(count, 0.0 * state.eta.select(g) + later)


class AverageEachState(AverageState):
    """What average_each remembers."""

    count: Count  # t, updates of each parameter so far


class average_each(Transform):
    """Keep the mean of each parameter's weights over its own updates; the updates pass unchanged.

        a_t = a_(t-1) + (w_t - a_(t-1)) / max(1, t - start)

    It comes last. `with updater.averaged(): evaluate(model)` swaps the mean in. Up to a parameter's update number
    `start + 1` it is the live weight. Unlike `average_params`, where one number counts for all, `t` counts the updates
    of each parameter, and the mean of one without a gradient rests.

    Args:
        start: how many updates of a parameter are left out, at least 0.
        dtype: the dtype the mean is stored in; None for the parameter's, and float32 for float16 and bfloat16.

    Shapes: elementwise, any.
    State: `count`; `average`, one tensor per parameter: 4 bytes per float32 element.
    Units: weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: the state `ax` of torch.optim.ASGD with t0 = start - 1.
    Paper: Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046

    >>> import gradchain as gch
    >>> gch.chain(gch.sgd(0.1), gch.rules.average_each(start=100))
    chain(scale_by_learning_rate(0.1), average_each(start=100))
    """

    descends = False
    role = "average"
    per_parameter = True
    refuses_rows = (
        'averages all rows. Take the average at ticks, average_params(…, on="ema"), and call updater.tick("ema") after '
        "each update."
    )

    start: Hyper = Hyper(0, "[0, inf)")
    dtype: torch.dtype | None = None

    def init(self, params: Tensors) -> AverageEachState:
        slots = params.slow_slot(self.dtype)
        return AverageEachState(params.clone().stored_as(slots), params.select(()), Count(params.index))

    def update(
        self, g: Tensors | Weights, state: AverageEachState, ctx: Context
    ) -> tuple[Tensors | Weights, AverageEachState]:
        present = g.tensors if isinstance(g, Weights) else g
        count = state.count.tick(present)
        kept = anchored(state.count, state.average, ctx.params)
        mean = kept.select(present).lerp(ctx.new_params(g).select(present), 1 / maximum(1, count - self.start))
        return g, AverageEachState(kept.overlay(mean), state.buffers_after(), count)
