"""Programs compiled by torch.compile: one function per program, with a length that may change.

It needs what the printed programs need (Inductor calls a C++ compiler on the CPU, Triton on CUDA) and takes seconds to
compile where they take tenths, so it is in no default order: `GRADCHAIN_EXECUTORS=compiled` asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.operations import OPERATIONS
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import NoKernel, name_of
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.rows import Column


class Compiled:
    """Programs as functions of torch's, compiled by Inductor at their first run."""

    name = "compiled"
    grids = False

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.numbers_on = None if self.device.type == "cpu" else self.device

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why Inductor may not compute this program, or None."""
        if program.reduce and self.device.type == "cpu":
            return "Inductor splits a sum by the number of threads, which changes its bits"
        if program.draws:
            return "random numbers are made in whole words, which this executor does not print"
        if not dtypes:
            return "there is no tensor to compute over"
        return None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> CompiledRunner:
        """The program compiled: it is tried on a row of zeros. NoKernel where Inductor fails."""
        text = source(program, dtypes)
        lengths = {1, 8} if 1 in sizes else {8}  # torch.compile makes a function of its own for one element
        try:
            runner = CompiledRunner(program, text, self.device)
            for length in lengths:  # before anything is written
                runner.attempt(dtypes, length)
        except Exception as failure:  # Inductor may fail in any way: it starts compilers
            first = str(failure).strip().partition("\n")[0][:200]
            raise NoKernel(f"torch.compile failed: {type(failure).__name__}: {first}") from failure
        return runner


class CompiledRunner:
    """One compiled program, called row by row."""

    scratch = None

    def __init__(self, program: Program, text: str, device: torch.device) -> None:
        self._program, self._device = program, device
        self.source = text
        self.call = compiled(text)
        self.width = len(program.entries)
        self.stores = [column for column, _ in program.stores]

    def attempt(self, dtypes: Sequence[torch.dtype], length: int) -> None:
        """Run it over zeros, which compiles it."""
        program = self._program
        row = [torch.zeros(length, dtype=d, device=self._device) for d in dtypes]
        self.call(*row, *self.numbers([0.0] * (len(program.scalars) + len(program.entries))))

    def run(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> list[float] | None:
        """Run over all rows; see Runner."""
        out = self.launch(columns, scalars, entries)
        return None if out is None else out.tolist()

    def launch(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Tensor | None:
        """Run over all rows; what a program reduces stays on the device, one float64 per row."""
        rows = _Rows(self, columns, scalars, entries)
        if self._program.reduce is None:
            rows()
            return None
        sums = [rows.reduced(row) for row in range(rows.count)]
        none = torch.zeros((), dtype=torch.float64, device=self._device)
        return torch.stack([none if s is None else s for s in sums]) if sums else none.new_zeros(0)

    def write(self, commit: Commit, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> None:
        """Have a commit write row by row; see Runner."""
        commit.add(_Rows(self, columns, scalars, entries))

    def numbers(self, values: Sequence[Any]) -> list[Tensor]:
        """Numbers as float64 tensors: a new value then compiles nothing anew."""
        return [
            v.double() if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=self._device)
            for v in values
        ]


class _Rows:
    """A program over its columns, computed and written row by row; where it stands is one value."""

    def __init__(
        self, runner: CompiledRunner, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]
    ) -> None:
        self._runner = runner
        self._rows = list(zip(*(c.tensors for c in columns), strict=True))
        self._scalars, self._entries = runner.numbers(scalars), entries
        self._now: tuple[int, list[Tensor] | None] = (0, None)
        self.count = len(self._rows)

    @property
    def begun(self) -> bool:
        """Whether a row may be written."""
        return self._now != (0, None)

    def reduced(self, row: int) -> Any:
        """The sum over a row; None for one of no elements."""
        flat = self._flat(row)
        return self._called(row, flat) if flat[0].numel() else None

    def _stored(self, row: int) -> list[Tensor]:
        """What is to be written over a row: the program writes copies of it."""
        flat, stores = self._flat(row), self._runner.stores
        flat = [t.clone() if i in stores else t for i, t in enumerate(flat)]
        if flat[0].numel():
            self._called(row, flat)
        return [flat[i] for i in stores]

    def _called(self, row: int, flat: list[Tensor]) -> Any:
        width = self._runner.width
        per_row = self._runner.numbers(self._entries[row * width : (row + 1) * width])
        return self._runner.call(*flat, *self._scalars, *per_row)

    def _flat(self, row: int) -> list[Tensor]:
        return [t.detach().as_strided((t.numel(),), (1,)) for t in self._rows[row]]

    def __call__(self) -> None:
        """Write the rows that are left."""
        while self._now[0] < self.count:
            row, results = self._now
            if results is None:
                results = self._stored(row)
                self._now = (row, results)
            flat = self._flat(row)
            _torch.copy_([flat[i] for i in self._runner.stores], results)
            self._now = (row + 1, None)


@functools.lru_cache(maxsize=512)
def compiled(text: str) -> Callable[..., Any]:
    """The function of this text, compiled at its first run. Its own code object: torch.compile counts by those."""
    path = f"<gradchain compiled {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    space: dict[str, Any] = {"__name__": "gradchain_compiled", "torch": torch, "do": truths()}
    exec(compile(text, path, "exec"), space)
    return torch.compile(space["run"], dynamic=True, fullgraph=True)


def truths() -> dict[str, Callable[..., Any]]:
    """What a text calls operations by."""
    return {name: operation.traced or operation.truth for name, operation in OPERATIONS.items()}


def source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The program as torch over the columns of one row, flat, and 0-d float64 numbers."""
    wide = "torch.float64" if torch.float64 in dtypes else "torch.float32"
    numbers = [f"{k}{i}" for k, n in (("s", program.scalars), ("e", program.entries)) for i in range(len(n))]
    lines = [f"def run({', '.join([*(f'p{i}' for i in range(len(dtypes))), *numbers])}):"]
    for i, (op, operands) in enumerate(program.numbers):
        lines.append(f"    n{i} = {_call(op, operands, wide)}")
    # numbers are rounded once, as every executor does
    lines += [f"    {name} = {name}.to({wide})" for name in (*numbers, *(f"n{i}" for i in range(len(program.numbers))))]
    lines += [f"    x{i} = p{i}.to({wide})" for i in sorted(program.loads())]
    if program.has_zeros():
        lines.append(f"    zero = torch.zeros_like(p0, dtype={wide})")
    for i, (op, operands) in enumerate(program.instructions):
        lines.append(f"    v{i} = {_call(op, operands, wide)}")
    if program.reduce:
        kind, operand = program.reduce
        reduction = REDUCTIONS[kind]
        lines.append(f"    wide = {name_of(operand)}.to(torch.float64).expand_as(p0)")
        lines.append(f"    return {reduction.torch}.{reduction.meet.torch}()")
    # what is stored as it was loaded is copied first: another store may write over it
    stores = [(c, f"{name_of(v)}.clone()" if v[0] == "load" else f"{name_of(v)}.to({wide})") for c, v in program.stores]
    lines += [f"    r{column} = {value}" for column, value in stores]
    lines += [f"    p{column}.copy_(r{column})" for column, _ in stores]
    return "\n".join([*lines, ""])


def _call(op: str, operands: Sequence[Value], wide: str) -> str:
    operation = OPERATIONS[op]
    taken = zip(operation.takes, operands, strict=True)
    given = [f"{name_of(o)}.to(torch.bool)" if takes == "m" else name_of(o) for takes, o in taken]
    given += [wide] if operation.typed else []
    return f"do[{op!r}]({', '.join(given)})"
