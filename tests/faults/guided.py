"""Inputs that are led by what they reach: one that comes to a line by a new way is gone on from.

An input is a list of seeds, each of one change, so that it is short to write down and made anew from that. Some of the
inputs are watched: which line of the package followed which. Where there is something new, its seeds are kept, and
later inputs are made of them by one more change, one less, or the rest of another. All of it follows from the numbers
of the inputs: a second run is the same.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import bounded

import gradchain

Seeds = tuple[int, ...]
WATCHED = 3  # one input of so many: watching takes longer than trying
LONGEST = 8  # changes of one input
_PACKAGE = str(Path(gradchain.__file__).parent)


class Guide:
    """What was reached so far, and by which inputs.

    Attributes:
        ways: pairs of lines, as numbers, of which the second followed the first.
        kept: the seeds of inputs that reached something new.
    """

    def __init__(self, of: str = _PACKAGE) -> None:
        self.ways: set[int] = set()
        self.kept: list[Seeds] = []
        self._of = of
        self._mine: dict[CodeType, int] = {}

    def seeds(self, i: int) -> Seeds:
        """Those of the i-th input."""
        rng = random.Random(i)
        if not self.kept or rng.random() < 0.25:
            return tuple(rng.randrange(1 << 32) for _ in range(rng.randint(1, 3)))
        # half of the time from the latest: what they came to is the least known
        parent = rng.choice(self.kept[-50:] if rng.random() < 0.5 else self.kept)
        kind = rng.randrange(4)
        if kind == 0 and len(parent) > 1:
            return parent[:-1]
        if kind == 1:
            other = rng.choice(self.kept)
            return (*parent[: rng.randrange(1, len(parent) + 1)], *other[1:])[:LONGEST]
        if len(parent) == LONGEST:
            gone = rng.randrange(1, LONGEST)  # the first says what is changed
            parent = (*parent[:gone], *parent[gone + 1 :])
        return (*parent, rng.randrange(1 << 32))

    def watched(self, act: Callable[[], str]) -> tuple[str, list[int]]:
        """What it gives, and the ways that are new."""
        found: set[int] = set()
        before = sys.gettrace()
        sys.settrace(self._tracer(found))
        try:
            said = act()
        finally:
            sys.settrace(before)
        return said, sorted(found - self.ways)

    def learn(self, note: tuple[Iterable[int], Iterable[int]] | None) -> None:
        """The seeds of an input and what it reached anew; None where there is nothing to learn."""
        if note is not None:
            self.kept.append(tuple(note[0]))
            self.ways.update(note[1])

    def _tracer(self, found: set[int]) -> Callable[[FrameType, str, Any], Any]:
        def called(frame: FrameType, event: str, arg: Any) -> Any:
            code = frame.f_code
            number = self._mine.get(code)
            if number is None:  # of a path, and not of the code: a child's codes are others than its parent's
                mine = code.co_filename.startswith(self._of)
                number = hash((code.co_filename, code.co_firstlineno)) if mine else 0
                self._mine[code] = number
            if not number:
                return None
            last = 0

            def line(frame: FrameType, event: str, arg: Any) -> Any:
                nonlocal last
                if event == "line":
                    found.add(hash((number, last, frame.f_lineno)))
                    last = frame.f_lineno
                return line

            return line

        return called


def tried(n: int, attempt: Callable[[Seeds], str]) -> Iterator[str]:
    """What `attempt` says of n inputs, each in bounded time and memory."""
    guide = Guide()

    def one(i: int) -> tuple[str, Any]:
        seeds = guide.seeds(i)
        if i % WATCHED:
            return attempt(seeds), None
        said, new = guide.watched(lambda: attempt(seeds))
        note = (seeds, new) if new else None
        guide.learn(note)  # in the child that tries it, for its next ones
        return said, note

    yield from bounded.tried(n, one, guide.learn, lambda i: list(guide.seeds(i)))
