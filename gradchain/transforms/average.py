"""Keep a moving average of the weights, for evaluation and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.hyper import Hyper, HyperOr
from gradchain.core.index import Index
from gradchain.core.roles import AtTicks, AverageState
from gradchain.core.says import Says
from gradchain.core.scalars import whole_number
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights

_TICK_ALONE = ("step", "micro")
_EVERY_ROW = (
    'averages all rows. Take the average at ticks, average_params(…, on="ema"), and call updater.tick("ema") after '
    "each update."
)


class HyperOrMean(HyperOr):
    """A number, a schedule, or "mean"."""

    words = ("mean",)


class AverageParamsState(AverageState):
    """What average_params remembers; `buffers` has no entries with buffers="keep"."""

    num_averaged: Annotated[int, "integer [0, inf)"] = 0  # how many weights went into the average


class average_params(AtTicks):
    """Keep an average of the weights to be; the updates pass unchanged.

        a_t = decay a_(t-1) + (1 - decay) w_t      or, with "mean", the mean of all w_t averaged so far

    It comes last: it averages the weights that this update makes. `with updater.averaged(): evaluate(model)` swaps the
    average in. It runs over every parameter: one without a gradient keeps its weight, not its average. So do the rows
    that a sparse gradient does not name, and updates of rows see no others: there it is taken at ticks, `on="ema"`.

    Args:
        decay: what stays of the average at each update, in [0, 1], a number or a schedule of the applied updates such
            as `lambda t: (1 + t) / (10 + t)`, `schedules.ema_warmup` or `schedules.ema_exponential`; or "mean" for
            stochastic weight averaging.
        start: until so many updates are applied the average is the live weights, an integer of at least 0. With
            start=0 the average begins at the weights it was bound with.
        every: average every so many updates from `start` on, an integer of at least 1.
        buffers: "keep" leaves the model's buffers (batch-norm statistics) as they are; "copy" keeps those of the last
            averaging; "average" averages the floating-point ones as the weights, and copies the others. Batch-norm
            statistics of the average itself take a pass over data: `updater.update_batch_norm(loader)`.
        on: the name of a clock, other than "step" and "micro": the average is taken when `updater.tick(on)` is called,
            of the weights as they are then, and updates leave it alone. `start`, `every`, schedules and "mean" count
            ticks in place of updates, and it may stand anywhere in the chain. None averages at updates.
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

    The generator of a GAN that steps twice per batch, averaged once:

    >>> import torch
    >>> generator = torch.nn.Linear(2, 2)
    >>> updater = gch.chain(gch.adam(1e-3), gch.average_params("mean", on="ema")).bind(generator)
    >>> for noise in torch.ones(3, 4, 2):
    ...     for _ in range(2):
    ...         info = updater.update(generator(noise).square().mean())
    ...     updater.tick("ema")
    >>> updater.clocks
    {'step': 6, 'micro': 6, 'ema': 3}
    """

    descends = False
    role = "average"

    decay: Annotated[HyperOrMean, "[0, 1]"]
    start: int = 0
    every: int = 1
    buffers: str = "keep"
    dtype: torch.dtype | None = None
    on: str | None = None

    def says(self) -> Says:
        """Averaged buffers are averaged as the parameters are, so these have one decay. At ticks no update matters."""
        says: Says = {"per_parameter": self.on is not None}
        if self.on is None:
            says["refuses_rows"] = _EVERY_ROW
        return {**says, "uniform": frozenset({"decay"})} if self.buffers == "average" else says

    def check(self) -> None:
        for name, least in (("start", 0), ("every", 1)):
            value = whole_number(getattr(self, name))
            if value is None or value < least:
                given = getattr(self, name)
                raise ValueError(f"average_params: {name} must be an integer of at least {least}, got {given!r}.")
            object.__setattr__(self, name, value)
        if self.buffers not in ("keep", "copy", "average"):
            raise ValueError(f"average_params: buffers must be 'keep', 'copy' or 'average', got {self.buffers!r}.")
        clock: object = self.on
        if clock is not None and (not isinstance(clock, str) or not clock.isidentifier() or clock in _TICK_ALONE):
            raise ValueError(
                f"average_params: on must be the name of a clock that updater.tick advances, or None, got {clock!r}. "
                "None averages at updates."
            )

    def written(self) -> dict[str, Any]:
        """Its fields; a clock only where there is one, as configs of before there was any have it."""
        fields = super().written()
        return fields if self.on is not None else {name: fields[name] for name in fields if name != "on"}

    @property
    def clock(self) -> str | None:
        return self.on

    def init(self, params: Tensors) -> AverageParamsState:
        slots = params.slow_slot(self.dtype)
        return AverageParamsState(params.clone().stored_as(slots), params.select(()))

    def update(
        self, g: Tensors | Weights, state: AverageParamsState, ctx: Context
    ) -> tuple[Tensors | Weights, AverageParamsState]:
        return g, state if self.on is not None else self._next(ctx.new_params(g), state, ctx)

    def ticked(self, state: AverageParamsState, ctx: Context) -> AverageParamsState:
        return self._next(ctx.params, state, ctx)

    def _next(self, weights: Tensors, state: AverageParamsState, ctx: Context) -> AverageParamsState:
        """The state with one more average, of these weights."""
        new = weights.select(state.average.index)
        age = ctx.step - self.start
        if age < 0:
            return AverageParamsState(new, self._averaged_buffers(state, ctx, 1.0))
        if age % self.every:
            return state
        mean: object = self.decay
        weight = 1 / (state.num_averaged + 1) if mean == "mean" else 1 - self.decay
        average = state.average.lerp(new, weight)
        return AverageParamsState(average, self._averaged_buffers(state, ctx, weight), state.num_averaged + 1)

    def _averaged_buffers(self, state: AverageState, ctx: Context, weight: Hyper | float) -> Tensors:
        if self.buffers == "keep":
            return state.buffers_after()
        return ctx.of_buffers(self._averaged, state.buffers, weight)

    def _averaged(self, buffers: Mapping[str, Tensor], before: Tensors, weight: float) -> Tensors:
        """The buffers as the average is to have them."""
        if not buffers:
            return before
        live = EagerTensors.at(Index.of(buffers), dict(buffers))
        if self.buffers == "copy" or not len(before):
            return live
        floats = [name for name, buffer in live.items() if buffer.is_floating_point()]
        return live.overlay(before.select(floats).lerp(live.select(floats), weight))
