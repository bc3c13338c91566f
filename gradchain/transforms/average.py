"""Keep a moving average of the weights, for evaluation and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.hyper import Hyper, HyperOr
from gradchain.core.index import Index
from gradchain.core.roles import AverageState
from gradchain.core.says import Says
from gradchain.core.scalars import whole_number
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform
from gradchain.core.weights import Weights


class HyperOrMean(HyperOr):
    """A number, a schedule, or "mean"."""

    words = ("mean",)


class AverageParamsState(AverageState):
    """What average_params remembers; `buffers` has no entries with buffers="keep"."""

    num_averaged: Annotated[int, "integer [0, inf)"] = 0  # how many weights went into the average


class average_params(Transform):
    """Keep an average of the weights to be; the updates pass unchanged.

        a_t = decay a_(t-1) + (1 - decay) w_t      or, with "mean", the mean of all w_t averaged so far

    It comes last: it averages the weights that this update makes. `with updater.averaged(): evaluate(model)` swaps the
    average in. It runs over every parameter: one without a gradient keeps its weight, not its average.

    Args:
        decay: what stays of the average at each update, in [0, 1], a number or a schedule of the applied updates such
            as `lambda t: (1 + t) / (10 + t)`, `schedules.ema_warmup` or `schedules.ema_exponential`; or "mean" for
            stochastic weight averaging.
        start: until so many updates are applied the average is the live weights, an integer of at least 0. With
            start=0 the average begins at the weights it was bound with.
        every: average every so many updates from `start` on, an integer of at least 1.
        buffers: "keep" leaves the model's buffers (batch-norm statistics) as they are; "copy" keeps those of the last
            averaging; "average" averages the floating-point ones as the weights, and copies the others.
        dtype: the dtype the average is stored in; None for the parameter's, and float32 for float16 and bfloat16: an
            average that moves by a thousandth at a time stands still in these, as a mean of squares does. Averaged
            buffers follow that rule too.

    Shapes: elementwise, any.
    State: `average`, one tensor per parameter; `buffers`; `num_averaged`.
    Units: weights.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(decay) for start=1, with its default mean
        for "mean"; MMEngine's ExponentialMovingAverage with momentum = 1 - decay for start=1, its MomentumAnnealingEMA
        and mmdet's ExpMomentumEMA with the two schedules. There an interval is counted from a first copy, which is a
        decay of 0: `start=0, every=k` and `join((0, 1, constant(0.0)), (1, None, constant(decay)))`; "mean" has it so.
        An EMAHook from iteration b on is `start=b` and a decay that begins there, `join((0, b, constant(0.0)),
        (b, None, decay))`. MMEngine averages at every iteration, within a window of accumulation too, here once per
        update; averaging buffers it leaves counters at the first copy, here they are those of the last averaging.
    Paper: Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046; "mean": Izmailov et al., 2018,
        https://arxiv.org/abs/1803.05407

    >>> import gradchain as gch
    >>> gch.average_params(0.999, start=100)
    average_params(0.999, start=100)
    """

    descends = False
    role = "average"

    decay: Annotated[HyperOrMean, "[0, 1]"]
    start: int = 0
    every: int = 1
    buffers: str = "keep"
    dtype: torch.dtype | None = None

    def says(self) -> Says:
        """Averaged buffers are averaged as the parameters are, so these then have one decay."""
        return {"uniform": frozenset({"decay"})} if self.buffers == "average" else {}

    def check(self) -> None:
        for name, least in (("start", 0), ("every", 1)):
            value = whole_number(getattr(self, name))
            if value is None or value < least:
                given = getattr(self, name)
                raise ValueError(f"average_params: {name} must be an integer of at least {least}, got {given!r}.")
            object.__setattr__(self, name, value)
        if self.buffers not in ("keep", "copy", "average"):
            raise ValueError(f"average_params: buffers must be 'keep', 'copy' or 'average', got {self.buffers!r}.")

    def init(self, params: Tensors) -> AverageParamsState:
        slots = params.slow_slot(self.dtype)
        return AverageParamsState(params.clone().stored_as(slots), params.select(()))

    def update(
        self, g: Tensors | Weights, state: AverageParamsState, ctx: Context
    ) -> tuple[Tensors | Weights, AverageParamsState]:
        new = ctx.new_params(g).select(state.average.index)
        age = ctx.step - self.start
        if age < 0:
            return g, AverageParamsState(new, self._averaged_buffers(state, ctx, 1.0))
        if age % self.every:
            return g, state
        mean: object = self.decay
        weight = 1 / (state.num_averaged + 1) if mean == "mean" else 1 - self.decay
        average = state.average.lerp(new, weight)
        return g, AverageParamsState(average, self._averaged_buffers(state, ctx, weight), state.num_averaged + 1)

    def _averaged_buffers(self, state: AverageState, ctx: Context, weight: Hyper | float) -> Tensors:
        return state.buffers if self.buffers == "keep" else ctx.of_buffers(self._averaged, state.buffers, weight)

    def _averaged(self, buffers: Mapping[str, Tensor], before: Tensors, weight: float) -> Tensors:
        """The buffers as the average is to have them."""
        if not buffers:
            return before
        live = EagerTensors.at(Index.of(buffers), dict(buffers)).clone()
        if self.buffers == "copy" or not len(before):
            return live
        floats = [name for name, buffer in live.items() if buffer.is_floating_point()]
        return live.overlay(before.select(floats).lerp(live.select(floats), weight))
