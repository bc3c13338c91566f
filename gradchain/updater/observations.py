"""Numbers that a user observes, and links that wait for them: where the two do not meet, somebody is told, once."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterator

from gradchain.core.transform import Transform, walk

PATIENCE = 1000
"""How many updates a link may wait for its first observation before it is said to wait."""


class Observations:
    """Which names the links of a chain wait for.

    Attributes:
        awaited: name → address of the link that waits for it; once they were told of, there are none.
    """

    def __init__(self, chain: Transform) -> None:
        self.awaited = {name: address for address, link, _ in walk(chain, None) for name in sorted(link.observes)}
        self._read = dict(self.awaited)
        self._told: set[str] = set()

    def tell_of_silence(self, observed: Collection[str]) -> None:
        """Warn of each link that has waited for long, and say nothing from then on."""
        lines, self.awaited = [*self.silent(observed)], {}
        others = f" Observed were {', '.join(map(repr, observed))}." if observed else ""
        for line in lines:
            warnings.warn(
                f"update: {line} in {PATIENCE} updates, and changes nothing until then.{others}", stacklevel=7
            )

    def silent(self, observed: Collection[str]) -> Iterator[str]:
        """A sentence without its end for each name that is waited for and was never observed."""
        for name, address in self._read.items():
            if name not in observed:
                yield f"{address} waits for updater.observe({name!r}, value), which was not called"

    def tell_of_misspelling(self, name: str, observed: Collection[str]) -> None:
        """Warn of a name, the first time, that no link reads and that is like one that was never observed."""
        if name in self._read or name in self._told:
            return
        near = difflib.get_close_matches(name, [awaited for awaited in self._read if awaited not in observed], n=1)
        if near:
            self._told.add(name)
            warnings.warn(
                f"observe: {self._read[near[0]]} waits for {near[0]!r}, and {name!r} was observed. Is it the same? "
                f"Then call updater.observe({near[0]!r}, value).",
                stacklevel=4,
            )
