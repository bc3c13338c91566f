"""An exception at any line that a call of gradchain's runs, and what is left after it."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import gradchain

HOUSE = Path(gradchain.__file__).parent
ROOMS = ("core", "updater", "engine")  # those that the share of lines is told of
LINKS = ("transforms", "combinators", "adapters")

Place = tuple[str, int]  # a file below gradchain/, and a line


@dataclass(frozen=True)
class Target:
    """The n-th time that a line is reached, from 1."""

    place: Place
    turn: int


class Tracer:
    """Watches the lines of gradchain that run inside `with`; at the target it raises.

    Attributes:
        events: every line, in the order they ran.
        hit: whether the target was reached.
    """

    def __init__(self, target: Target | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.target, self.error = target, error
        self.events: list[Place] = []
        self.hit = False
        self._turns = 0

    def __enter__(self) -> Tracer:
        self._before = sys.gettrace()
        sys.settrace(self._entered)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _entered(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = _below(frame.f_code.co_filename)
        return None if not name or (self.target and name != self.target.place[0]) else self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            place = (_below(frame.f_code.co_filename), frame.f_lineno)
            if self.target is None:
                self.events.append(place)
            elif place == self.target.place:
                self._turns += 1
                if self._turns == self.target.turn:
                    self.hit = True
                    raise self.error(f"injected at {place[0]}:{place[1]}")  # which ends the tracing, too
        return self._line


_names: dict[str, str] = {}


def _below(file: str) -> str:
    """The name of a file of the rooms that are watched, below gradchain/; else nothing."""
    if file not in _names:
        path = Path(file)
        name = path.relative_to(HOUSE).as_posix() if path.is_relative_to(HOUSE) else ""
        _names[file] = name if name.partition("/")[0] in (*ROOMS, *LINKS) else ""
    return _names[file]


def targets(events: Iterable[Place], all_of: Iterable[str] = ()) -> list[Target]:
    """Each line the first and the last time that it runs; of the files named, the first four times and the last."""
    turns: Counter[Place] = Counter()
    order: dict[Place, None] = {}
    for place in events:
        turns[place] += 1
        order.setdefault(place)
    found = []
    for place in order:
        most = turns[place]
        whole = place[0].rpartition("/")[2] in all_of
        found += [Target(place, turn) for turn in sorted({*range(1, (min(most, 4) if whole else 1) + 1), most})]
    return found


@dataclass
class Tally:
    """What came of some injections.

    Attributes:
        reached: lines of core, updater and engine that the calls run.
        injected: those at which an exception was raised.
        sides: how many left what side.
        faults: what was neither before nor after, or went on otherwise; in words.
    """

    reached: set[Place] = field(default_factory=set)
    injected: set[Place] = field(default_factory=set)
    sides: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def took(self, target: Target) -> None:
        """An exception was raised there."""
        if target.place[0].partition("/")[0] in ROOMS:
            self.injected.add(target.place)

    def saw(self, events: Iterable[Place]) -> None:
        """These lines ran."""
        self.reached |= {place for place in events if place[0].partition("/")[0] in ROOMS}

    @property
    def share(self) -> float:
        """Of the lines reached, those at which an exception was raised."""
        return len(self.injected & self.reached) / max(1, len(self.reached))


def watched(call: Callable[[], Any]) -> list[Place]:
    """The lines that a call runs."""
    with Tracer() as tracer:
        call()
    return tracer.events


class Twice(Tracer):
    """Raises at the target, and again after so many lines more: while what was broken off is put in order.

    What Python calls an asynchronous exception, for one that a tracer raises ends the tracing: it comes out a little
    after the line.
    """

    def __init__(self, target: Target, lines: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(None, error)
        self._at, self._lines = target, lines
        self._left = -1

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            place = (_below(frame.f_code.co_filename), frame.f_lineno)
            if self._left < 0 and place == self._at.place:
                self._turns += 1
                if self._turns == self._at.turn:
                    self.hit = True
                    self._left = self._lines
                    self._raise()
            elif self._left > 0:
                self._left -= 1
                if self._left == 0:
                    self._raise()
        return self._line

    def _raise(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(self.error))
