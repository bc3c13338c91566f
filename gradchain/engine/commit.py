"""What a step is about to write: all of it known before the first of it happens."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Commit:
    """The writes of one step, in order. Nothing is written before `fire`; what follows from them comes after."""

    def __init__(self) -> None:
        self._writes: list[Callable[[], object]] = []
        self._after: list[Callable[[], object]] = []

    def add(self, write: Callable[[], object]) -> None:
        """One more thing to write."""
        self._writes.append(write)

    def after(self, settle: Callable[[], object]) -> None:
        """What holds once everything is written."""
        self._after.append(settle)

    def fire(self) -> None:
        """Write it all."""
        with torch.no_grad():
            for act in (*self._writes, *self._after):
                act()
