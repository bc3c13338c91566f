"""Half a cosine: once, there and back, again and again, and after a warm-up."""

from __future__ import annotations

import math

from gradchain.schedules._check import bad, finite, non_negative, one_number, positive
from gradchain.schedules._curves import cosine_between, linear_between, mix
from gradchain.schedules.base import Schedule

__all__ = ["cosine", "cosine_restarts", "cosine_wave", "warmup_cosine"]


class cosine(Schedule):
    """Half a cosine from `start` at step 0 to `end` at step `steps`.

    value(t) = end + (start - end) * ((1 + cos(pi * t / steps)) / 2) ** exponent for t < steps, else end

    Args:
        start: value at step 0; any finite number.
        end: value at step `steps` and after; any finite number; above `start` it rises.
        steps: updates from one to the other, at least 0; 0: `end` at once.
        exponent: above 0; applied to the curve that falls from 1 to 0.

    At the end: from step == steps on exactly `end`. It does not climb back.

    Equals: torch CosineAnnealingLR(T_max, eta_min) is `cosine(lr, eta_min, T_max)` up to T_max, after which torch
        climbs back to lr. optax.cosine_decay_schedule(init_value, decay_steps, alpha, exponent) is
        `cosine(init_value, alpha * init_value, decay_steps, exponent)`: its alpha is a fraction, our `end` a value.

    Paper: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983

    Example:
        >>> import gradchain as gch
        >>> lr = gch.cosine(0.5, 0.0, 100)
        >>> lr(0), lr(100), lr(101)
        (0.5, 0.0, 0.0)
        >>> round(lr(50), 12)
        0.25
    """

    start: float
    end: float
    steps: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "start", "end")
        non_negative(self, "steps")
        positive(self, "exponent")

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        return cosine_between(self.start, self.end, t, self.steps, self.exponent)


