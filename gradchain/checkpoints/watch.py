"""Signals that end a process: kept until the run has been saved, and then passed on to whoever had them before."""

from __future__ import annotations

import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterable
from types import FrameType
from typing import Any


class Watch:
    """Listens for signals. The second one of its kind is passed on at once, as if nobody listened.

    Args:
        signals: those to listen for.
        owner: who says what is wrong.

    Attributes:
        caught: the signal that came, 0 where none did.
    """

    def __init__(self, signals: Iterable[int], owner: str) -> None:
        self.caught = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        wanted = list(signals)
        if wanted and threading.current_thread() is not threading.main_thread():
            names = ", ".join(signal.Signals(number).name for number in wanted)
            warnings.warn(
                f"{owner}: is made outside the main thread, where Python lets nobody listen for signals: {names} ends "
                "the run without a file. Make it in the main thread, or give signals=().",
                stacklevel=4,
            )
            return
        hear = _hearing(weakref.ref(self), self._before)
        for number in wanted:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, hear)
        self._hear = hear

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self.caught or os.getpid() != self._process:
            self.caught = 0
            pass_on(self._before[number], number, frame)
        else:
            self.caught = number

    def pass_on(self) -> None:
        """Give what was caught to whoever had it before: by default the process ends."""
        number, self.caught = self.caught, 0
        pass_on(self._before.get(number, signal.SIG_DFL), number, None)

    def end(self) -> None:
        """Whoever had the signals before has them again; where somebody listens since, they are passed on by that."""
        if os.getpid() != self._process or threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._before.items():
            if signal.getsignal(number) is self._hear:
                signal.signal(number, before if before is not None else signal.SIG_DFL)


def _hearing(watch: weakref.ref[Watch], before: dict[int, Any]) -> Any:
    """A handler that keeps nothing alive: where the watch is gone, signals go to whoever had them."""

    def hear(number: int, frame: FrameType | None) -> None:
        listening = watch()
        if listening is None:
            pass_on(before[number], number, frame)
        else:
            listening.hear(number, frame)

    return hear


def pass_on(before: Any, number: int, frame: FrameType | None) -> None:
    """Do with a signal what was done before somebody listened for it."""
    if callable(before):
        before(number, frame)
    elif before != signal.SIG_IGN:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def read_signals(owner: str, given: Any) -> tuple[int, ...]:
    """The signals that a user gave. ValueError for what is none, or cannot be caught."""
    numbers = [given] if isinstance(given, int) else list(given)
    for number in numbers:
        if number not in signal.valid_signals() or number in (signal.SIGKILL, signal.SIGSTOP):
            raise ValueError(f"{owner}: signals must be signals that a process can catch, got {number!r}.")
    return tuple(map(int, numbers))
