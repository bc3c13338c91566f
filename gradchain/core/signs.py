"""Whether a hyperparameter is below 0: what decides if a link that multiplies by it flips the sign."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradchain import schedules
from gradchain.core.hyper import is_number
from gradchain.core.scalars import on_host
from gradchain.selectors import PerParameter

_LOOKS = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
"""At which steps a schedule is looked at: a warmup is 0 at first, and a decay in the end."""


def is_negative(value: Any) -> bool | None:
    """Whether a hyperparameter given so is below 0 wherever it is not 0; None where that is not known.

    A schedule is looked at a few times. One with both signs, a tensor, which may be filled anew, and numbers per
    parameter are not known.
    """
    if isinstance(value, (PerParameter, Tensor)):
        return None
    seen = _seen(value) if callable(value) else [value]
    if not all(map(is_number, seen)):
        return None
    signs = {number < 0 for number in seen if number != 0}
    return signs.pop() if len(signs) == 1 else None


def _seen(schedule: Any) -> list[Any]:
    """What a schedule is at these readings of all its clocks."""
    found = []
    for look in _LOOKS:
        try:
            clocks = dict.fromkeys((*schedules.clocks_of(schedule), "step"), look)
            found.append(on_host(schedules.evaluate(schedule, clocks)))
        except Exception:  # it may read what is not there yet, or a table that ends; the update that needs it will say
            break
    return found
