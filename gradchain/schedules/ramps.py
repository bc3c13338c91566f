"""From one value to another: constant, linear, polynomial."""

from __future__ import annotations

from gradchain.schedules._check import finite, non_negative, positive
from gradchain.schedules._curves import linear_between, mix
from gradchain.schedules.base import Schedule

__all__ = ["constant", "linear", "polynomial"]


class constant(Schedule):
    """The same value at every step.

    value(t) = value

    A hyperparameter takes the bare number as well; this is for `.then` and `join`. It has no end: `.take(n)` gives one.

    Args:
        value: any finite number.

    Equals: optax.constant_schedule(value). torch ConstantLR(factor, total_iters) is a step:
        `constant(factor * lr).take(total_iters).then(constant(lr))`.

    Example:
        >>> import gradchain as gch
        >>> gch.constant(0.1)(1000)
        0.1
    """

    value: float

    def __post_init__(self) -> None:
        finite(self, "value")

    def curve(self, t: float) -> float:
        return self.value


class linear(Schedule):
    """A straight line from `start` at step 0 to `end` at step `steps`.

    value(t) = start + (end - start) * t / steps for t < steps, else end

    The update number `steps` (the first is number 0) is the first to use `end`, so from `start=0.0` the first update
    changes nothing. With `steps=0` the value is `end` at once: a warm-up of 0 steps starts at its peak.

    Warm-up over W updates comes in eight conventions. Each as the value at update t < W, to the rate lr:

    ======================================  ==============================================================
    t / W (MAE, MoCo, Hugging Face)         `linear(0.0, lr, W).then(main)`
    (t + 1) / W (open_clip, torchtitan)     `linear(lr / W, lr, W - 1).take(W).then(main)`
    (t + 1) / (W + 1) (nanoGPT)             `linear(lr / (W + 1), lr, W).then(main)`
    t / (W - 1) (DINO, MMEngine)            `linear(0.0, lr, W - 1).take(W).then(main)`
    a + t * (lr - a) / W (timm)             `linear(a, lr, W).then(main)`
    chord to main's value at W (detectron2) `join((0, W, linear(a, main(W), W)), (W, None, main), absolute=True)`
    from a to a moving target (YOLO)        `linear(a, 0.0, W) + linear(0.0, 1.0, W) * main`
    sine times main (3D Gaussians)          `main * (lambda t: math.sin(math.pi / 2 * min(t / W, 1.0)))`
    ======================================  ==============================================================

    With `.then`, main starts in its own time 0 at update W; in the last three lines main runs from update 0. In the
    second and fourth, lr is reached at update W - 1; `.take(W)` holds it for one more, so that main starts at W.

    Args:
        start: value at step 0; any finite number.
        end: value at step `steps` and after; any finite number.
        steps: updates from one to the other, at least 0, whole or fractional.

    At the end: from step == steps on exactly `end`.

    Equals: optax.linear_schedule(start, end, steps), which with 0 steps stays at `start` for good (ours: `end`).
        torch LinearLR(start_factor, end_factor, total_iters) at the rate lr:
        `linear(start_factor * lr, end_factor * lr, total_iters)`.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.linear(0.0, 0.1, 500).then(gch.cosine(0.1, 0.0, 9_500))
        >>> lr(0), lr(250), lr(500), lr(20_000)
        (0.0, 0.05, 0.1, 0.0)
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        finite(self, "start", "end")
        non_negative(self, "steps")

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        return linear_between(self.start, self.end, t, self.steps)


class polynomial(Schedule):
    """A power of the remaining time, from `start` to `end`.

    value(t) = end + (start - end) * (1 - t / steps) ** power for t < steps, else end

    Args:
        start: value at step 0; any finite number.
        end: value at step `steps` and after; any finite number.
        steps: updates from one to the other, at least 0; 0: `end` at once.
        power: above 0; 1 is `linear`, a larger one falls faster at first.

    At the end: from step == steps on exactly `end`.

    Equals: optax.polynomial_schedule(start, end, power, steps), which with 0 steps stays at `start`. torch
        PolynomialLR(total_iters, power) at the rate lr: `polynomial(lr, 0.0, total_iters, power)`.

    Example:
        >>> import gradchain as gch
        >>> gch.schedules.polynomial(1.0, 0.0, 10, power=2.0)(5)
        0.25
    """

    start: float
    end: float
    steps: float
    power: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "start", "end")
        non_negative(self, "steps")
        positive(self, "power")

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        if t >= self.steps:
            return self.end
        rest = ((self.steps - t) / self.steps) ** self.power
        return mix(self.start, self.end, rest, 1.0 - rest)
