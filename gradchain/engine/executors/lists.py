"""What is made by calls over lists: the calls of a write, each made once, and reductions of all tensors of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.engine.commit import Commit
from gradchain.engine.executors.chunks import Kept
from gradchain.engine.executors.given import Given
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column

NORMS = {"sum1": 1, "sum2": 2, "max": float("inf")}


class Script:
    """Calls that are each made once, in order, to the end, whatever breaks in between.

    Python runs no code of anyone's between two of them: what came to its end is in the list of what ended, and a call
    that did not is made again. Those that write over what they read are C alone, and cannot be broken off; what runs
    Python only makes something new. Broken off before anything of anybody's is written it may never go on: it gives
    back the memory it works in, and would begin anew.
    """

    def __init__(self, calls: list[Callable[[], object]], first: int, kept: Kept | None = None) -> None:
        self._calls, self._first = calls, first  # the first that writes what was there before
        self._kept = kept
        self._ended: list[object] = []
        self._tried = False

    @property
    def begun(self) -> bool:
        """Whether any of what is somebody's may be written."""
        return self._tried and len(self._ended) >= self._first

    def __call__(self) -> None:
        self._tried = True
        try:
            self._ended.extend(map(_CALL, self._calls[len(self._ended) :]))
        finally:
            if self._kept is not None and not self.begun:
                self._ended.clear()
                self._kept.give_back()


_CALL: Any = partial.__call__


class ListRunner:
    """A program made ready to run by calls over lists; see Runner.

    Attributes:
        device: where its tensors lie.
        scratch: how many bytes it works in at most; None where that depends on where numbers lie.
    """

    source = None
    device: torch.device
    scratch: int | None
    _program: Program
    _wide: torch.dtype

    def run(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> list[float] | None:
        """Run over all rows; see Runner. Only a program that reduces waits for the device."""
        out = self.launch(columns, scalars, entries)
        return None if out is None else out.tolist()

    def launch(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Tensor | None:
        """Run over all rows without waiting. Returns one float64 per row of a program that reduces, on the device."""
        with _torch.no_grad():
            if self._program.reduce is None:
                self._script(columns, scalars, entries)()
                return None
            return self._reduced(columns, Given(self._program, scalars, entries, self.device, self._wide))

    def write(self, commit: Commit, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> None:
        """Have a commit run it over all rows, without waiting; see Runner."""
        commit.add(self._script(columns, scalars, entries))

    def _script(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Script:
        """The calls that write."""
        raise NotImplementedError

    def _reduced(self, columns: Sequence[Column], given: Given) -> Tensor:
        """One float64 per row of a program that reduces."""
        raise NotImplementedError


def born(into: list[Tensor], kernel: Callable[..., Any], given: Sequence[Any]) -> Callable[[], object]:
    """A call that fills a list with what a kernel gives, in C alone, and once more where it failed."""
    return partial(map(into.__init__, map(kernel, *map(repeat, given))).__next__)  # type: ignore[misc]


def countable(program: Program) -> Program:
    """The program; one that counts what is not finite sums truths."""
    if program.reduce is None or program.reduce[0] != "bad":
        return program
    at, operand = len(program.instructions), program.reduce[1]
    counted = [("isfinite", (operand,)), ("not", (("value", at),)), ("number", (("value", at + 1),))]
    return replace(program, instructions=[*program.instructions, *counted], reduce=("sum1", ("value", at + 2)))


def of_lists(kind: str, rows: list[Tensor]) -> Tensor:
    """One float64 per piece: norms, or what is made of them. A sum is that of the positive without the negative."""
    if kind == "sum":
        above = torch.stack(_norms(_torch.foreach("clamp_min")(rows, 0.0), 1))
        return above - torch.stack(_norms(_torch.foreach("clamp_max")(rows, 0.0), 1))
    found = torch.stack(_norms(rows, NORMS[kind]))
    return found.square() if kind == "sum2" else found


def _norms(rows: list[Tensor], p: float) -> list[Tensor]:
    return list(_torch.foreach("norm")(rows, p, dtype=torch.float64))
