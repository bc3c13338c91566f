"""What a schedule is: a frozen value that is called with a step and returns a number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, SupportsFloat, TypeAlias

from typing_extensions import dataclass_transform

from gradchain.schedules._check import as_number, bad
from gradchain.words.arguments import answering

if TYPE_CHECKING:
    from gradchain.schedules.arithmetic import clipped, combined
    from gradchain.schedules.joins import chained, taken
    from gradchain.schedules.repeats import repeated

__all__ = ["Schedule", "ScheduleLike", "clocks_of", "evaluate"]

ScheduleLike: TypeAlias = "Callable[[float], float]"
"""A Schedule, or any function step -> value."""

STEP = frozenset({"step"})


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True, repr=False)
class Schedule:
    """A function step -> value that is a value itself: comparable, hashable, picklable, printed as its own code.

    Subclassing makes a frozen dataclass. A subclass writes `curve(t)`, the value at time t, and `length` if it has an
    end; t is then never negative and never beyond that length, so every schedule is at its first value before time 0
    and holds its end value after its end. Time is counted in updates, from 0, and may be fractional.

    Operators: `*`, `+`, `-` and `/` with a number, a schedule or any function; unary `-`.
    Methods: `.clip(low, high)`, `.then(next)`, `.take(steps)`, `.repeat(times)`, `.at(clocks)`.

    Example:
        >>> import gradchain as gch
        >>> class halving(gch.schedules.Schedule):
        ...     start: float
        ...     def curve(self, t: float) -> float:
        ...         return self.start * 0.5**t
        >>> halving(8.0)
        halving(8.0)
        >>> (2.0 * halving(8.0))(1), halving(8.0)(-5)
        (8.0, 8.0)
    """

    # numpy's scalars leave `2.0 * schedule` to the schedule, rather than making an array of objects.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls) -> None:
        for name in inspect.get_annotations(cls):
            if name in Schedule.__dict__ and not name.startswith("__"):
                # dataclass would take the inherited method for the field's default.
                raise TypeError(f"{cls.__name__}: a field may not be called {name!r}, which every Schedule has.")
        dataclass(frozen=True, repr=False)(cls)
        cls.__init__ = answering(cls.__init__)  # type: ignore[method-assign]  # the dataclass gave each class its own

    def curve(self, t: float) -> float:
        """The value at time t, where 0 <= t, and t <= length if there is one."""
        raise NotImplementedError(f"{type(self).__name__}: a schedule must define curve(t).")

    @property
    def length(self) -> float | None:
        """Updates until the end, from which on the value stays; None where there is no end or it is not known."""
        return None

    @property
    def clocks(self) -> frozenset[str]:
        """The names of the clocks that are read: "step" (applied updates), except under `by`."""
        return STEP

    def __call__(self, step: float) -> float:
        """The value at this step of the schedule's own time."""
        t = step if step > 0 else 0
        length = self.length
        return self.curve(t if length is None or t < length else length)

    def at(self, clocks: Mapping[str, float]) -> float:
        """The value at these readings of the clocks, for example `{"step": 500, "epoch": 2}`."""
        return self(read(type(self).__name__, clocks, "step"))

    def then(self, following: ScheduleLike) -> chained:
        """This schedule to its end, and from step == length on the next one, in its own time from 0."""
        from gradchain.schedules.joins import chained

        return chained((self, following))

    def take(self, steps: float) -> taken:
        """The same values with an end after `steps` updates: cut off there, or held until then; then held for good."""
        from gradchain.schedules.joins import taken

        return taken(self, steps)

    def repeat(self, times: int | None = None) -> repeated:
        """The same values again and again, from step == length on at time 0; `times` times, None: without end."""
        from gradchain.schedules.repeats import repeated

        return repeated(self, times)

    def clip(self, low: float | None = None, high: float | None = None) -> clipped:
        """The same values, none below `low` and none above `high`."""
        from gradchain.schedules.arithmetic import clipped

        return clipped(self, low=low, high=high)

    def __mul__(self, other: float | ScheduleLike) -> combined:
        return _combine("*", self, other)

    def __rmul__(self, other: float | ScheduleLike) -> combined:
        return _combine("*", other, self)

    def __add__(self, other: float | ScheduleLike) -> combined:
        return _combine("+", self, other)

    def __radd__(self, other: float | ScheduleLike) -> combined:
        return _combine("+", other, self)

    def __sub__(self, other: float | ScheduleLike) -> combined:
        return _combine("-", self, other)

    def __rsub__(self, other: float | ScheduleLike) -> combined:
        return _combine("-", other, self)

    def __truediv__(self, other: float | ScheduleLike) -> combined:
        return _combine("/", self, other)

    def __rtruediv__(self, other: float | ScheduleLike) -> combined:
        return _combine("/", other, self)

    def __neg__(self) -> combined:
        return _combine("*", -1.0, self)

    def __repr__(self) -> str:
        given = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING:
                given.append(source(value))
            elif value != field.default:
                given.append(f"{field.name}={source(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


def evaluate(schedule: ScheduleLike, clocks: Mapping[str, float]) -> float:
    """The value of a schedule, or of any function of the step, at these readings of the clocks.

    Args:
        schedule: a Schedule, which reads the clocks it names, or any function, which is given `clocks["step"]`.
        clocks: readings by name, in that clock's unit; "step" counts applied updates.

    Example:
        >>> import gradchain as gch
        >>> gch.schedules.evaluate(gch.by("epoch", gch.linear(1.0, 0.0, 10)), {"step": 700, "epoch": 5})
        0.5
        >>> gch.schedules.evaluate(lambda step: 0.1 * step, {"step": 10})
        1.0
    """
    if isinstance(schedule, Schedule):
        return schedule.at(clocks)
    require_callable("evaluate", "schedule", schedule)
    return value_of(schedule, read("evaluate", clocks, "step"))


def clocks_of(schedule: ScheduleLike) -> frozenset[str]:
    """The names of the clocks that a schedule reads; any other function reads "step".

    Example:
        >>> import gradchain as gch
        >>> sorted(gch.schedules.clocks_of(gch.linear(0.0, 1.0, 5) * gch.by("epoch", gch.constant(2.0))))
        ['epoch', 'step']
    """
    if isinstance(schedule, Schedule):
        return schedule.clocks
    require_callable("clocks_of", "schedule", schedule)
    return STEP


def value_of(schedule: ScheduleLike, t: float) -> float:
    """The value at time t as a float; a function of the user's may return a bool, a numpy or a 0-d tensor value."""
    value: object = schedule(t)
    if type(value) is float:
        return value
    if isinstance(value, SupportsFloat):  # a str is none
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # an array of several
            pass
    bad(source(schedule), f"the value at step {t!r} must be a number", value, kind=TypeError)


def length_of(schedule: ScheduleLike) -> float | None:
    """The length where it is known: a plain function has none."""
    return schedule.length if isinstance(schedule, Schedule) else None


def read(owner: str, clocks: Mapping[str, float], name: str) -> float:
    """The reading of one clock."""
    try:
        return clocks[name]
    except KeyError:
        known = ", ".join(map(repr, clocks)) or "no clock"
        raise LookupError(f"{owner}: the clock {name!r} must be among those given, got {known}.") from None


def require_callable(owner: str, name: str, value: object) -> None:
    """A schedule or a function; a class in its place is most often a forgotten call."""
    if callable(value) and not isinstance(value, type):
        return
    number = as_number(value)
    cure = "" if number is None else f"for a number use constant({number!r})"
    bad(owner, f"{name} must be a schedule or a function step -> value", value, cure, kind=TypeError)


def require_step(owner: str, name: str, value: ScheduleLike) -> None:
    """A schedule that can be run in another's time: one that reads the step alone."""
    require_callable(owner, name, value)
    others = sorted(clocks_of(value) - STEP)
    if others:
        clock = repr(others[0])
        cure = "leave out one of the two" if owner == "by" else f"put by({clock}, ...) around the whole instead"
        raise ValueError(
            f"{owner}: {name} must read the step alone, got {source(value)}, which reads the clock {clock}; {cure}."
        )


def source(value: object) -> str:
    """The code that makes a value, as far as there is one: a function is written by its name."""
    if isinstance(value, tuple):
        return f"({', '.join(map(source, value))}{',' if len(value) == 1 else ''})"
    if callable(value) and not isinstance(value, Schedule):
        return str(getattr(value, "__name__", repr(value)))
    return repr(value)


def _combine(operator: str, left: float | ScheduleLike, right: float | ScheduleLike) -> combined:
    from gradchain.schedules.arithmetic import combined

    return combined(operator, left, right)
