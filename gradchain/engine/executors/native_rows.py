"""The native executor over rows of a tensor: as many as a sparse gradient names, others at each step."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core.row_gradients import places
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import CHUNK
from gradchain.engine.executors.drive import ENTRIES, driver
from gradchain.engine.executors.native import Kernels, Native, threads_for
from gradchain.engine.executors.print_c import source
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column, Rows

_LONG: Any = {"dtype": torch.int64, "device": "cpu"}  # whatever the user's default device is


class NamedRows:
    """The rows of one parameter that the gradient of the current step names, as items of a kernel.

    Attributes:
        size: elements to a row.
        count: how many rows there are.
        numbers: 0, 1, 2, … for at least as many: where a row lies among the gradient's.
        index: which row of the weight each of them is.
    """

    def __init__(self) -> None:
        self.size = self.count = 0
        self.numbers = self.index = torch.empty(0, **_LONG)
        self.begin = self.end = self.borders = self.numbers
        self._offsets: dict[int, Tensor] = {}

    def take(self, grad: Tensor) -> None:
        """The rows of this gradient, from here on."""
        self.index = places(grad).contiguous()
        self.count, size = len(self.index), grad.shape[1:].numel() * (2 if grad.is_complex() else 1)
        if self.count > len(self.numbers) or size != self.size:
            room = max(2 * len(self.numbers), self.count)  # grows seldom, however the number of rows moves
            self.numbers, self.begin = torch.arange(room, **_LONG), torch.zeros(room, **_LONG)
            self.end, self.size = torch.full((room,), size, **_LONG), size
        stretch = max(1, CHUNK // max(1, size))
        self.borders = torch.cat([torch.arange(0, self.count, stretch, **_LONG), torch.tensor([self.count], **_LONG)])
        self._offsets = {}

    def addresses(self, base: int, itemsize: int, whole: bool) -> Tensor:
        """Where each row begins: in a tensor of all rows, or of these alone."""
        key = -itemsize if whole else itemsize
        if key not in self._offsets:
            which = self.index if whole else self.numbers[: self.count]
            self._offsets[key] = which * (self.size * itemsize)
        return self._offsets[key] + base

    def cells(self) -> tuple[tuple[int, ...], Any]:
        """What a job has of its items, and what must live as long."""
        fixed = (self.numbers, self.begin, self.end, self.borders)
        row, begin, end, borders = (t.data_ptr() for t in fixed)
        return (self.count, row, begin, end, len(self.borders) - 1, borders), fixed


def ready_rows(
    native: Native, program: Program, dtypes: Sequence[torch.dtype], rows: NamedRows, whole: Sequence[bool]
) -> RowsRunner:
    """The program compiled for rows. `whole`: which of its columns are tensors of all rows."""
    text = source(program, dtypes, rows=True)
    return RowsRunner(native.kernel(text), text, program, [d.itemsize for d in dtypes], rows, whole)


class RowsRunner:
    """One compiled program over the rows that a sparse gradient names: its table has one pointer for each."""

    scratch = None

    def __init__(
        self, kernel: int, text: str, program: Program, itemsizes: list[int], rows: NamedRows, whole: Sequence[bool]
    ) -> None:
        self.source = text
        self._reduces = program.reduce[0] if program.reduce else ""
        self._rows, self._itemsizes, self._whole = rows, itemsizes, whole
        self._width = len(program.entries)
        self._table = array("q", bytes(8 * len(program.columns)))
        self._numbers = array("d", bytes(8 * len(program.scalars)))
        self._put_numbers = struct.Struct(f"{len(program.scalars)}d").pack_into
        cells = [column.buffer_info()[0] for column in (self._table, self._numbers)]
        self._job = array("q", (kernel, 0, 0, 0, 0, 0, 0, *cells, 0, 0))
        self._at = self._job.buffer_info()[0]
        self._alone = array("q", (self._at, 0))
        self._drive = driver()

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> list[float] | None:
        """Run over all rows; see Runner. What is reduced is one number, of all of them."""
        rows, at = self._rows, self._alone.buffer_info()[0]
        out = torch.empty(rows.count if self._reduces else 0, dtype=torch.float64, device="cpu")
        self._job[-1] = out.data_ptr()
        held = self._put(columns, scalars, entries)
        self._drive(at, 1, threads_for(rows.count * rows.size), at + 8)
        del held  # which had to live until here
        return [folded(self._reduces, out)] if self._reduces else None

    def write(
        self, commit: Commit, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        """Have all rows written by the one call of a commit; see Runner."""
        held = self._put(columns, scalars, entries)
        commit.shared(Kernels).add(self._at, self._rows.count * self._rows.size, (self, held))

    def _put(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> Any:
        """Fill in the rows of this step and its numbers. Returns what must live until the job was done."""
        rows = self._rows
        cells, items = rows.cells()
        for at, cell in enumerate(cells, 1):
            self._job[at] = cell
        tables = [
            rows.addresses(column.addresses[0], itemsize, whole)
            for column, itemsize, whole in zip(columns, self._itemsizes, self._whole, strict=True)
        ]
        for i, table in enumerate(tables):
            self._table[i] = table.data_ptr()
        self._put_numbers(self._numbers, 0, *scalars)
        numbers = None
        if self._width:  # the numbers of the parameter, for each of its rows
            given = entries.column if type(entries) is Rows else torch.tensor([*entries], dtype=torch.float64)
            numbers = given.repeat(rows.count)
            self._job[ENTRIES] = numbers.data_ptr()
        return columns, tables, items, numbers


def folded(kind: str, partial: Tensor) -> float:
    """What the rows gave, met: the same bits whatever the number of threads."""
    if REDUCTIONS[kind].meet.torch == "sum":
        return sum(partial.tolist(), 0.0)  # in order, which torch's need not be
    return float(getattr(partial, REDUCTIONS[kind].meet.torch)()) if len(partial) else 0.0
