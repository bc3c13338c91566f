"""A program printed as a Triton kernel: one program instance per item, a stretch of one parameter.

The text imports nothing and needs no Triton to be made. Everything that changes from step to step comes in one table
of 64-bit cells: addresses of the columns row by row, then scalars, then numbers per row. The cell of a number holds
its bits or, where the number lives on the device, the address of a float64: no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from gradchain.core.operations import OPERATIONS
from gradchain.engine.executors.base import name_of
from gradchain.engine.executors.print_draws import triton as drawn
from gradchain.engine.operations import BOOLEAN, REDUCTIONS, TYPES
from gradchain.engine.planning.lower import Program


def fold(kind: str) -> str:
    """The Triton that meets partial results of items row by row: in order, whatever ran first."""
    meet = REDUCTIONS[kind].meet
    return f"""\
def fold(partial, first, out, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    at = tl.load(first + r)
    last = tl.load(first + r + 1)
    lane = tl.arange(0, BLOCK)
    met = tl.zeros([BLOCK], tl.float64)
    while at < last:
        v = tl.load(partial + at + lane, mask=at + lane < last, other=0.0)
        met = {meet.triton.format("met", "v")}
        at = at + BLOCK
    tl.store(out + r, {meet.block.format("met")})
"""


def source(program: Program, dtypes: Sequence[torch.dtype], on_device: Collection[tuple[str, int]] = ()) -> str:
    """The Triton of a program whose columns have these dtypes.

    The kernel is `run(table, items, rows, out, BLOCK, ALIGNED)`, one instance per item. An item is the row, begin and
    end of a stretch of at most BLOCK elements; `out` has one float64 per item for a reduction. With ALIGNED an item
    whose columns all begin at multiples of 16 bytes is read and written that many at a time, whatever others do.

    Args:
        program: what to compute.
        dtypes: the columns' dtypes.
        on_device: which numbers, as ("scalar", i) and ("entry", i), are given by address.
    """
    return Printer(program, dtypes, on_device).text()


def form_of(op: str, wide: bool) -> str:
    """Triton of an operation: in float64 the plain forms are exact, and those that round rightly are not there."""
    operation = OPERATIONS[op]
    return operation.wide if wide and operation.wide else operation.triton


class Printer:
    """One program with its dtypes, printed."""

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype], on_device: Collection[tuple[str, int]]) -> None:
        self._program = program
        self._dtypes = dtypes
        self._on_device = on_device
        self._wide = torch.float64 in dtypes or not dtypes  # constants alone: in float64, which is right for all
        self._compute = "tl.float64" if self._wide else "tl.float32"
        self._fixed = len(dtypes)  # cells of each row that stand before the numbers

    def text(self) -> str:
        """The kernel: where this item is, its numbers, then the same body for a full block and for a ragged end."""
        lines = [
            "def run(table, items, rows, out, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):",
            "    k = tl.program_id(0)",
            *(f"    {line}" for line in self._row()),
            "    begin = tl.load(items + 3 * k + 1)",
            "    n = tl.load(items + 3 * k + 2) - begin",
            *(f"    {line}" for line in (*self._numbers(), *self._pointers())),
            "    lane = tl.arange(0, BLOCK)",
            f"    zero = tl.zeros([BLOCK], {self._compute})",
            *(f"    {line}" for line in self._elements()),
        ]
        if self._program.reduce:
            lines.append("    tl.store(out + k, met)")
        else:  # that it was queued
            cells = f"{self._fixed} * rows + {len(self._program.scalars)} + {len(self._program.entries)} * rows"
            lines += ["    if k == 0:", f"        tl.store(table + {cells}, 1)"]
        return "\n".join([*lines, ""])

    def _row(self) -> list[str]:
        """The lines that find the row of this item."""
        return ["r = tl.load(items + 3 * k)"]

    def _elements(self) -> list[str]:
        """The lines that do everything for the elements of the item."""
        return [
            *self._places(),
            *(line for i, d in enumerate(self._program.draws) for line in drawn(d, i, self._compute)),
            "whole = n == BLOCK",
            *self._alignment(),
            "if whole:",
            *(f"    {line}" for line in (*self._hints(), *self._body(ragged=False))),
            "else:",
            "    inside = lane < n",
            *(f"    {line}" for line in self._body(ragged=True)),
        ]

    def _numbers(self) -> list[str]:
        """The lines that read the scalars and this row's entries, and compute in float64 what is made of them alone."""
        program = self._program
        scalars, entries = len(program.scalars), len(program.entries)
        base = f"table + {self._fixed} * rows"
        cells = [(f"s{i}", f"{base} + {i}", ("scalar", i)) for i in range(scalars)]
        cells += [(f"e{i}", f"{base} + {scalars} + {entries} * r + {i}", ("entry", i)) for i in range(entries)]
        lines = []
        for name, cell, key in cells:
            read = f"tl.load({cell})"
            if key in self._on_device:
                read = f"tl.load({read}.to(tl.pointer_type(tl.float64)))"
            else:
                read = f"{read}.to(tl.float64, bitcast=True)"
            lines.append(f"d{name} = {read}")
        for i, (op, operands) in enumerate(program.numbers):
            taken = zip(OPERATIONS[op].takes, operands, strict=True)
            given = [f"(d{name_of(o)} != 0.0)" if takes == "m" else f"d{name_of(o)}" for takes, o in taken]
            truth = ".to(tl.float64)" if op in BOOLEAN else ""
            lines.append(f"dn{i} = {form_of(op, wide=True).format(*given, C='tl.float64')}{truth}")
        names = [*(name for name, _, _ in cells), *(f"n{i}" for i in range(len(program.numbers)))]
        return lines + [f"{n} = tl.full([BLOCK], d{n}.to({self._compute}), {self._compute})" for n in names]

    def _pointers(self) -> list[str]:
        """The lines that find each column of this item."""
        lines = []
        for i, dtype in enumerate(self._dtypes):
            lines.append(f"a{i} = tl.load(table + {i} * rows + r)")
            begin = " + begin" if self._whole(i) else ""
            lines.append(f"p{i} = a{i}.to(tl.pointer_type({TYPES[dtype].triton})){begin}")
        return lines

    def _whole(self, column: int) -> bool:
        """Whether a column has every element."""
        return True

    def _places(self) -> list[str]:
        """The lines that find where columns stand that have not every element."""
        return []

    def _place(self, column: int) -> str:
        """Where the block's elements of a column lie behind `p…`."""
        return "lane"

    def _alignment(self) -> list[str]:
        """The lines that find whether this item may be read 16 bytes at a time: each row begins where it does."""
        together = " | ".join(f"a{i}" for i in range(len(self._dtypes)) if self._whole(i))
        return ["if ALIGNED:", f"    whole = whole & ((({together}) & 15) == 0)"] if together else []

    def _hints(self) -> list[str]:
        columns = [i for i in range(len(self._dtypes)) if self._whole(i)]
        return ["if ALIGNED:", *(f"    p{i} = tl.multiple_of(p{i}, 16)" for i in columns)] if columns else []

    def _body(self, ragged: bool) -> list[str]:
        """The lines that load, compute and store, or reduce to `met`."""
        program, lines = self._program, self._computed(ragged)
        if program.reduce is None:
            for column, value in program.stores:
                lines += self._store(column, name_of(value), "inside" if ragged else "")
            return lines
        kind, value = program.reduce
        reduction = REDUCTIONS[kind]
        lines += [f"wide = {name_of(value)}.to(tl.float64)", f"taken = {reduction.triton}"]
        if ragged:
            lines.append("taken = tl.where(inside, taken, 0.0)")
        return [*lines, f"met = {reduction.meet.block.format('taken')}"]

    def _computed(self, ragged: bool) -> list[str]:
        """The lines that load what is read, and compute every instruction."""
        lines = [self._load(i, ragged) for i in sorted(self._program.loads())]
        for i, (op, operands) in enumerate(self._program.instructions):
            form = form_of(op, self._wide)
            lines.append(f"v{i} = {form.format(*map(name_of, operands), C=self._compute)}")
        return lines

    def _load(self, column: int, ragged: bool) -> str:
        zero = "0" if self._dtypes[column] is torch.bfloat16 else "0.0"
        read = f"tl.load(p{column} + {self._place(column)}" + (f", mask=inside, other={zero})" if ragged else ")")
        if self._dtypes[column] is torch.bfloat16:
            read = f"({read}.to(tl.uint32) << 16).to(tl.float32, bitcast=True)"
        return f"x{column} = {read}.to({self._compute})"

    def _store(self, column: int, value: str, inside: str, lane: str = "lane") -> list[str]:
        """The lines that round a value once and write it. Doubles go to 16 bits through float32, as in torch."""
        dtype, lines = self._dtypes[column], []
        rounded = f"{value}.to({TYPES[dtype].triton})"
        if dtype is torch.float16:
            rounded = f"{value}.to(tl.float32).to(tl.float16)"
        elif dtype is torch.bfloat16:
            lines = [
                f"f{column} = {value}.to(tl.float32)",
                f"b{column} = f{column}.to(tl.uint32, bitcast=True)",
                f"b{column} = (b{column} + 0x7FFF + ((b{column} >> 16) & 1)) >> 16",
                f"b{column} = tl.where(f{column} != f{column}, 0x7FC0, b{column})",
            ]
            rounded = f"b{column}.to(tl.uint16)"
        return [*lines, f"tl.store(p{column} + {lane}, {rounded}" + (f", mask={inside})" if inside else ")")]
