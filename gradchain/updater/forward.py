"""Where the forward of a micro-batch runs: under autocast, and without a reduction over ranks inside a window."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch

from gradchain.updater.bound import Bound
from gradchain.updater.ranks import unsynchronised
from gradchain.updater.window import MicroBatch


class Forward(AbstractContextManager[None]):
    """What `Updater.context` gives. It is paid at every micro-batch: so it is no generator, and makes little anew.

    Args:
        bound: what is trained.
        last: whether the coming micro-batch closes the window, full or not.
        autocast: a dtype, or False for none, in place of the bound one.
    """

    def __init__(self, bound: Bound, last: bool | None, autocast: torch.dtype | bool | None) -> None:
        self._bound, self._last, self._autocast = bound, bool(last), autocast
        self._inside: list[tuple[MicroBatch, bool, list[Any]]] = []  # it may be nested in itself

    def __enter__(self) -> None:
        bound, micro = self._bound, self._bound.micro
        autocasting = _autocasting(bound, self._autocast)
        was_last, entered = micro.last, list[Any]()
        try:
            micro.last = was_last or self._last
            withhold = bound.withholds() and not _must_synchronise(bound)
            decided = micro.backwards > 0 and micro.unsynchronised
            micro.unsynchronised = decided or (withhold and not bound.target.sharded)  # FSDP2 decides in backward
            if withhold:
                ranks = unsynchronised(bound.target)
                entered.append((ranks.__enter__(), ranks))
            if autocasting is not None:
                entered.append((autocasting.__enter__(), autocasting))
            self._inside.append((micro, was_last, entered))
        except BaseException:
            micro.last = was_last
            _leave(entered, (None, None, None))
            raise

    def __exit__(self, *raised: Any) -> None:
        micro, was_last, entered = self._inside.pop()
        try:
            _leave(entered, raised)
        finally:
            if raised[0] is not None:
                micro.last = was_last  # this forward came to nothing


def _leave(entered: list[Any], raised: tuple[Any, ...]) -> None:
    """Leave what was entered, the last first; all of it, whatever one raises."""
    if entered:
        _, manager = entered.pop()
        try:
            manager.__exit__(*raised)
        finally:
            _leave(entered, raised)


def _must_synchronise(bound: Bound) -> bool:
    """DDP with static_graph records the graph in the first backward of the run, and must reduce then."""
    return not bound.window.begun and any(m.static_graph for m in bound.target.replicated)


class _Autocast:
    """torch's autocast, of which one that was left is entered again: to make one takes longer than all else with it."""

    _idle: ClassVar[dict[Any, list[torch.autocast]]] = {}

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._pool = self._idle.setdefault((device, dtype, torch.is_autocast_cache_enabled()), [])
        try:
            self._real = self._pool.pop()
        except IndexError:  # none was made, or all are in use: forwards may be nested, and other threads have theirs
            self._real = torch.autocast(device, dtype=dtype)

    def __enter__(self) -> None:
        self._real.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        self._real.__exit__(*raised)
        self._pool.append(self._real)


def _autocasting(bound: Bound, wanted: torch.dtype | bool | None) -> AbstractContextManager[Any] | None:
    """Autocast as `bind` or this forward wants it; where neither says anything, as it is outside."""
    dtype = bound.autocast if wanted is None or wanted is True else wanted
    if dtype is None:
        return None
    device = bound.target.last_seen[0].device.type
    if isinstance(dtype, torch.dtype):
        return _Autocast(device, dtype)
    if dtype is not False:
        raise TypeError(f"context: autocast must be a torch.dtype, False or None, got {wanted!r}.")
    return torch.autocast(device, enabled=False)
