"""What a reduction gave the host: numbers per entry, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from gradchain.core.scalars import Scalars
from gradchain.engine.recording.host import HostLedger


class Reduced:
    """What a reduction gave the host: one number per entry, in the order of `names`. A ledger notes what is made of it.

    Attributes:
        names: the entries.
        rows: their numbers, in a list; in a ledger, the number that stands for the list.
    """

    __slots__ = ("_total", "names", "rows")

    def __init__(self, names: tuple[str, ...], rows: Any) -> None:
        self.names, self.rows = names, rows
        self._total: Any = None

    def total(self, ledger: HostLedger | None) -> Any:
        """Their sum, rounded once; infinite or NaN as a plain sum would be."""
        if self._total is None:
            self._total = _of(ledger, total, self.rows)
        return self._total

    def norm(self, ledger: HostLedger | None, p: float, scale: Any) -> Any:
        """The norm over all entries, which is `scale` times that of what was reduced."""
        if p == float("inf"):
            return scale * _of(ledger, _largest, self.rows)
        return scale * (self.total(ledger) ** 0.5 if p == 2 else self.total(ledger))

    def norms(self, ledger: HostLedger | None, p: float, scale: Any) -> Scalars:
        """The norm of each entry."""
        norms: Scalars = _of(ledger, partial(_norms, self.names, p), self.rows, scale, what=("norms", p))
        return norms

    def sum(self, ledger: HostLedger | None, factor: Any) -> Any:
        """The sum over all entries, each times `factor`."""
        return _of(ledger, _sum, self.rows, factor)

    def sums(self, ledger: HostLedger | None, factor: Any) -> Scalars:
        """The sum of each entry."""
        sums: Scalars = _of(ledger, partial(_norms, self.names, 1.0), self.rows, factor, what=("norms", 1.0))
        return sums

    def is_finite(self, ledger: HostLedger | None) -> bool:
        """Whether all of them are finite numbers."""
        return bool(_of(ledger, math.isfinite, self.total(ledger))) or bool(_of(ledger, _all_finite, self.rows))

    def is_zero(self, ledger: HostLedger | None) -> bool:
        """Whether all of them are zero."""
        return not _of(ledger, any, self.rows)


def _of(ledger: HostLedger | None, fn: Callable[..., Any], *args: Any, what: tuple[Any, ...] = ()) -> Any:
    return fn(*args) if ledger is None else ledger.call(fn, *args, what=what)


def _largest(rows: list[float]) -> float:
    return math.nan if any(v != v for v in rows) else max(rows, default=0.0)


def _norms(names: tuple[str, ...], p: float, rows: list[float], scale: Any) -> Scalars:
    return Scalars({n: scale * (v**0.5 if p == 2 else v) for n, v in zip(names, rows, strict=True)})


def _sum(rows: list[float], factor: Any) -> Any:
    return sum(factor * v for v in rows)


def _all_finite(rows: list[float]) -> bool:
    return all(map(math.isfinite, rows))


def total(rows: list[float]) -> float:
    """A sum that is rounded once; infinite or NaN as a plain sum would be."""
    try:
        return math.fsum(rows)
    except (OverflowError, ValueError):
        return sum(rows)
