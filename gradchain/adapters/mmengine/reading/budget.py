"""How much a config file may ask for: steps and sizes, far above what any recipe needs."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

__all__ = ["Budget", "RefusedError", "size"]

STEPS = 1_000_000  # expressions read, rounds of loops, items of values that are made, copied or compared
FILES = 1_000  # a file that is inherited twice counts twice
LETTERS = 1_000_000  # of all files
PER_STEP = 64  # letters of text, or bits of a number, that cost as much as an item


class RefusedError(ValueError):
    """What no config file may say, or ask for, also where only a few of its names matter."""


def size(value: Any) -> int:
    """The bits of a number, the letters of text, the items of what holds some."""
    return value.bit_length() if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 0


class Budget:
    """What is left for one file and all that it inherits from."""

    def __init__(self, path: object) -> None:
        self.path, self.steps, self.files, self.letters = path, STEPS, FILES, LETTERS

    def charge(self, steps: int) -> None:
        """So many steps more."""
        self.steps = max(self.steps - steps, -1)
        self._check(self.steps)

    def made(self, value: Any) -> None:
        """As many steps as a value that was made has items, without those within them."""
        self.charge(1 + size(value) // (PER_STEP if isinstance(value, (int, str, bytes)) else 1))

    def weigh(self, value: Any) -> None:
        """As many steps as a value has items, in all depths: one that is in it twice is twice as much work."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            self.made(one)
            if isinstance(one, (dict, list, tuple)):
                waiting.extend(one.values() if isinstance(one, dict) else one)

    def text(self, path: Path) -> str:
        """The text of a file, if it is one: no pipe, no device, nothing without end."""
        self.files -= 1
        self._check(self.files)
        # a pipe with nobody at the other end would wait for one
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is no file")
            read = file.read(self.letters + 1)
        self.letters -= len(read)
        self._check(self.letters)
        return read.decode("utf-8")

    def _check(self, left: int) -> None:
        if left < 0:
            raise RefusedError(f"mmengine.read_config: {self.path}: it is too large to be meant, with all it inherits.")
