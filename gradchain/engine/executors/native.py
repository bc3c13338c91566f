"""The native executor: a compiled program run over a table of pointers."""

from __future__ import annotations

import ctypes
import math
import os
import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from gradchain.engine.commit import Commit
from gradchain.engine.executors import build
from gradchain.engine.executors.base import CHUNK, folded
from gradchain.engine.executors.drive import ENTRIES, driver
from gradchain.engine.executors.print_c import source
from gradchain.engine.executors.print_grid import grid_source
from gradchain.engine.operations import TYPES
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column, Rows

PARALLEL = 1 << 18  # elements below which a second thread costs more than it brings

_Int = ctypes.c_int64


class Items:
    """The rows of a class cut into items, once per plan; and items that follow each other put into stretches.

    Args:
        sizes: what is cut, for each row.
        depth: for each row, how many elements stand behind one of those.
        cut: whether rows are cut at all.
    """

    def __init__(self, sizes: Sequence[int], depth: Sequence[int] | None = None, cut: bool = True) -> None:
        steps = [CHUNK] * len(sizes) if depth is None else [max(CHUNK // max(d, 1), 1) for d in depth]
        pieces = [
            (row, start, min(start + step, size))
            for row, (size, step) in enumerate(zip(sizes, steps, strict=True))
            for start in range(0, size, step)
        ]
        pieces = pieces if cut else [(row, 0, size) for row, size in enumerate(sizes)]
        deep = [1 if depth is None else depth[row] for row, _, _ in pieces]
        elements = [(end - begin) * d for (_, begin, end), d in zip(pieces, deep, strict=True)]
        self.count = len(pieces)
        self.elements = sum(elements)
        self.sizes = [size * d for size, d in zip(sizes, depth or [1] * len(sizes), strict=True)]
        self.rows = len(sizes)
        self.row_of = [row for row, _, _ in pieces]
        self.row, self.begin, self.end = (array("q", [item[i] for item in pieces]) for i in range(3))
        self.borders = array("q", stretches(elements))
        self.whole = self.row_of == list(range(self.rows))  # each row is one item

    @classmethod
    def over(cls, program: Program, sizes: Sequence[int]) -> Items:
        """The items of a program over rows of these sizes."""
        if program.grid is None:
            return cls(sizes)
        outer = [extents[0] for extents in program.grid.extents]
        depth = [math.prod(extents[1:]) for extents in program.grid.extents]
        return cls(outer, depth, cut=not program.along)  # where results along an axis meet, one item has them all


class Behind:
    """What a kernel over a grid gets behind its columns: the lengths of axes, and room for what is reduced."""

    def __init__(self, program: Program) -> None:
        grid = program.grid
        self.addresses: list[int] = []
        self._held: list[Any] = []
        if grid is None:
            return
        self._add(array("q", [n for row in grid.extents for n in row]), [grid.rank] * len(grid.extents))
        for _, _, column in program.along:
            sizes = grid.sizes(column)
            self._add(array("d", bytes(8 * sum(sizes))), sizes)

    def _add(self, memory: array[Any], sizes: Sequence[int]) -> None:
        """One more column, of rows of so many cells of 8 bytes."""
        first = memory.buffer_info()[0]
        rows = array("q", [first + 8 * start for start in accumulate(sizes, initial=0)])
        self.addresses.append(rows.buffer_info()[0])
        self._held += [memory, rows]

    @property
    def scratch(self) -> int:
        """Bytes of room."""
        return sum(len(memory) * 8 for memory in self._held if memory.typecode == "d")


def stretches(sizes: Sequence[int]) -> list[int]:
    """Where stretches of about as many elements begin and end: one is what a thread takes at a time."""
    borders, room = [0], CHUNK
    for k, size in enumerate(sizes):
        if room <= 0:
            borders.append(k)
            room = CHUNK
        room -= size
    return [*borders, len(sizes)]


class Native:
    """Programs printed as C and compiled: the default on the CPU where there is a compiler."""

    name = "native"
    grids = True
    numbers_on = None

    def __init__(self) -> None:
        self._kernels: dict[str, int] = {}
        self._loaded: list[Any] = []  # the kernels' code stays as long as their addresses

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why this program cannot run natively, or None."""
        unknown = [d for d in dtypes if d not in TYPES]
        return f"no native kernels for {unknown[0]}" if unknown else None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> NativeRunner:
        """The compiled program, with the rows cut into items."""
        text = source(program, dtypes) if program.grid is None else grid_source(program, dtypes)
        return NativeRunner(self.kernel(text), text, program, Items.over(program, sizes))

    def kernel(self, text: str) -> int:
        """The address of a printed program, compiled. NoKernel where that fails."""
        if text not in self._kernels:
            loaded = build.load(text)
            driver()
            self._loaded.append(loaded)
            self._kernels[text] = ctypes.cast(loaded.run, ctypes.c_void_p).value or 0
        return self._kernels[text]


class NativeRunner:
    """One compiled program over rows of fixed sizes.

    What the driver reads of it is made once: a job, and the cells that its numbers and the addresses of its columns are
    put into. A step runs each part once, so they are that step's until it is done.

    Attributes:
        items: what it runs over.
        at: the address of the job.
    """

    def __init__(self, kernel: int, text: str, program: Program, items: Items) -> None:
        self.source = text
        self._reduces = program.reduce[0] if program.reduce else ""
        self.items = items
        self._behind = Behind(program)
        self.scratch = self._behind.scratch
        self._table = array("q", [0] * len(program.columns) + self._behind.addresses)
        self._numbers = array("d", bytes(8 * len(program.scalars)))
        self._put_numbers = struct.Struct(f"{len(program.scalars)}d").pack_into
        self._out = array("d", bytes(8 * items.count if program.reduce else 0))
        fixed = [column.buffer_info()[0] for column in (items.row, items.begin, items.end)]
        stretches = (len(items.borders) - 1, items.borders.buffer_info()[0])
        cells = [column.buffer_info()[0] for column in (self._table, self._numbers)]
        out = self._out.buffer_info()[0] if program.reduce else 0
        self._job = array("q", (kernel, items.count, *fixed, *stretches, *cells, 0, out))
        self.at = self._job.buffer_info()[0]
        self._alone = array("q", (self.at, 0))  # a list of this job, and where the driver leaves its mark
        self._drive = driver()

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> list[float] | None:
        """Run over all items; see Runner."""
        items, at = self.items, self._alone.buffer_info()[0]
        held = self.put(columns, scalars, entries)
        self._drive(at, 1, threads_for(items.elements), at + 8)
        del held  # which had to live until here
        if not self._reduces:
            return None
        partial = self._out.tolist()
        return partial if items.whole else folded(self._reduces, items.row_of, partial, items.rows)

    def write(
        self, commit: Commit, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        """Have all items written by the one call of a commit; see Runner."""
        held = self.put(columns, scalars, entries)
        commit.shared(Kernels).add(self.at, self.items.elements, (self, held))

    def put(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> Any:
        """Fill in what changes from run to run. Returns what must live until the job was done."""
        table = self._table
        for i, column in enumerate(columns):
            table[i] = column._table or column.table
        self._put_numbers(self._numbers, 0, *scalars)
        if not entries:
            return columns
        per_row: Any = entries
        if type(entries) is not array:
            per_row = entries.column if type(entries) is Rows else array("d", entries)
        self._job[ENTRIES] = per_row.buffer_info()[0] if type(per_row) is array else per_row.data_ptr()
        return columns, per_row


class Kernels:
    """The kernels of a step that write, behind one call.

    Attributes:
        begun: whether that call came to its end: Python sees nothing of what is in between.
    """

    def __init__(self) -> None:
        self._jobs: list[int] = []
        self._held: list[Any] = []
        self._elements = 0
        self._done = array("q", (0,))

    def add(self, at: int, elements: int, held: Any) -> None:
        """One more job, by its address, and what must live until it was done."""
        self._jobs.append(at)
        self._held.append(held)
        self._elements += elements

    @property
    def begun(self) -> bool:
        return bool(self._done[0])

    def __call__(self) -> None:
        """Make the call, unless it was made."""
        if not self._done[0]:
            jobs = array("q", self._jobs)
            at, count = jobs.buffer_info()
            driver()(at, count, threads_for(self._elements), self._done.buffer_info()[0])


def threads_for(elements: int) -> int:
    """How many threads share so much work, the caller among them."""
    return torch.get_num_threads() if elements >= PARALLEL and not _forked else 1


_forked: list[int] = []  # the process, where it is a forked child


def _after_fork() -> None:
    # a child of a process with threads may hold locks that nobody will let go: it starts none
    _forked[:] = [os.getpid()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
