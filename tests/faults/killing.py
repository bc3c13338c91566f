"""Processes that are forked from one with everything loaded, killed, and waited for."""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

SECONDS = 240  # what a child may take


class Board:
    """Whole numbers that a process and its children see at the same time: they stay when a child is killed."""

    def __init__(self, many: int) -> None:
        self._memory = mmap.mmap(-1, 8 * many)

    def __getitem__(self, at: int) -> int:
        return struct.unpack_from("q", self._memory, 8 * at)[0]

    def __setitem__(self, at: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * at, value)


class Child:
    """A fork that does something and gives back what it returned, as text."""

    def __init__(self, act: Callable[[], str]) -> None:
        out, into = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _act(act, into)
        os.close(into)
        self._out, self._said, self.ended = out, b"", False
        self.status = 0

    def kill(self) -> None:
        """End it at once, wherever it is."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = SECONDS) -> bool:
        """Whether it has ended by then: what it said is read, and it is gone from the table of processes."""
        end = time.monotonic() + seconds
        while not self.ended and (left := end - time.monotonic()) > 0:
            if select.select([self._out], [], [], left)[0]:
                if piece := os.read(self._out, 1 << 16):
                    self._said += piece
                else:
                    self._reap()
        return self.ended

    def _reap(self) -> None:
        os.close(self._out)
        self.status = os.waitpid(self.pid, 0)[1]
        self.ended = True

    def close(self) -> None:
        """End it if it has not ended."""
        if not self.ended:
            self.kill()
            self.wait()

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.ended and os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    @property
    def said(self) -> str:
        """What it returned, or its traceback."""
        return self._said.decode()


def _act(act: Callable[[], str], into: int) -> None:
    """Never returns."""
    code = 1
    try:
        try:
            said, code = act(), 0
        except BaseException:
            said = "failed: " + traceback.format_exc()
        view = memoryview(said.encode())
        while view:
            view = view[os.write(into, view) :]
    finally:
        os._exit(code)


def in_child(act: Callable[[], str], seconds: float = SECONDS) -> str:
    """What it returned, in a process of its own."""
    child = Child(act)
    try:
        return child.said if child.wait(seconds) else "it did not come to its end"
    finally:
        child.close()


def die() -> None:
    """SIGKILL to oneself: nothing runs after it."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(SECONDS)
