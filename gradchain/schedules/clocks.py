"""Schedules in another time than the step: a clock of its own, or epochs of a fixed number of updates."""

from __future__ import annotations

from collections.abc import Mapping

from gradchain.schedules._check import bad, positive
from gradchain.schedules.base import STEP, Schedule, ScheduleLike, length_of, read, require_step, value_of

__all__ = ["by", "per_epoch"]


class by(Schedule):
    """A schedule that reads a named clock instead of the step.

    value = schedule(clocks[clock])

    The updater keeps the clocks: "step" and "micro" tick by themselves, others by `updater.tick("epoch")`. As it reads
    another time, it must be outside: `by("epoch", join(...))`, never inside join, then, take, per_epoch or by.
    Arithmetic may mix clocks: `linear(0.0, 1.0, 500) * by("epoch", step_decay(0.1, 30))`.

    Args:
        clock: the name of the clock, an identifier.
        schedule: a schedule or a function, in that clock's unit.

    At the end: after the schedule's end, in its clock, its end value is held. The length in updates is not known: None.
    Raises: calling it with a step is an error, unless the clock is "step"; use `.at({"epoch": 3})`.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.by("epoch", gch.linear(1.0, 0.0, 10))
        >>> lr.at({"step": 12345, "epoch": 5})
        0.5
        >>> sorted(lr.clocks)
        ['epoch']
    """

    clock: str
    schedule: ScheduleLike

    def __post_init__(self) -> None:
        clock: object = self.clock
        if not (isinstance(clock, str) and clock.isidentifier()):
            bad("by", "clock must be a name such as 'epoch'", self.clock)
        require_step("by", "schedule", self.schedule)

    @property
    def clocks(self) -> frozenset[str]:
        return frozenset({self.clock})

    @property
    def length(self) -> float | None:
        return length_of(self.schedule) if self.clocks == STEP else None

    def curve(self, t: float) -> float:
        if self.clocks == STEP:
            return value_of(self.schedule, t)
        raise TypeError(
            f"by: a schedule of the clock {self.clock!r} cannot be called with a step, got {t!r}; "
            f"use .at({{{self.clock!r}: ...}})."
        )

    def at(self, clocks: Mapping[str, float]) -> float:
        return value_of(self.schedule, max(read("by", clocks, self.clock), 0))


class per_epoch(Schedule):
    """A schedule written in epochs, where every epoch has the same number of updates.

    value(t) = schedule(t // n), or schedule(t / n) with fractional=True

    Where epochs differ in length, use `by("epoch", schedule)` and tick that clock.

    Args:
        schedule: a schedule or a function of the epoch, from 0.
        n: updates per epoch, above 0.
        fractional: False, the value changes once per epoch; True, at every update.

    At the end: the length is the schedule's times n; then its end value is held.
    Equals: a torch scheduler stepped once per epoch; MAE's and timm's per-update schedules with fractional=True.

    Example:
        >>> import gradchain as gch
        >>> epochs = gch.linear(1.0, 0.0, 10)
        >>> gch.schedules.per_epoch(epochs, 100)(250), gch.schedules.per_epoch(epochs, 100, fractional=True)(250)
        (0.8, 0.75)
    """

    schedule: ScheduleLike
    n: float
    fractional: bool = False

    def __post_init__(self) -> None:
        require_step("per_epoch", "schedule", self.schedule)
        positive(self, "n")
        if not isinstance(self.fractional, bool):
            bad("per_epoch", "fractional must be True or False", self.fractional, kind=TypeError)

    @property
    def length(self) -> float | None:
        length = length_of(self.schedule)
        return None if length is None else length * self.n

    def curve(self, t: float) -> float:
        length = length_of(self.schedule)
        if length is not None and t >= length * self.n:
            return value_of(self.schedule, length)
        return value_of(self.schedule, t / self.n if self.fractional else t // self.n)
