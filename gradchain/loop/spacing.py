"""When something is due that is done now and then: pairs or a range of counts of updates, batches or epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from gradchain.checkpoints.arguments import is_count

Unit = Literal["update", "iter", "epoch"]
UNITS: tuple[str, ...] = get_args(Unit)


class Intervals(NamedTuple):
    """From each begin on, until the next, whatever `every` divides; None for only after the last. Or counts by name.

    Attributes:
        unit: what is counted.
        pairs: (begin, every), by begin; or a range, the counts themselves.
    """

    unit: Unit
    pairs: tuple[tuple[int, int | None], ...] | range

    @property
    def begin(self) -> int:
        """Before this count it is never due."""
        return self.pairs.start if isinstance(self.pairs, range) else self.pairs[0][0]

    def due(self, before: int, now: int) -> bool:
        """Whether it is due at a count that came since `before`."""
        return any(self._divides(count) for count in range(before + 1, now + 1))

    def _divides(self, count: int) -> bool:
        if isinstance(self.pairs, range):
            return count in self.pairs
        every = next((every for begin, every in reversed(self.pairs) if begin <= count), None)
        return every is not None and count % every == 0


def read(owner: str, given: Any, unit: Any) -> Intervals:
    """Intervals as a user writes them: every so many, (begin, every) pairs with rising begins, or a range of counts."""
    if unit not in UNITS:
        raise ValueError(f"loop: unit of {owner} must be 'update', 'iter' or 'epoch', got {unit!r}.")
    if isinstance(given, range):
        if not given or given.start < 1 or given.step < 1:
            raise ValueError(f"loop: {owner} must be a range of counts that rise from at least 1, got {given!r}.")
        return Intervals(unit, given)
    pairs = given if isinstance(given, (list, tuple)) and given and isinstance(given[0], tuple) else [(0, given)]
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not is_count(pair[0], 0) or not _is_every(pair[1]):
            raise ValueError(
                f"loop: {owner} must be every so many {unit}s, or a list of (begin, every) pairs of whole numbers, "
                f"begin at least 0 and every at least 1 or None, or a range of counts, got {given!r}."
            )
    begins = [begin for begin, _ in pairs]
    if begins != sorted(set(begins)):
        raise ValueError(f"loop: begins of {owner} must rise, got {begins}.")
    return Intervals(unit, tuple(pairs))


def _is_every(value: Any) -> bool:
    return value is None or is_count(value, 1)


def of_mmengine(
    val_begin: int = 1, val_interval: int = 1, dynamic_intervals: Sequence[tuple[int, int]] | None = None
) -> list[tuple[int, int | None]]:
    """The pairs that MMEngine's loops mean: in epochs for EpochBasedTrainLoop, in iterations for IterBasedTrainLoop.

    An interval of `dynamic_intervals` holds from one before its milestone: MMEngine looks for the one of the coming
    iteration.

    >>> import gradchain as gch
    >>> gch.loop.intervals(val_begin=4, val_interval=10, dynamic_intervals=[(91, 1)])
    [(4, 10), (90, 1)]
    """
    found: dict[int, int | None] = {}
    for begin, every in [(0, val_interval), *((milestone - 1, every) for milestone, every in dynamic_intervals or ())]:
        found[max(begin, val_begin)] = every
    return list(found.items())
