"""Smaller steps where what is observed no longer improves."""

from __future__ import annotations

import math
from typing import Annotated

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.says import Says
from gradchain.core.state import State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


class PlateauState(State):
    """What reduce_on_plateau remembers."""

    value: Annotated[float, "[0, inf)"]  # what `base` has come to
    best: Annotated[float, "[-inf, inf]"]
    num_bad: Annotated[int, "integer [0, inf)"] = 0
    cooldown_left: Annotated[int, "integer [0, inf)"] = 0
    num_seen: Annotated[int, "integer [0, inf)"] = 0  # of the observations


class reduce_on_plateau(Transform):
    """Multiply the updates by a number that falls whenever an observed number stops improving.

        u = (value / base) g;  value = base at first, and on each observation x:
        best ← x and bad ← 0 if x is better, else bad ← bad + 1;  in a cooldown bad ← 0
        if bad > patience:  value ← max(factor value, min_value), where that is more than eps less;  bad ← 0

    `updater.observe("val_loss", x)` is an observation. Each counts once, at the next update; those of a window, or of a
    validation without an update after it, wait for that. Better is, for mode "min", x < best (1 - threshold) with
    threshold_mode "rel", and x < best - threshold with "abs"; "rel" has the wrong sign for negative numbers, where
    "magnitude", x < best - threshold |best|, is right. A NaN is not better. The value is recorded as "value".

    Args:
        observed: the name given to `observe`.
        factor: in [0, 1).
        patience: how many bad observations in a row are borne, an integer of at least 0.
        threshold: how much better is better, at least 0.
        threshold_mode: "rel", "abs" or "magnitude".
        cooldown: how many observations after a reduction are not counted, an integer of at least 0.
        min_value: the value falls no further; in units of base, at least 0.
        eps: smaller reductions are left out; in units of base, at least 0.
        mode: "min" or "max": whether less or more is better.
        base: what the value is at first, above 0. With the learning rate here, min_value and eps are learning rates.
        worst: what any first observation has to beat, as a distance from 0; MMEngine has 1e9 here.

    Shapes: elementwise, any.
    State: five numbers.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range.
    Equals: torch.optim.lr_scheduler.ReduceLROnPlateau over SGD, with base=lr and min_value=min_lr; MMEngine's
        ReduceOnPlateauParamScheduler with worst=1e9, threshold_rule as threshold_mode and rule "less" or "greater" as
        mode; optax.contrib.reduce_on_plateau(patience=patience + 1) with eps=0, which takes a value at every update.

    >>> import gradchain as gch
    >>> gch.chain(gch.scale_by_adam(), gch.scale_by_learning_rate(1e-3), gch.reduce_on_plateau("val_loss", patience=3))
    chain(scale_by_adam(), scale_by_learning_rate(0.001), reduce_on_plateau("val_loss", patience=3))
    """

    descends = False
    read_once = frozenset({"base", "worst"})
    uniform = frozenset({"factor", "patience", "threshold", "cooldown", "min_value", "eps", "base", "worst"})

    observed: str
    factor: Hyper = Hyper(0.1, "[0, 1)")
    patience: Hyper = Hyper(10, "integer [0, inf)")
    threshold: Hyper = Hyper(1e-4, "[0, inf)")
    threshold_mode: str = "rel"
    cooldown: Hyper = Hyper(0, "integer [0, inf)")
    min_value: Hyper = Hyper(0.0, "[0, inf)")
    eps: Hyper = Hyper(1e-8, "[0, inf)")
    mode: str = "min"
    base: Hyper = Hyper(1.0, "(0, inf)")
    worst: Hyper = Hyper(math.inf, "(0, inf]")

    def says(self) -> Says:
        """It waits for its number."""
        return {"observes": frozenset({self.observed})}

    def check(self) -> None:
        if not isinstance(self.observed, str):
            raise TypeError(f"reduce_on_plateau: observed must be the name given to observe, got {self.observed!r}.")
        for name, known in (("threshold_mode", ("rel", "abs", "magnitude")), ("mode", ("min", "max"))):
            given = getattr(self, name)
            if given not in known:
                raise ValueError(f"reduce_on_plateau: {name} must be {' or '.join(map(repr, known))}, got {given!r}.")

    def init(self, params: Tensors) -> PlateauState:
        return PlateauState(self.base, self.worst if self.mode == "min" else -self.worst)

    def update(self, g: Tensors, state: PlateauState, ctx: Context) -> tuple[Tensors, PlateauState]:
        news, count = ctx.news(self.observed, state.num_seen)
        for x in news:
            state = self._seen(x, state)
        ctx.record("value", state.value)
        return state.value / self.base * g, state.replace(num_seen=count)

    def _seen(self, x: float, state: PlateauState) -> PlateauState:
        """The state after one more observation."""
        better = self._is_better(x, state.best)
        cooling = state.cooldown_left > 0
        bad = 0 if better or cooling else state.num_bad + 1
        best, left = x if better else state.best, state.cooldown_left - cooling
        if bad <= self.patience:
            return PlateauState(state.value, best, bad, left)
        lower = max(self.factor * state.value, self.min_value)
        value = lower if state.value - lower > self.eps else state.value
        return PlateauState(value, best, 0, math.trunc(self.cooldown))

    def _is_better(self, x: float, best: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "rel":
            return sign * x < sign * best * (1.0 - sign * self.threshold)
        margin = self.threshold if self.threshold_mode == "abs" or abs(best) == math.inf else self.threshold * abs(best)
        return sign * x < sign * best - margin
