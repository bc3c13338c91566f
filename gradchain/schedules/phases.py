"""Schedules in phases: up and down once, and up, level, down."""

from __future__ import annotations

from typing import Literal

from gradchain.schedules._check import bad, choice, finite, non_negative, one_number, positive
from gradchain.schedules._curves import between, linear_between, through
from gradchain.schedules.base import Schedule

__all__ = ["one_cycle", "warmup_stable_decay"]


class one_cycle(Schedule):
    """One cycle: from `start` up to `peak`, then down to `end`, in two or three phases.

    value(t) = the curves of `shape` through (0, start), (warmup_steps, peak), [(return_steps, start)], (steps, end)

    It is as good for a momentum that goes the other way: `one_cycle(0.95, 0.85, 30, 100, end=0.95)`.

    Args:
        start: value at step 0; any finite number.
        peak: value at step `warmup_steps`; any finite number, below `start` for a momentum.
        warmup_steps: updates from start to peak, at least 0 and below `steps`, whole or fractional.
        steps: updates of the whole.
        end: value at step `steps` and after; any finite number.
        shape: "cosine" or "linear", the curve of every phase.
        return_steps: with a third phase the step at which the value is back at `start`, above `warmup_steps` and
            below `steps`; None: two phases.

    At the end: from step == steps on exactly `end`.

    Equals: torch OneCycleLR(max_lr, total_steps=T, pct_start=p, div_factor=25, final_div_factor=1e4) peaks at
        p * T - 1 and ends at T - 1, which is its last update:
        `one_cycle(max_lr / 25, max_lr, p * T - 1, T - 1, end=max_lr / 25 / 1e4)`, with anneal_strategy "linear"
        `shape="linear"`, with three_phase=True `return_steps=2 * p * T - 2`; its momentum is
        `one_cycle(max_momentum, base_momentum, p * T - 1, T - 1, end=max_momentum)`.
        optax.cosine_onecycle_schedule(T, peak, p, 25, 1e4) peaks at int(p * T) and ends at T:
        `one_cycle(peak / 25, peak, int(p * T), T, end=peak / (25 * 1e4))`; optax.linear_onecycle_schedule(T, peak,
        p, q, 25, 1e4) adds `shape="linear", return_steps=int(q * T)` and ends at peak / 25 / 1e4.

    Paper: Smith and Topin, 2017, https://arxiv.org/abs/1708.07120

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.one_cycle(0.25, 1.0, 30, 100, shape="linear")
        >>> lr(0), lr(30), lr(65), lr(100)
        (0.25, 1.0, 0.5, 0.0)
    """

    start: float
    peak: float
    warmup_steps: float
    steps: float
    end: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"
    return_steps: float | None = None

    def __post_init__(self) -> None:
        finite(self, "start", "peak", "end")
        non_negative(self, "warmup_steps")
        positive(self, "steps")
        choice(self, "shape", ("cosine", "linear"))
        if self.steps <= self.warmup_steps:
            cure = "steps counts the warm-up too"
            bad("one_cycle", f"steps must be above warmup_steps={self.warmup_steps!r}", self.steps, cure)
        if self.return_steps is not None:
            rule = f"a number above warmup_steps={self.warmup_steps!r} and below steps={self.steps!r}, or None"
            number = one_number(
                "one_cycle", "return_steps", self.return_steps, rule, lambda x: self.warmup_steps < x < self.steps
            )
            object.__setattr__(self, "return_steps", number)

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        points = [(0.0, self.start), (self.warmup_steps, self.peak), (self.steps, self.end)]
        if self.return_steps is not None:
            points.insert(2, (self.return_steps, self.start))
        return through(points, t, self.shape)


class warmup_stable_decay(Schedule):
    """A straight line from `start` to `peak`, then level, then down to `end`.

    value(t) = linear(start, peak, warmup_steps)(t) for t < warmup_steps, peak for t < steps - decay_steps,
    then peak + (end - peak) * c(u) with u = (t - (steps - decay_steps)) / decay_steps and
    c(u) = u (linear), (1 - cos(pi * u)) / 2 (cosine) or sqrt(u) (sqrt: the paper's "1-sqrt")

    The level part does not depend on where the run will end, so a run can be prolonged from its level part.

    Args:
        start: value at step 0; any finite number. Not used if `warmup_steps` is 0.
        peak: value of the level part; any finite number.
        warmup_steps: updates of the line, at least 0; 0: the peak at once.
        steps: updates of the whole, warm-up and decay included.
        decay_steps: updates of the decay, above 0; with the warm-up at most `steps`.
        end: value at step `steps` and after; any finite number.
        shape: "linear", "cosine" or "sqrt", the curve of the decay.

    At the end: from step == steps on exactly `end`.

    Equals: Hugging Face get_wsd_schedule(W, D, num_training_steps=T, min_lr_ratio=r, decay_type=d) at the rate lr is
        `warmup_stable_decay(r * lr, lr, W, T, D, end=r * lr, shape=d)`; its "1-sqrt" is our "sqrt", its default is
        cosine.

    Paper: Hu et al., 2024, https://arxiv.org/abs/2404.06395; Hägele et al., 2024, https://arxiv.org/abs/2405.18392

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.warmup_stable_decay(0.0, 1.0, 10, 100, 20)
        >>> lr(5), lr(50), lr(80), lr(90), lr(100)
        (0.5, 1.0, 1.0, 0.5, 0.0)
    """

    start: float
    peak: float
    warmup_steps: float
    steps: float
    decay_steps: float
    end: float = 0.0
    shape: Literal["linear", "cosine", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        finite(self, "start", "peak", "end")
        non_negative(self, "warmup_steps")
        positive(self, "steps", "decay_steps")
        choice(self, "shape", ("linear", "cosine", "sqrt"))
        if self.warmup_steps + self.decay_steps > self.steps:
            rule = f"steps must be at least warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps!r}"
            bad("warmup_stable_decay", rule, self.steps, "steps counts both")

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        if t < self.warmup_steps:
            return linear_between(self.start, self.peak, t, self.warmup_steps)
        if t >= self.steps:
            return self.end
        decayed = t - (self.steps - self.decay_steps)
        return self.peak if decayed <= 0 else between(self.shape, self.peak, self.end, decayed, self.decay_steps)
