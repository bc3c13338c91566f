"""The numbers of a program where calls over lists want them: of the host, or on the device, which nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core.operations import OPERATIONS
from gradchain.core.random import drawn_rows
from gradchain.core.scalars import where
from gradchain.core.sending import sent
from gradchain.engine.planning.lower import Drawn, Program, Value
from gradchain.engine.planning.rows import Rows


class Given:
    """The numbers of one run, by the operands that they are.

    Attributes:
        kinds: s for one number of the host, S for one of the host per row, z for one on the device, Z for one per row
            there. An instruction over numbers alone is a number, too.
    """

    def __init__(
        self, program: Program, scalars: Sequence[Any], entries: Sequence[Any], device: torch.device, wide: torch.dtype
    ) -> None:
        self._device, self._wide = device, wide
        self._held: dict[Value, Any] = {("scalar", i): self._single(v) for i, v in enumerate(scalars)}
        width = len(program.entries)
        if isinstance(entries, Rows):
            entries = entries.column.tolist()
        self._held.update({("entry", i): self._per_row(entries[i::width]) for i in range(width)})
        for i, (op, operands) in enumerate(program.numbers):
            self._held["device", i] = self._number(op, operands)
        for i, (op, operands) in enumerate(program.instructions):
            if all(operand in self._held for operand in operands):
                self._held["value", i] = self._number(op, operands)
        self.kinds: Mapping[Value, str] = {value: _kind(held) for value, held in self._held.items()}
        self._fitted: dict[Value, Any] = {}

    def __getitem__(self, value: Value) -> Any:
        """A number of the host, a list of such, or a float64 tensor of the device."""
        return self._held[value]

    def fitted(self, value: Value) -> Any:
        """The same; a tensor in the compute dtype, as torch's fast kernels take it."""
        held = self._held[value]
        if not isinstance(held, Tensor) or held.dtype is torch.bool:
            return held
        if value not in self._fitted:
            self._fitted[value] = held.to(self._wide)
        return self._fitted[value]

    def per_row(self, value: Value) -> Tensor:
        """Numbers per row in one tensor of the device, in the compute dtype; truths as they are."""
        held = self.fitted(value)
        if isinstance(held, list):
            held = self._fitted[value] = sent(held, self._device, self._wide)
        return held  # type: ignore[no-any-return]

    def drawn(self, draw: Drawn, runs: Sequence[tuple[int, int, int]]) -> Tensor:
        """Random numbers in the compute dtype, for runs of elements (row, begin, how many) one behind the other."""
        x, y, step, first = (self._held[operand] for operand in draw.operands)
        keys = [(int(x[row]), int(y[row])) for row, _, _ in runs]
        firsts = [int(first[row] if isinstance(first, list) else first) for row, _, _ in runs]
        where = [(first + begin, many) for first, (_, begin, many) in zip(firsts, runs, strict=True)]
        dtype = torch.float64 if draw.wide else torch.float32
        return drawn_rows(draw.kind, keys, step, draw.stream, where, dtype, self._device).to(self._wide)

    def _single(self, value: Any) -> Any:
        return self._there(value) if isinstance(value, Tensor) else value

    def _per_row(self, values: Sequence[Any]) -> Any:
        if not any(isinstance(v, Tensor) for v in values):
            return list(values)
        cells = [self._there(v) if isinstance(v, Tensor) else self._full(v) for v in values]
        return torch.stack(cells)

    def _there(self, value: Tensor) -> Tensor:
        cell = value.detach() if value.requires_grad else value
        if cell.dtype is torch.float64 and cell.device == self._device:
            return cell
        return cell.to(self._device, torch.float64, non_blocking=True)

    def _full(self, value: Any) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)

    def _number(self, op: str, operands: Sequence[Value]) -> Any:
        """An operation on numbers: of the host by its rule, else in float64 on the device."""
        operation = OPERATIONS[op]
        given = [self._held[o] for o in operands]
        given = [sent(v, self._device, torch.float64) if isinstance(v, list) else v for v in given]
        if not any(isinstance(v, Tensor) for v in given):
            rule = operation.truth if operation.host is None else operation.host
            return rule(*given, *([self._wide] if operation.typed else []))
        truth = where if op == "where" else operation.truth  # which gives two floats of the host the default dtype
        made = truth(*given, *([torch.float64] if operation.typed else []))
        return made if made.dtype in (torch.float64, torch.bool) else made.to(torch.float64)


def _kind(held: Any) -> str:
    if isinstance(held, Tensor):
        return "Z" if held.ndim else "z"
    return "S" if isinstance(held, list) else "s"
