"""Decays without a natural end: exponential, and one over a power of time."""

from __future__ import annotations

import math

from gradchain.schedules._check import bad, finite, non_negative, one_number, positive
from gradchain.schedules._curves import linear_between
from gradchain.schedules.base import Schedule

__all__ = ["exponential", "inverse_sqrt", "inverse_time"]


class exponential(Schedule):
    """A constant factor per update.

    value(t) = start * gamma ** (t / step_size), not beyond `end` if there is one

    From a to b in n updates, a straight line on a log scale: `exponential(a, b / a, n, end=b)`.

    Args:
        start: value at step 0; any finite number.
        gamma: factor per `step_size` updates, above 0; above 1 it grows.
        step_size: updates over which the value is multiplied by gamma once, above 0, whole or fractional.
        end: value at which it stops, on the side that gamma moves to, with the sign of `start`; None: none.

    At the end: with `end` the length is the time of reaching it, step_size * log(end / start) / log(gamma), and then
    exactly `end` is held; without, there is none, and the value tends to 0 (gamma < 1).

    Raises: OverflowError where a growing value leaves the range of floats.

    Equals: torch ExponentialLR(gamma) at the rate lr is `exponential(lr, gamma)`. optax.exponential_decay(init_value,
        transition_steps, decay_rate, end_value=) is `exponential(init_value, decay_rate, transition_steps, end=)`;
        with staircase=True it is `step_decay(init_value, transition_steps, decay_rate)`, with `.clip` for end_value.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.exponential(1.0, 0.5, step_size=10, end=0.25)
        >>> lr(10), lr(20), lr(30), lr.length
        (0.5, 0.25, 0.25, 20.0)
    """

    start: float
    gamma: float
    step_size: float = 1
    end: float | None = None

    def __post_init__(self) -> None:
        finite(self, "start")
        positive(self, "gamma", "step_size")
        if self.end is None:
            return
        end = float(one_number("exponential", "end", self.end, "a finite number or None", lambda _: True))
        object.__setattr__(self, "end", end)
        ratio = end / self.start if self.start else 0.0
        if not (ratio > 0.0 and (ratio - 1.0) * (self.gamma - 1.0) >= 0.0 and (self.gamma != 1.0 or ratio == 1.0)):
            bad(
                "exponential",
                f"end must be a value that {self.start!r} * {self.gamma!r}**t reaches",
                end,
                "for a floor at 0 or a bound on the other side use .clip",
            )

    @property
    def length(self) -> float | None:
        if self.end is None:
            return None
        ratio = self.end / self.start
        return 0.0 if ratio == 1.0 else self.step_size * (math.log(ratio) / math.log(self.gamma))

    def curve(self, t: float) -> float:
        length = self.length
        if self.end is not None and length is not None and t >= length:
            return self.end
        try:
            return self.start * math.pow(self.gamma, t / self.step_size)
        except OverflowError:
            raise OverflowError(
                f"exponential: the value must stay in the range of floats, got {self.start!r} * {self.gamma!r}**"
                f"{t / self.step_size!r}; stop it with end= or .take(steps)."
            ) from None


class inverse_sqrt(Schedule):
    """A straight line from `start` to `peak`, then one over the square root of time.

    value(t) = linear(start, peak, warmup_steps)(t) for t < warmup_steps,
    then peak * sqrt(timescale / (t - warmup_steps + timescale))

    Args:
        start: value at step 0; any finite number. Not used if `warmup_steps` is 0.
        peak: value at step `warmup_steps`; any finite number.
        warmup_steps: updates of the line, at least 0; 0: the peak at once.
        timescale: updates after the peak at which the value has fallen to peak / sqrt(2), above 0; None:
            `warmup_steps`, which gives peak * sqrt(warmup_steps / t). It must be given where `warmup_steps` is 0.

    At the end: there is none; the value tends to 0. `.take(n)` ends it.

    Equals: Hugging Face get_inverse_sqrt_schedule(warmup, timescale) is `inverse_sqrt(0.0, lr, warmup, timescale)`;
        fairseq inverse_sqrt is `inverse_sqrt(warmup_init_lr, lr, warmup_updates)`. The paper's rate for width d is
        `inverse_sqrt(0.0, (d * warmup) ** -0.5, warmup)`, with its step counted from 0.

    Paper: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 5.3

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.inverse_sqrt(0.0, 1.0, 100)
        >>> lr(50), lr(100), lr(400)
        (0.5, 1.0, 0.5)
    """

    start: float
    peak: float
    warmup_steps: float
    timescale: float | None = None

    def __post_init__(self) -> None:
        finite(self, "start", "peak")
        non_negative(self, "warmup_steps")
        if self.timescale is not None:
            positive(self, "timescale")
        elif self.warmup_steps == 0:
            bad("inverse_sqrt", "timescale must be given where warmup_steps is 0", None, "10_000 is a common choice")

    def curve(self, t: float) -> float:
        if t < self.warmup_steps:
            return linear_between(self.start, self.peak, t, self.warmup_steps)
        scale = self.warmup_steps if self.timescale is None else self.timescale
        return self.peak * math.sqrt(scale / (t - self.warmup_steps + scale))


class inverse_time(Schedule):
    """One over a power of time.

    value(t) = start * (1 + gamma * t) ** -power

    Args:
        start: value at step 0; any finite number.
        gamma: how fast, per update, at least 0; after 1 / gamma updates the value has fallen to start * 2**-power.
        power: above 0.

    At the end: there is none; the value tends to 0. `.take(n)` ends it.

    Equals: Caffe's and mmcv's "inv" policy; `inverse_time(lr, 1 / s, power=0.5)` is `inverse_sqrt(lr, lr, 0, s)`.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.inverse_time(1.0, 0.25)
        >>> lr(0), lr(4), lr(12)
        (1.0, 0.5, 0.25)
    """

    start: float
    gamma: float
    power: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "start")
        non_negative(self, "gamma")
        positive(self, "power")

    def curve(self, t: float) -> float:
        return self.start * math.pow(1.0 + self.gamma * t, -self.power)
