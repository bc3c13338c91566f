"""A schedule again and again."""

from __future__ import annotations

from gradchain.schedules._check import bad, one_number
from gradchain.schedules.arithmetic import primary
from gradchain.schedules.base import Schedule, ScheduleLike, length_of, require_step, source, value_of

__all__ = ["repeated"]


class repeated(Schedule):
    """A schedule that starts again whenever it ends; what `schedule.repeat(times)` makes.

    value(t) = schedule(t mod n), n the schedule's length

    At step == n it is at its own time 0 again, so its end value is seen only after the last time. A wave is a way there
    and back: `gch.cosine(1.0, 0.0, T).then(gch.cosine(0.0, 1.0, T)).repeat()`.

    Args:
        schedule: a schedule that knows its length, above 0; `.take(n)` gives one.
        times: how many times, a whole number of at least 1; None: without end.

    At the end: with `times` the length is n * times, and the schedule's end value is held; else there is none.

    Equals: torch CosineAnnealingLR(T_max=T, eta_min=m) at the rate lr, which climbs back after T:
        `cosine(lr, m, T).then(cosine(m, lr, T)).repeat()`; torch CyclicLR(base_lr=a, max_lr=b, step_size_up=u,
        step_size_down=d): `linear(a, b, u).then(linear(b, a, d)).repeat()`.

    Example:
        >>> import gradchain as gch
        >>> saw = gch.linear(0.0, 1.0, 4).repeat()
        >>> [saw(step) for step in (0, 3, 4, 5)]
        [0.0, 0.75, 0.0, 0.25]
    """

    schedule: ScheduleLike
    times: int | None = None

    def __post_init__(self) -> None:
        require_step("repeat", "schedule", self.schedule)
        if not length_of(self.schedule):
            rule = "the schedule must have a known length above 0"
            raise ValueError(f"repeat: {rule}, got {source(self.schedule)}; give it one with .take(steps).")
        if self.times is not None:
            rule = "a whole number of at least 1, or None"
            times = one_number("repeat", "times", self.times, rule, lambda x: x >= 1)
            if times != int(times):
                bad("repeat", f"times must be {rule}", self.times)
            object.__setattr__(self, "times", int(times))

    @property
    def length(self) -> float | None:
        return None if self.times is None else (length_of(self.schedule) or 0) * self.times

    def curve(self, t: float) -> float:
        period = length_of(self.schedule) or 0
        length = self.length
        return value_of(self.schedule, period if length is not None and t >= length else t % period)

    def __repr__(self) -> str:
        if not isinstance(self.schedule, Schedule):
            return super().__repr__()
        return f"{primary(self.schedule)}.repeat({'' if self.times is None else self.times})"