class cosine_wave(Schedule):
    """A cosine from `start` to `end` in `steps` updates, and back in as many, without end.

    value(t) = end + (start - end) * (1 + cos(pi * t / steps)) / 2

    It is what torch's and MMEngine's CosineAnnealing do beyond T_max, and it rounds as they do: close to an `end` of 0
    the sum 1 + cos loses digits, which `cosine` keeps.

    Args:
        start: value at step 0 and after every even number of half waves; any finite number.
        end: value at step `steps` and after every odd number; any finite number.
        steps: updates of half a wave, above 0, whole or fractional.

    At the end: there is none. `.take(n)` sets one.

    Equals: torch CosineAnnealingLR(T_max, eta_min) at the rate lr is `cosine_wave(lr, eta_min, T_max)`.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.cosine_wave(0.5, 0.1, 10)
        >>> lr(0), lr(10), lr(20), lr(30)
        (0.5, 0.1, 0.5, 0.1)
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        finite(self, "start", "end")
        positive(self, "steps")

    def curve(self, t: float) -> float:
        # Within one wave: the cosine of a large angle would be less exact.
        turn = math.cos(math.pi * (t % (2 * self.steps)) / self.steps) if t < math.inf else 1.0
        return mix(self.start, self.end, (1.0 + turn) / 2.0, (1.0 - turn) / 2.0)


class cosine_restarts(Schedule):
    """Cosines from a peak to `end`, again and again: SGDR.

    value(t) = end + (start - end) * height_decay**k * (1 + cos(pi * s / P)) / 2, where k is the number of the cycle
    that t lies in, P = period * period_multiplier**k its updates and s the updates since it began

    Args:
        start: value at step 0, the peak of the first cycle; any finite number.
        end: value that each cycle approaches; any finite number. The update before a restart is still above it.
        period: updates of the first cycle, above 0.
        period_multiplier: each cycle is this many times as long as the one before; at least 1.
        height_decay: each peak is this many times as high above `end` as the one before; above 0.
        cycles: how many cycles, at least 1; None: without end.

    At the end: with `cycles` the length is the sum of their periods, and then `end` is held; else there is none.

    Equals: torch CosineAnnealingWarmRestarts(T_0, T_mult, eta_min) is `cosine_restarts(lr, eta_min, T_0, T_mult)`;
        optax.sgdr_schedule with the same cycles written out and warmup_steps=0. timm's cycle_decay multiplies the
        peak itself, not its height above the floor: the same where the floor is 0.

    Paper: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.cosine_restarts(1.0, 0.0, 10, period_multiplier=2, height_decay=0.5)
        >>> lr(0), lr(10), lr(30)
        (1.0, 0.5, 0.25)
    """

    start: float
    end: float
    period: float
    period_multiplier: float = 1
    height_decay: float = 1.0
    cycles: int | None = None

    def __post_init__(self) -> None:
        finite(self, "start", "end")
        positive(self, "period", "height_decay")
        number = one_number(
            "cosine_restarts", "period_multiplier", self.period_multiplier, "a number of at least 1", lambda x: x >= 1
        )
        object.__setattr__(self, "period_multiplier", number)
        if self.cycles is not None:
            count = one_number("cosine_restarts", "cycles", self.cycles, "a whole number of at least 1", _whole)
            object.__setattr__(self, "cycles", int(count))
            try:
                self._origin(int(count))
            except OverflowError:
                bad("cosine_restarts", "cycles must be few enough that their sum is a finite number", count)

    @property
    def length(self) -> float | None:
        return None if self.cycles is None else self._origin(self.cycles)

    def _origin(self, cycle: int) -> float:
        """The step at which a cycle begins: period * (1 + m + ... + m**(cycle - 1)); exact for whole numbers."""
        if self.period_multiplier == 1:
            return self.period * cycle
        terms = (self.period_multiplier**cycle - 1) / (self.period_multiplier - 1)
        return self.period * terms

    def _cycle(self, t: float) -> int:
        if self.period_multiplier == 1:
            cycle = int(t // self.period)
        else:
            ratio = 1 + t / self.period * (self.period_multiplier - 1)
            cycle = int(math.log(ratio) / math.log(self.period_multiplier))
        # A logarithm may land an ulp to either side of a border.
        while cycle > 0 and t < self._origin(cycle):
            cycle -= 1
        while t >= self._origin(cycle + 1):
            cycle += 1
        return cycle

    def curve(self, t: float) -> float:
        length = self.length
        if length is not None and t >= length:
            return self.end
        cycle = self._cycle(t)
        peak = self.end + (self.start - self.end) * self.height_decay**cycle if cycle else self.start
        return cosine_between(peak, self.end, t - self._origin(cycle), self.period * self.period_multiplier**cycle)


def _whole(number: float) -> bool:
    return number >= 1 and number == int(number)


class warmup_cosine(Schedule):
    """A straight line from `start` to `peak`, then half a cosine to `end`.

    value(t) = linear(start, peak, warmup_steps)(t) for t < warmup_steps,
    then cosine(peak, end, steps - warmup_steps, exponent)(t - warmup_steps)

    Args:
        start: value at step 0; any finite number. Not used if `warmup_steps` is 0.
        peak: value at step `warmup_steps`; any finite number.
        warmup_steps: updates of the line, at least 0 and below `steps`; 0: the peak at once.
        steps: updates of the whole, the warm-up included.
        end: value at step `steps` and after; any finite number.
        exponent: above 0; as in `cosine`.

    At the end: from step == steps on exactly `end`.

    Equals: optax.warmup_cosine_decay_schedule with the same arguments in the same order (its decay_steps is our
        `steps`). Hugging Face get_cosine_schedule_with_warmup(W, T) is `warmup_cosine(0.0, lr, W, T)`.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.warmup_cosine(0.0, 1.0, 10, 110)
        >>> lr(5), lr(10), lr(110)
        (0.5, 1.0, 0.0)
    """

    start: float
    peak: float
    warmup_steps: float
    steps: float
    end: float = 0.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "start", "peak", "end")
        non_negative(self, "warmup_steps")
        positive(self, "steps", "exponent")
        if self.steps <= self.warmup_steps:
            cure = "steps counts the warm-up too"
            bad("warmup_cosine", f"steps must be above warmup_steps={self.warmup_steps!r}", self.steps, cure)

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        if t < self.warmup_steps:
            return linear_between(self.start, self.peak, t, self.warmup_steps)
        if t >= self.steps:
            return self.end
        rest = self.steps - self.warmup_steps
        return cosine_between(self.peak, self.end, t - self.warmup_steps, rest, self.exponent)
