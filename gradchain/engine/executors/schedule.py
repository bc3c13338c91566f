"""A program as calls over whole lists of tensors: in place wherever what is written over is needed no more.

How many calls there are depends on the program alone. What torch has no kernel over lists for runs once over a flat
stretch of memory in which the rows lie one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from gradchain.core import _torch
from gradchain.core.operations import OPERATIONS
from gradchain.engine.planning.lower import Program, Value

COMMUTES = frozenset({"add", "mul", "maximum", "minimum"})
# kernels over lists beside those that `Operation.lists` names for the reference, by the kinds of operands
_MORE: dict[str, Mapping[str, str]] = {
    "add": {"tz": "add", "tS": "add"},
    "sub": {"tS": "sub"},
    "div": {"tz": "div"},
    "maximum": {"tS": "clamp_min"},
    "minimum": {"tS": "clamp_max"},
    "lerp": {"ttS": "lerp"},
    "pow": {"tS": "pow"},
}
TEMPORARIES = 2  # that one operation over a flat stretch may make of its own, in units of the compute dtype
DRAWING = 14  # the same of random numbers, which are made of whole words


@dataclass(eq=False)
class Buffer:
    """Where a value lies, of one chunk of rows.

    Attributes:
        kind: "column"; "born", a list that torch makes; "slot", rows over a flat stretch of kept memory; or "flat",
            a stretch that torch makes, without rows.
        at: which column, or which slot.
    """

    kind: str
    at: int = -1


class Call(NamedTuple):
    """One call.

    Attributes:
        how: "over", in place; "born"; "copy", from list to list; "flat"; "settle", from a flat stretch into a slot;
            "fill", a slot with one number; "spread", a stretch with numbers per row; "draw", one with random numbers;
            "drop".
        what: the kernel's name, or the operation's.
        into: what is written or made.
        given: buffers, and numbers by the operand that they are.
        by: what the last of the lists is multiplied by: the factor's operand and a sign.
    """

    how: str
    what: str
    into: Buffer
    given: tuple[Buffer | Value, ...] = ()
    by: tuple[Value | None, float] | None = None


@dataclass
class Schedule:
    """The calls of a program.

    Attributes:
        calls: in order.
        slots: how many.
        units: how many lists of the compute dtype live at once beside the columns, at most.
        result: what is reduced, of a program that does.
    """

    calls: list[Call] = field(default_factory=list)
    slots: int = 0
    units: int = 0
    result: Buffer | None = None


class _Node(NamedTuple):
    """An instruction, or two in one: `add` of a multiple."""

    value: Value
    op: str
    operands: tuple[Value, ...]
    by: tuple[Value | None, float] | None = None


def scheduled(
    program: Program, dtypes: Sequence[torch.dtype], wide: torch.dtype, kinds: Mapping[Value, str]
) -> Schedule:
    """The calls of a program over columns of these dtypes, computed in `wide`.

    Args:
        program: what is computed.
        dtypes: of its columns.
        wide: float64 where one of them is, else float32.
        kinds: what its numbers are: s of the host, S one of the host per row, z on the device, Z one per row there.
    """
    return _Scheduling(program, dtypes, wide, kinds).schedule


class _Scheduling:
    def __init__(
        self, program: Program, dtypes: Sequence[torch.dtype], wide: torch.dtype, kinds: Mapping[Value, str]
    ) -> None:
        self._program, self._kinds = program, kinds
        self._narrow = [d is not wide for d in dtypes]
        self._masks = {("value", i) for i, (op, _) in enumerate(program.instructions) if OPERATIONS[op].mask}
        self._written = {c for c, _ in program.stores}
        self._nodes = self._joined(list(self._lerps_apart()))
        self._last: dict[Value, int] = {}
        for i, node in enumerate(self._nodes):
            self._last.update(dict.fromkeys(node.operands, i))
        end = len(self._nodes)
        self._last.update({v: end for _, v in program.stores if v[0] != "value"})
        if program.reduce:
            self._last[program.reduce[1]] = end
        self._waiting: dict[Value, set[int]] = {}  # the columns that a value is still to be written to
        for c, v in program.stores:
            self._waiting.setdefault(v, set()).add(c)
        self._columns = [Buffer("column", c) for c in range(len(dtypes))]
        # whose memory a column is: of what was loaded, until something else lies there
        self._tenants: list[Value | None] = [
            ("load", c) if ("load", c) in self._last else None for c in range(len(dtypes))
        ]
        self._settled: set[int] = set()  # columns that hold what is stored there
        self._homes: dict[Value, Buffer] = {}
        self._free: list[Buffer] = []
        self._live = self._most = 0
        self._now = 0
        self.schedule = Schedule()
        self._run()

    # two instructions in one

    def _kind(self, value: Value) -> str:
        return self._kinds.get(value) or ("m" if value in self._masks else "t")

    def _kinds_of(self, operands: Sequence[Value]) -> str:
        return "".join(map(self._kind, operands))

    def _lerps_apart(self) -> Iterator[_Node]:
        """The instructions that are no numbers; a lerp by a weight that no kernel takes in three."""
        for i, (op, operands) in enumerate(self._program.instructions):
            value: Value = ("value", i)
            if value in self._kinds:
                continue
            if op != "lerp" or self._kinds_of(operands) in ("tts", "ttS"):
                yield _Node(value, op, operands)
                continue
            start, end, weight = operands
            gap, moved = ("value", i, "gap"), ("value", i, "moved")
            yield _Node(gap, "sub", (end, start))
            yield _Node(moved, "mul", (weight, gap))
            yield _Node(value, "add", (start, moved))

    def _joined(self, nodes: list[_Node]) -> list[_Node]:
        """A sum and the multiple that it alone reads as one call, as the reference has it."""
        uses: dict[Value, int] = {v: 2 for _, v in self._program.stores}
        if self._program.reduce:
            uses[self._program.reduce[1]] = 2
        for node in nodes:
            for operand in node.operands:
                uses[operand] = uses.get(operand, 0) + 1
        made = {node.value: node for node in nodes}
        gone: set[Value] = set()
        out = []
        for node in nodes:
            joined = self._sum(node, made, uses) if node.op in ("add", "sub") else None
            if joined is not None:
                gone.add(joined[0])
                node = joined[1]
            out.append(node)
        return [node for node in out if node.value not in gone]

    def _sum(self, node: _Node, made: dict[Value, _Node], uses: dict[Value, int]) -> tuple[Value, _Node] | None:
        sign = -1.0 if node.op == "sub" else 1.0
        a, b = node.operands
        for x, product in ((a, b), (b, a)) if node.op == "add" else ((a, b),):
            inner = made.get(product)
            if inner is None or inner.op != "mul" or uses[product] != 1 or self._kind(x) != "t":
                continue
            kinds = self._kinds_of(inner.operands)
            if kinds in ("ts", "st"):
                y, factor = inner.operands if kinds == "ts" else inner.operands[::-1]
                if y[0] != "load" or (y[1], node.value) not in self._program.stores:  # else it is scaled where it lies
                    return product, _Node(node.value, "add", (x, y), (factor, sign))
        return None

    # the calls, one after the other

    def _run(self) -> None:
        for now, node in enumerate(self._nodes):
            self._now = now
            self._call(node)
            for column in sorted(self._waiting.get(node.value, ())):
                tenant = self._tenants[column]
                if tenant is None or tenant == node.value or self._done_with(tenant):
                    self._store(column, node.value)
            for value in dict.fromkeys((*node.operands, node.value)):
                if value in self._homes and self._done_with(value):
                    self._release(value)
        self._now = len(self._nodes)
        self._store_the_rest()
        if self._program.reduce:
            operand = self._program.reduce[1]
            as_it_lies = operand[0] == "load" and operand not in self._homes
            self.schedule.result = self._columns[operand[1]] if as_it_lies else self._rows(operand)
        self.schedule.units = self.schedule.slots + self._most

    def _done_with(self, value: Value) -> bool:
        return self._last.get(value, -1) <= self._now and not self._waiting.get(value)

    def _add(self, how: str, what: str, into: Buffer, *given: Buffer | Value, by: Any = None) -> None:
        self.schedule.calls.append(Call(how, what, into, given, by))

    def _store(self, column: int, value: Value) -> None:
        rows = self._rows(value)
        if rows is not self._columns[column]:
            self._add("copy", "", self._columns[column], rows)
        self._waiting[value].discard(column)
        self._settled.add(column)

    def _store_the_rest(self) -> None:
        left = [(c, v) for v, columns in self._waiting.items() for c in sorted(columns)]
        targets = {c for c, _ in left}
        for column, value in left:  # what lies where something else is about to be written is set aside
            home = self._rows(value)
            if home.kind == "column" and home.at in targets and home.at != column:
                self._home(value, self._slot())
                self._add("copy", "", self._homes[value], home)
        for column, value in left:
            self._store(column, value)
        if not self._program.reduce:
            for value in list(self._homes):
                self._release(value)

    def _call(self, node: _Node) -> None:
        op, operands, kinds = node.op, node.operands, self._kinds_of(node.operands)
        if node.by is not None:
            self._over(node, op, operands, kinds)
            return
        kernels = {**OPERATIONS[op].lists, **_MORE.get(op, {})}
        if op in COMMUTES and kinds[0] != "t" and kinds[::-1] in kernels:
            operands, kinds = operands[::-1], kinds[::-1]
        if op in COMMUTES and kinds == "tt" and not self._may_overwrite(operands[0], node.value):
            operands = operands[::-1]
        rows = kinds if kinds in kernels else kinds.replace("Z", "t").replace("S", "t")
        if rows in kernels and kinds[0] == "t":
            self._over(node, kernels[rows], operands, rows)
        elif (op, kinds) == ("sub", "tz"):
            self._over(node, "add", operands, kinds, (None, -1.0))
        elif (op, kinds) == ("sub", "st"):
            self._over(node, "sub", operands[::-1], "ts")
            self._again(node.value, "neg")
        elif (op, kinds) == ("div", "st"):  # as torch divides a number by a tensor
            self._over(node, "reciprocal", operands[1:], "t")
            self._again(node.value, "mul", operands[0])
        elif (op, kinds) == ("pow", "st"):
            made = self._made("born")
            self._add("born", "pow", made, operands[0], self._rows(operands[1]))
            self._home(node.value, made)
        else:
            self._flat_call(node)

    def _over(self, node: _Node, kernel: str, operands: Sequence[Value], kinds: str, by: Any = None) -> None:
        """A kernel over lists: in place where its first operand may be written over, else a list is made."""
        first, *others = (self._rows(o) if kind == "t" else o for o, kind in zip(operands, kinds, strict=True))
        assert isinstance(first, Buffer)
        by = by or node.by
        if _torch.has_foreach(f"{kernel}_") and self._may_overwrite(operands[0], node.value):
            self._add("over", kernel, first, *others, by=by)
            self._homes.pop(operands[0], None)
            if first.kind == "column":
                self._tenants[first.at] = node.value
                if first.at in self._waiting.get(node.value, ()):
                    self._waiting[node.value].discard(first.at)
                    self._settled.add(first.at)
            self._homes[node.value] = first
            return
        made = self._made("born")
        self._add("born", kernel, made, first, *others, by=by)
        self._home(node.value, made)

    def _again(self, value: Value, kernel: str, *others: Value) -> None:
        """One more kernel in place over what was just computed."""
        self._add("over", kernel, self._homes[value], *others)

    def _may_overwrite(self, value: Value, new: Value) -> bool:
        """Whether the new value may lie where this one does."""
        if not self._done_with(value) or self._kind(value) != "t":
            return False
        home = self._rows(value)
        if home.kind != "column":
            return True
        stored = {c for c, v in self._program.stores if v == new}
        return home.at in self._written and home.at not in self._settled and stored <= {home.at}

    def _flat_call(self, node: _Node) -> None:
        """An operation over flat stretches."""
        given = [o if self._kind(o) in "sz" else self._flat(o) for o in node.operands]
        made = self._made("flat", TEMPORARIES)
        self._add("flat", node.op, made, *given)
        self._home(node.value, made)

    # where values lie

    def _rows(self, value: Value) -> Buffer:
        """A value as a list of tensors in the compute dtype."""
        home = self._homes.get(value)
        if home is None:
            home = self._loaded(value)
        if home.kind == "flat":
            slot = self._slot()
            self._add("settle", "", slot, home)
            self._let_go(home)
            home = self._home(value, slot)
        return home

    def _loaded(self, value: Value) -> Buffer:
        if value[0] == "load":
            column = self._columns[value[1]]
            if not self._narrow[value[1]]:
                return self._home(value, column)
            self._add("copy", "", self._home(value, self._slot()), column)
            self._tenants[value[1]] = None
        elif value[0] == "zero":
            self._add("fill", "", self._home(value, self._slot()))
        elif value[0] == "draw":
            self._add("draw", "", self._home(value, self._made("flat", DRAWING)), value)
        elif self._kind(value) in "SZ":
            self._add("spread", "", self._home(value, self._made("flat", TEMPORARIES)), value)
        else:
            self._add("fill", "", self._home(value, self._slot()), value)
        return self._homes[value]

    def _flat(self, value: Value) -> Buffer:
        """A value as one stretch."""
        home = self._homes.get(value) or self._loaded(value)
        if home.kind in ("column", "born"):
            slot = self._slot()
            self._add("copy", "", slot, home)
            self._release(value)
            home = self._home(value, slot)
        return home

    def _home(self, value: Value, buffer: Buffer) -> Buffer:
        self._homes[value] = buffer
        return buffer

    def _slot(self) -> Buffer:
        if self._free:
            return self._free.pop()
        self.schedule.slots += 1
        return Buffer("slot", self.schedule.slots - 1)

    def _made(self, kind: str, beside: int = 0) -> Buffer:
        self._live += 1
        self._most = max(self._most, self._live + beside)
        return Buffer(kind)

    def _release(self, value: Value) -> None:
        home = self._homes.pop(value)
        if home.kind != "column":
            self._let_go(home)
        elif self._tenants[home.at] == value:
            self._tenants[home.at] = None

    def _let_go(self, buffer: Buffer) -> None:
        if buffer.kind == "slot":
            self._free.append(buffer)
        else:
            self._live -= 1
            self._add("drop", "", buffer)
