"""Programs compiled by torch.compile: one function per program, with a length that may change.

It needs what the printed programs need (Inductor calls a C++ compiler on the CPU, Triton on CUDA) and takes seconds to
compile where they take tenths, so it is in no default order: `GRADCHAIN_EXECUTORS=compiled` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.engine.executor import Column, NoKernel
from gradchain.engine.lower import Program, Value

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "sum1": lambda v: v.abs().sum(),
    "sum2": lambda v: (v * v).sum(),
    "max": lambda v: v.abs().amax(),
    "bad": lambda v: (~torch.isfinite(v)).double().sum(),
}


class Compiled:
    """Programs as functions of torch's, compiled by Inductor at their first run."""

    name = "compiled"

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.keeps_numbers = self.device.type != "cpu"

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why Inductor may not compute this program, or None."""
        if program.reduce and self.device.type == "cpu":
            return "Inductor splits a sum by the number of threads, which changes its bits"
        if not dtypes:
            return "there is no tensor to compute over"
        return None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> CompiledRunner:
        """The program compiled: it is tried on a row of zeros. NoKernel where Inductor fails."""
        runner = CompiledRunner(program, self.device)
        try:
            runner.attempt(dtypes)
        except Exception as failure:  # Inductor may fail in any way: it starts compilers
            first = str(failure).strip().partition("\n")[0][:200]
            raise NoKernel(f"torch.compile failed: {type(failure).__name__}: {first}") from failure
        return runner


class CompiledRunner:
    """One compiled program, called row by row."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program, self._device = program, device
        self._run = torch.compile(_function(program), dynamic=True, fullgraph=True)

    def attempt(self, dtypes: Sequence[torch.dtype]) -> None:
        """Compile for rows of these dtypes, before anything is written."""
        program = self._program
        row = [torch.zeros(8, dtype=d, device=self._device) for d in dtypes]
        self._run(row, self._numbers([0.0] * len(program.scalars)), self._numbers([0.0] * len(program.entries)))

    def run(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> list[float] | None:
        """Run over all rows; see Runner."""
        out = self.launch(columns, scalars, entries)
        return None if out is None else out.tolist()  # type: ignore[no-any-return]

    def launch(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Tensor | None:
        """Run over all rows; what a program reduces stays on the device, one float64 per row."""
        width, numbers, sums = len(self._program.entries), self._numbers(scalars), []
        for row, tensors in enumerate(zip(*(c.tensors for c in columns), strict=True)):
            flat = [t.detach().as_strided((t.numel(),), (1,)) for t in tensors]
            if flat[0].numel():
                per_row = self._numbers(entries[row * width : (row + 1) * width])
                sums.append(self._run(flat, numbers, per_row))
            elif self._program.reduce:
                sums.append(torch.zeros((), dtype=torch.float64, device=self._device))
        if self._program.reduce is None:
            return None
        return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64, device=self._device)

    def _numbers(self, values: Sequence[Any]) -> list[Tensor]:
        """Numbers as float64 tensors: a new value then compiles nothing anew."""
        return [
            v.double() if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=self._device)
            for v in values
        ]


def _function(program: Program) -> Callable[[list[Tensor], list[Tensor], list[Tensor]], Tensor | None]:
    """The program as plain torch over the columns of one row."""

    def run(row: list[Tensor], scalars: list[Tensor], entries: list[Tensor]) -> Tensor | None:
        wide = torch.float64 if any(t.dtype is torch.float64 for t in row) else torch.float32
        held: dict[str, list[Tensor]] = {"number": [], "value": [], "scalar": scalars, "entry": entries}
        held["load"] = [t.to(wide) for t in row]
        held["zero"] = [torch.zeros_like(row[0], dtype=wide)]

        def pick(value: Value) -> Tensor:
            return held[value[0]][value[1] if len(value) > 1 else 0]

        for op, operands in program.numbers:
            held["number"].append(_torch.POINTWISE[op](*map(pick, operands)))
        for kind in ("number", "scalar", "entry"):  # rounded once, as every executor does
            held[kind] = [v.to(wide) for v in held[kind]]
        for op, operands in program.instructions:
            given = [pick(o) for o in operands]
            if op == "where":
                given[0] = given[0].to(torch.bool)
            held["value"].append(_torch.POINTWISE[op](*given))
        if program.reduce:
            kind, operand = program.reduce
            return _REDUCTIONS[kind](pick(operand).to(torch.float64).expand_as(row[0]))
        results = [(column, pick(o)) for column, o in program.stores]
        for column, result in results:
            row[column].copy_(result.to(wide))
        return None

    return run
