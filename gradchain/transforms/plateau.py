"""Smaller steps, or another number, where what is observed no longer improves."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

from gradchain.core.context import Context
from gradchain.core.hyper import Hyper
from gradchain.core.roles import TicksClock
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


class WatchState(State):
    """What tick_on_plateau remembers."""

    best: Annotated[float, "[-inf, inf]"]
    num_bad: Annotated[int, "integer [0, inf)"] = 0
    cooldown_left: Annotated[int, "integer [0, inf)"] = 0


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
        _check_watch(self)

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
        best, bad, left, over = _watched(self, x, state)
        value = state.value
        if over:
            lower = max(self.factor * value, self.min_value)
            value = lower if value - lower > self.eps else value
        return PlateauState(value, best, bad, left)


class tick_on_plateau(TicksClock):
    """Pass the updates on, and tick a clock whenever an observed number stops improving: schedules read how often.

        u = g;  on each observation x:  best ← x and bad ← 0 if x is better, else bad ← bad + 1;  in a cooldown bad ← 0
        if bad > patience:  clock ← clock + 1;  bad ← 0

    So any number of any link falls on a plateau, or rises, and for each group of parameters as it should: a momentum
    that halves down to 0.5 is `by("plateau", exponential(0.9, 0.5).clip(low=0.5))`. `updater.observe("val_loss", x)` is
    an observation; its tick is there at once, for all links of the next update. For smaller steps alone
    `reduce_on_plateau` needs no clock. `updater.tick("plateau")` reduces by hand.

    Args:
        observed: the name given to `observe`.
        clock: the name of the clock, which a schedule reads, or an override.
        patience, threshold, threshold_mode, cooldown, mode, worst: as those of `reduce_on_plateau`.

    Shapes: any.
    State: three numbers; how often it ticked is in the updater's clocks.
    Units: unchanged.
    Raises: ValueError or TypeError for an argument outside its range, and at bind for a clock at whose ticks a link
        works, or that nothing reads where another one is read.
    Equals: MMEngine's ReduceOnPlateauMomentum and ReduceOnPlateauParamScheduler, by such a schedule of their field.

    >>> import torch, gradchain as gch
    >>> momentum = gch.by("plateau", gch.schedules.exponential(0.9, 0.5).clip(low=0.5))
    >>> watch = gch.rules.tick_on_plateau("val_loss", "plateau", patience=0)
    >>> updater = gch.chain(gch.sgd(0.1, momentum=momentum), watch).bind(torch.nn.Linear(2, 1))
    >>> for loss in (1.0, 2.0, 3.0):
    ...     updater.observe("val_loss", loss)
    ...     print(updater.hyperparams()["trace.decay"])
    0.9
    0.5
    0.5
    """

    descends = False
    per_parameter = True
    read_once = frozenset({"worst"})
    uniform = frozenset({"patience", "threshold", "cooldown", "worst"})

    observed: str
    clock: str
    patience: Hyper = Hyper(10, "integer [0, inf)")
    threshold: Hyper = Hyper(1e-4, "[0, inf)")
    threshold_mode: str = "rel"
    cooldown: Hyper = Hyper(0, "integer [0, inf)")
    mode: str = "min"
    worst: Hyper = Hyper(math.inf, "(0, inf]")

    def says(self) -> Says:
        """It waits for its number."""
        return {"observes": frozenset({self.observed})}

    def check(self) -> None:
        _check_watch(self)
        given: object = self.clock
        if not (isinstance(given, str) and given.isidentifier()) or given in ("step", "micro"):
            raise ValueError(
                f"tick_on_plateau: clock must be a name such as 'plateau', of a clock that does not tick by itself, "
                f"got {given!r}."
            )

    def init(self, params: Tensors) -> WatchState:
        return WatchState(self.worst if self.mode == "min" else -self.worst)

    def update(self, g: Tensors, state: WatchState, ctx: Context) -> tuple[Tensors, WatchState]:
        return g, state

    def looked(self, x: float, state: WatchState, ctx: Context) -> tuple[WatchState, bool]:
        best, bad, left, over = _watched(self, x, state)
        return WatchState(best, bad, left), over


_Watch: TypeAlias = "reduce_on_plateau | tick_on_plateau"


def _check_watch(link: _Watch) -> None:
    """TypeError or ValueError for what no observation can be held to."""
    owner = type(link).__name__
    if not isinstance(link.observed, str):
        raise TypeError(f"{owner}: observed must be the name given to observe, got {link.observed!r}.")
    for name, known in (("threshold_mode", ("rel", "abs", "magnitude")), ("mode", ("min", "max"))):
        given = getattr(link, name)
        if given not in known:
            raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, known))}, got {given!r}.")


def _watched(link: _Watch, x: float, state: Any) -> tuple[float, int, int, bool]:
    """After one more observation: the best, the bad ones in a row, what is left of a cooldown; whether one begins."""
    better = _is_better(link, x, state.best)
    cooling = state.cooldown_left > 0
    bad = 0 if better or cooling else state.num_bad + 1
    best, over = x if better else state.best, bad > link.patience
    return best, 0 if over else bad, math.trunc(link.cooldown) if over else state.cooldown_left - cooling, over


def _is_better(link: _Watch, x: float, best: float) -> bool:
    sign = 1.0 if link.mode == "min" else -1.0
    if link.threshold_mode == "rel":
        return sign * x < sign * best * (1.0 - sign * link.threshold)
    margin = link.threshold if link.threshold_mode == "abs" or abs(best) == math.inf else link.threshold * abs(best)
    return sign * x < sign * best - margin
