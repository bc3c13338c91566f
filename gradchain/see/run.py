"""The hyperparameters of some chains at each update of a run, with the updates at which something begins or ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradchain.core.address import find
from gradchain.see.lines import Clock, Clocks, Line, lines_of
from gradchain.see.marks import MOST, marks_of
from gradchain.see.subjects import Subject

__all__ = ["Curve", "Run"]

EVERY = 20_000
"""Up to so many updates each has its point; beyond, points are as far apart as they must, but for those at borders."""


@dataclass(frozen=True)
class Curve:
    """A line with its value at each of the run's steps, where it has borders, and where it ends."""

    line: Line
    values: list[float]
    borders: set[int]
    end: int | None

    @property
    def moves(self) -> bool:
        """Whether it has more than one value."""
        return min(self.values) != max(self.values)


class Run:
    """The hyperparameters of some chains at each update of a run.

    Args:
        owner: begins the sentence of an error.
        subjects: the chains.
        updates: how many the run has; None: as many as schedules have, and a twentieth.
        clocks: how clocks go.
        default: how many it has where no schedule has an end; None: that is an error.
        also: updates to look at in any case.
        epoch_length: micro-batches to a tick of the clock "epoch".

    Attributes:
        steps: the updates that are looked at, in order.
        curves: address → its curves.
    """

    def __init__(
        self,
        owner: str,
        subjects: Sequence[Subject],
        updates: int | None,
        clocks: Mapping[str, Clock],
        default: int | None = None,
        also: Sequence[int] = (),
        epoch_length: int | None = None,
    ) -> None:
        self.owner = owner
        times = [Clocks(owner, subject.chain, clocks, epoch_length) for subject in subjects]
        lines = [(line, time) for subject, time in zip(subjects, times, strict=True) for line in lines_of(subject)]
        for line, time in lines:
            time.check(line.clocks)
        marks = [marks_of(line, time) for line, time in lines]
        self.updates = _length(owner, updates, [end for _, end in marks], default)
        near = {at + i for found, _ in marks for at in found for i in (-1, 0, 1)}.union(also)
        self.steps = _steps(self.updates, near)
        known: dict[Any, list[float]] = {}
        self.curves: dict[str, list[Curve]] = {}
        for (line, time), (found, end) in zip(lines, marks, strict=True):
            key = (id(line.start), id(time), line.clock) if callable(line.start) else (line.start, None, None)
            if key not in known:
                known[key] = self._started(line, time)
            curve = Curve(line, [line.multiplied(value) for value in known[key]], found, end)
            self.curves.setdefault(line.address, []).append(curve)

    def _started(self, line: Line, time: Clocks) -> list[float]:
        """The value that a line starts from, at each step."""
        if not callable(line.start):
            return [line.started({"step": 0, line.clock or "step": 0})] * len(self.steps)
        return [line.started(time.at(step, line.clocks)) for step in self.steps]

    def place(self, step: int) -> int:
        """Where a step, or the last before it that is looked at, is among all."""
        return bisect_right(self.steps, step) - 1

    def chosen(self, names: Sequence[str] | None) -> list[str]:
        """The addresses to draw."""
        if names is not None:
            if isinstance(names, str) or not names:
                raise ValueError(f"{self.owner}: names must be a list of at least one name, got {names!r}.")
            return [find(name, self.curves, self.owner) for name in names]
        moving = [a for a, all_of in self.curves.items() if len(all_of) > 1 or any(c.moves for c in all_of)]
        rates = [a for a in self.curves if a.endswith((".learning_rate", ".lr"))]
        return sorted(moving, key=lambda address: address not in rates) or rates or [*self.curves]

    def said(self, drawn: Collection[str]) -> list[str]:
        """Those that are not drawn, in words: one number for all parameters over the run, or names alone."""
        left = [address for address in self.curves if address not in drawn]
        constant = [a for a in left if len(self.curves[a]) == 1 and not self.curves[a][0].moves]
        numbers = [f"{a}\N{NO-BREAK SPACE}{self.curves[a][0].values[0]:.6g}" for a in constant]
        others = [a for a in left if a not in constant]
        words = (("constant", numbers), ("not drawn", others))
        return [f"{head}: {', '.join(some)}" for head, some in words if some]


def _length(owner: str, updates: int | None, ends: Sequence[int | None], default: int | None) -> int:
    """How long the run is: as given, as long as schedules are, or else as long as is usual."""
    if updates is None:
        longest = max((end for end in ends if end is not None), default=0)
        if not longest and default is not None:
            return default
        if not longest:
            raise ValueError(f"{owner}: updates must be given, for no schedule of the chain has an end.")
        return longest + max(longest // 20, 1)
    if isinstance(updates, bool) or not isinstance(updates, int) or not 1 <= updates <= MOST:
        raise ValueError(f"{owner}: updates must be a whole number from 1 to {MOST}, got {updates!r}.")
    return updates


def _steps(updates: int, near: set[int]) -> list[int]:
    if updates <= EVERY:
        return [*range(updates)]
    spread = {round(i * (updates - 1) / (EVERY - 1)) for i in range(EVERY)}
    return sorted(spread | {step for step in near if 0 <= step < updates})
