"""How much of an average stays, from none at first to nearly all."""

from __future__ import annotations

import math

from gradchain.schedules._check import one_number, positive
from gradchain.schedules.base import Schedule

__all__ = ["ema_exponential", "ema_warmup"]


class ema_warmup(Schedule):
    """The decay of a moving average that begins as a plain mean: `average_params(ema_warmup(0.9998))`.

    value(t) = min(decay, t / (gamma + t))

    With gamma=1 it is the mean of all weights until `decay` is reached. At step 0 nothing stays.

    Args:
        decay: what stays in the end, in [0, 1].
        gamma: updates after which half would stay, above 0.

    At the end: there is none; it stays at `decay`.

    Equals: MMEngine's MomentumAnnealingEMA(momentum=1 - decay, gamma); timm and diffusers have variants of it.

    Example:
        >>> import gradchain as gch
        >>> decay = gch.schedules.ema_warmup(0.9, gamma=10)
        >>> decay(0), decay(10), decay(1000)
        (0.0, 0.5, 0.9)
    """

    decay: float
    gamma: float = 100

    def __post_init__(self) -> None:
        _check_decay(self)
        positive(self, "gamma")

    def curve(self, t: float) -> float:
        return min(self.decay, t / (self.gamma + t))


class ema_exponential(Schedule):
    """The decay of a moving average that comes up exponentially: `average_params(ema_exponential(0.9998), start=1)`.

    value(t) = decay (1 - exp(-(1 + t) / gamma))

    Args:
        decay: what stays in the end, in [0, 1].
        gamma: updates in which the distance to `decay` falls to 1/e, above 0.

    At the end: there is none; it tends to `decay`.

    Equals: mmdet's ExpMomentumEMA(momentum=1 - decay, gamma), and YOLOv5's ModelEMA(decay, tau=gamma) one update later.

    Example:
        >>> import gradchain as gch
        >>> decay = gch.schedules.ema_exponential(0.9, gamma=2000)
        >>> f"{decay(0):.5f} {decay(1999):.5f} {decay(10**6):.5f}"
        '0.00045 0.56891 0.90000'
    """

    decay: float
    gamma: float = 2000

    def __post_init__(self) -> None:
        _check_decay(self)
        positive(self, "gamma")

    def curve(self, t: float) -> float:
        return -self.decay * math.expm1(-(1.0 + t) / self.gamma)


def _check_decay(schedule: ema_warmup | ema_exponential) -> None:
    owner = type(schedule).__name__
    decay = one_number(owner, "decay", schedule.decay, "a number in [0, 1]", lambda value: 0.0 <= value <= 1.0)
    object.__setattr__(schedule, "decay", float(decay))
