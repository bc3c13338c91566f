"""Numbers that a user observes, ticks, and links that wait for them: where they do not meet, somebody is told, once."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from gradchain.core.context import Context
from gradchain.core.roles import AtTicks, TicksClock
from gradchain.core.scalars import as_number
from gradchain.core.state import State, as_stored
from gradchain.core.transform import Transform, walk
from gradchain.words.remarks import remark

PATIENCE = 1000
"""How many updates a link may wait for its first observation or tick before it is said to wait."""


def observable(name: Any, value: Any) -> float:
    """What is observed, as a float. TypeError, ValueError for what can be none."""
    number = as_number(value)
    if not isinstance(name, str) or number is None:
        raise TypeError(f"observe: takes a name and a number, got {name!r} and {value!r}.")
    if isinstance(number, int) and abs(number) > sys.float_info.max:
        raise ValueError(f"observe: {name!r} must be a number that a float can hold, got an integer beyond that.")
    return float(number)


class Observations:
    """Which names and clocks the links of a chain wait for.

    Attributes:
        awaited: whether any link waits that was not told of.
    """

    def __init__(self, chain: Transform) -> None:
        links = [(address, link) for address, link, _ in walk(chain, None)]
        self._read = {name: address for address, link in links for name in sorted(link.observes)}
        self._ticks = {address: link.clock for address, link in links if isinstance(link, AtTicks) and link.clock}
        self._ticking = [(address, link) for address, link in links if isinstance(link, TicksClock)]
        self.awaited = bool(self._read or self._ticks)
        self._told: set[str] = set()

    def ticks_at(self, name: str) -> bool:
        """Whether a link ticks a clock by what is observed under this name."""
        return any(name in link.observes for _, link in self._ticking)

    def looked(
        self, name: str, x: float, states: Mapping[str, Any], sight: Callable[[str], Context]
    ) -> tuple[dict[str, State], list[str]]:
        """What links that tick a clock make of a number at once: new states by address, and which clocks tick.

        Args:
            name: what it was observed under.
            x: the number.
            states: those of all links, by address.
            sight: address → what the link there looks at.
        """
        new: dict[str, State] = {}
        ticked: list[str] = []
        for address, link in self._ticking:
            if name in link.observes:
                ctx = sight(address)
                state, ticks = link.at(ctx).looked(x, states[address], ctx)
                new[address] = as_stored(states[address], state, address)
                ticked += [link.clock] * ticks
        return new, ticked

    def tell_of_silence(self, observed: Collection[str], clocks: Mapping[str, float]) -> None:
        """Warn of each link that has waited for long, and say nothing from then on."""
        lines, self.awaited = [*self.silent(observed, clocks)], False
        others = f" Observed were {', '.join(map(repr, observed))}." if observed else ""
        for line in lines:
            remark(f"update: {line} in {PATIENCE} updates, and changes nothing until then.{others}")

    def silent(self, observed: Collection[str], clocks: Mapping[str, float]) -> Iterator[str]:
        """A sentence without its end for each name that was never observed, and each clock that never ticked."""
        for name, address in self._read.items():
            if name not in observed:
                yield f"{address} waits for updater.observe({name!r}, value), which was not called"
        for address, clock in self._ticks.items():
            if not clocks[clock]:
                yield f"{address} waits for updater.tick({clock!r}), which was not called"

    def tell_of_misspelling(self, name: str, observed: Collection[str]) -> None:
        """Warn of a name, the first time, that no link reads and that is like one that was never observed."""
        if name in self._read or name in self._told:
            return
        near = difflib.get_close_matches(name, [awaited for awaited in self._read if awaited not in observed], n=1)
        if near:
            self._told.add(name)
            remark(
                f"observe: {self._read[near[0]]} waits for {near[0]!r}, and {name!r} was observed. Is it the same? "
                f"Then call updater.observe({near[0]!r}, value)."
            )
