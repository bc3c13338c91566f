"""From a tape to programs: one per class of parameters, in which masks are resolved and equal terms shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch

from gradchain.core.operations import OPERATIONS
from gradchain.engine.operations import BOOLEAN, Unrecorded
from gradchain.engine.planning.grid import Grid
from gradchain.engine.recording.device import DeviceLedger
from gradchain.engine.recording.tape import Tape

T = TypeVar("T")

# What an operand of an instruction is: a load, a constant, a scalar cell, an entry cell, random numbers, or an earlier
# instruction.
Value = tuple[Any, ...]


class Drawn(NamedTuple):
    """Random numbers, one for each element: see `core.random`.

    Attributes:
        kind: what is drawn.
        stream: which of the streams of a step.
        wide: whether in float64, else in float32; the program may compute in another.
        operands: numbers, exact in float64: both words of the key, the step, the place of the first element.
    """

    kind: str
    stream: int
    wide: bool
    operands: tuple[Value, ...]


@dataclass
class Program:
    """A straight line of instructions over one element.

    Attributes:
        columns: the leaves it touches, by node, in the order of the kernel's pointers.
        scalars: the cells of the numbers it reads.
        entries: the cells of the numbers per parameter it reads.
        instructions: (operation, operands). Masks are numbers to none: "number" makes 0 and 1 of one. An operand is
            ("load", column), ("scalar", i), ("entry", i), ("device", i), ("draw", i), ("zero",) or ("value", i), the
            result of instruction i.
        stores: (column, operand): what is written where.
        reduce: (kind, operand) for a program that reduces instead of storing.
        along: (kind, operand, column) for one that reduces along axes: what is written to which column.
        grid: how the columns lie over the elements; None where all of a row have the same elements.
        numbers: (operation, operands) on numbers alone, done in float64, once per row: those that lie on the device.
            Operand ("device", i) is the result of number i.
        draws: the random numbers it reads.
    """

    columns: list[int] = field(default_factory=list)
    scalars: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    instructions: list[tuple[str, tuple[Value, ...]]] = field(default_factory=list)
    stores: list[tuple[int, Value]] = field(default_factory=list)
    reduce: tuple[str, Value] | None = None
    along: list[tuple[str, Value, int]] = field(default_factory=list)
    grid: Grid | None = None
    numbers: list[tuple[str, tuple[Value, ...]]] = field(default_factory=list)
    draws: list[Drawn] = field(default_factory=list)

    def loads(self) -> set[int]:
        """The columns that are read."""
        return {o[1] for o in self._operands() if o[0] == "load"}

    def results(self) -> list[Value]:
        """What is stored or reduced."""
        stored = [o for _, o in self.stores] + [o for _, o, _ in self.along]
        return [*stored, self.reduce[1]] if self.reduce else stored

    def has_zeros(self) -> bool:
        """Whether it reads zeros that lie nowhere."""
        return ("zero",) in self._operands()

    def _operands(self) -> list[Value]:
        return [o for _, given in self.instructions for o in given] + self.results()


class Lowering:
    """Lowers the part of a tape that some parameters see; `name` stands for all of its class."""

    def __init__(self, tape: Tape, name: str) -> None:
        self._tape = tape
        self._name = name
        self._done: dict[int, Value] = {}
        self._computed: dict[int, Value] = {}
        self._shared: dict[tuple[str, tuple[Value, ...]], Value] = {}
        self.program = Program()

    def store(self, leaf: int, node: int) -> None:
        """Write the value of `node` over the leaf, if it is another value."""
        value = self._number(self.value(node))
        column = ("load", _slot(self.program.columns, leaf))
        if value != column:
            self.program.stores.append((column[1], value))

    def reduce(self, kind: str, node: int) -> None:
        """Reduce the value of `node`."""
        self.program.reduce = (kind, self._number(self.value(node)))

    def along(self, kind: str, node: int, leaf: int) -> None:
        """Reduce the value of `node` along the axes that the leaf does not go along."""
        value = self._number(self.value(node))
        self.program.along.append((kind, value, _slot(self.program.columns, leaf)))

    def value(self, node: int) -> Value:
        """The operand that holds what `node` is for this class."""
        found = self._done.get(node)
        if found is None:
            found = self._done[node] = self._lowered(node)
        return found

    def _lowered(self, node: int) -> Value:
        op, *operands = self._tape.ops[node]
        if op == "leaf":
            return ("load", _slot(self.program.columns, node))
        if op == "zero":
            return ("zero",)
        if op == "select":
            return self.value(operands[0])
        if op == "overlay":
            return self.value(operands[1] if self._name in self._tape.indices[operands[1]] else operands[0])
        if op == "store":
            return self.value(operands[0] if self._name in self._tape.indices[operands[0]] else operands[1])
        if op == "draw":
            like, *numbers, (kind, stream) = operands
            at = self._tape.indices[like].position[self._name]
            wide = self._tape.dtypes(like)[at] is torch.float64
            drawn = Drawn(kind, stream, wide, tuple(map(self._operand, numbers)))
            return ("draw", _slot(self.program.draws, drawn))
        given = [self._operand(o) for o in operands]
        if op == "where":
            return self._choice(self._tape.is_mask(node), *given)
        return self._instruction(op, *(given if OPERATIONS[op].logical else map(self._number, given)))

    def _choice(self, of_masks: bool, condition: Value, a: Value, b: Value) -> Value:
        if not self._is_mask(condition):  # a truth of the host, which came as a number
            condition, a, b = self._instruction("not", condition), b, a
        if not of_masks:
            return self._instruction("where", condition, self._number(a), self._number(b))
        kept = self._instruction("and", condition, a)
        return self._instruction("or", kept, self._instruction("and", self._instruction("not", condition), b))

    def _is_mask(self, value: Value) -> bool:
        return value[0] == "value" and self.program.instructions[value[1]][0] in BOOLEAN

    def _number(self, value: Value) -> Value:
        """A mask as 0 and 1; what is a number already as it is."""
        return self._instruction("number", value) if self._is_mask(value) else value

    def _instruction(self, op: str, *operands: Value) -> Value:
        """The result of an instruction, which is there once."""
        instruction = (op, operands)
        shared = self._shared.get(instruction)
        if shared is None:
            self.program.instructions.append(instruction)
            shared = self._shared[instruction] = ("value", len(self.program.instructions) - 1)
        return shared

    def _operand(self, operand: Any) -> Value:
        if isinstance(operand, int):
            return self.value(operand)
        kind, cell = operand
        if kind in ("s", "d"):
            return ("scalar", _slot(self.program.scalars, cell))
        if kind in ("e", "r"):
            return ("entry", _slot(self.program.entries, cell))
        if kind == "n":
            return self._on_device(cell)
        raise Unrecorded(f"an operand of kind {kind}")

    def _on_device(self, at: int) -> Value:
        """A number made of others, of the device."""
        found = self._computed.get(at)
        if found is None:
            assert isinstance(self._tape.ledger, DeviceLedger)
            op, *operands = self._tape.ledger.ops[at]
            self.program.numbers.append((op, tuple(self._operand(o) for o in operands)))
            found = self._computed[at] = ("device", len(self.program.numbers) - 1)
        return found


def _slot(cells: list[T], wanted: T) -> int:
    if wanted not in cells:
        cells.append(wanted)
    return cells.index(wanted)
