"""What an executor is: something that can run a program over rows of tensors, and says when it may; what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from gradchain.engine.executors.build import NoKernel as NoKernel
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.rows import Runner

CHUNK = 1 << 16  # elements to an item: partial sums do not depend on the number of threads


class Executor(Protocol):
    """A way to run programs.

    Attributes:
        name: what it is called.
        grids: whether it runs programs over several axes.
    """

    name: str
    grids: bool

    @property
    def numbers_on(self) -> torch.device | None:
        """Where reductions leave their numbers: on this device, and none waits for it; None with the host."""

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why this executor cannot run the program over columns of these dtypes, or None."""

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> Runner:
        """The program made ready for rows of these sizes. NoKernel where that fails."""


def folded(kind: str, row_of: Sequence[int], partial: Sequence[float], rows: int) -> list[float]:
    """Partial results of items met, in order, row by row: the same bits whatever the number of threads."""
    out, meet = [0.0] * rows, REDUCTIONS[kind].meet.host
    for row, value in zip(row_of, partial, strict=True):
        out[row] = meet(out[row], value)
    return out


_LETTERS = {"load": "x", "draw": "r", "scalar": "s", "entry": "e", "device": "n", "value": "v"}


def name_of(value: Value) -> str:
    """What a value is called in a printed program."""
    kind = value[0]
    return "zero" if kind == "zero" else _LETTERS[kind] + str(value[1])
