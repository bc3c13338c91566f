"""What a stage has computed and a later one needs again: kept in memory, where that is less work than once more.

A trust ratio's norm is of the update, and the update is scaled by what was made of the norm. As two passes that is the
update computed twice, roots and quotients included, from all that it is made of. Among stages the first pass may write:
it keeps the update, in room for one parameter of each thread, and what is written whatever the norm, as moments, goes
where it belongs at once. The norm is then taken of what was kept, and the last pass reads no more than it changes. All
of it is in the dtype of the computation, so that no bit is another.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradchain.engine.executors.native import Native, NativeRunner
from gradchain.engine.planning.grid import Grid
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.plan import Part
from gradchain.engine.planning.rows import Column
from gradchain.engine.recording.host import HostLedger
from gradchain.engine.replay_data import Call

MOST = 1 << 20  # elements of a parameter that room is made for: of more a cache has nothing left by the next pass

# operations that take longer than to write a number and to read it again, while it is in the cache
_DEAR = frozenset("div sqrt rsqrt pow exp expm1 log log1p tanh erf atan2 remainder".split())


@dataclass
class Stages:
    """The stages of a job.

    Attributes:
        calls: in order.
        rows: for each, the row of each parameter that it runs over.
        room: a stage that keeps a value of one parameter, for those behind it, and the column that is to lie there.
        size: how many bytes of room a value has.
        instead: by the identity of a stage that there was, those that are in its place, itself for what has no room.
    """

    calls: list[Call]
    rows: list[dict[str, int]]
    room: list[tuple[Call, Column]] = field(default_factory=list)
    size: int = 0
    instead: dict[int, list[Call]] = field(default_factory=dict)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The room, by number of stage and column."""
        return [(self.at([call])[0], next(i for i, c in enumerate(call.columns) if c is of)) for call, of in self.room]

    def at(self, calls: Iterable[Call]) -> list[int]:
        """Where stages are now, or those that are in their place."""
        wanted = {id(one) for call in calls for one in self.instead.get(id(call), [call])}
        return [stage for stage, call in enumerate(self.calls) if id(call) in wanted]

    def replace(self, old: Call, new: list[Call], mine: dict[str, int]) -> None:
        """Stages in the place of one, for some of its parameters; of the others it stays that of."""
        at = next(stage for stage, call in enumerate(self.calls) if call is old)
        rest = {name: row for name, row in self.rows[at].items() if name not in mine}
        self.instead[id(old)] = [*new, old]
        self.calls[at : at + 1] = [*new, old] if rest else new
        self.rows[at : at + 1] = [mine] * len(new) + ([rest] if rest else [])

    def told(self, parts: Sequence[Part], by: Sequence[Call]) -> list[Part]:
        """Parts as a step says them that runs these stages: `by` is what the stages of some of them were."""
        before, found = {id(call.part): call for call in by}, list[Part]()
        for part in parts:
            call = before.get(id(part))
            for stage in [] if call is None else self.at([call]):
                one, rows = self.calls[stage].part, self.rows[stage]
                found.append(dataclasses.replace(one, names=tuple(n for n in one.names if n in rows), staged=True))
            found += [part] if call is None else []
        return found


def with_kept_values(ledger: HostLedger, made: set[int], passes: Sequence[Call], last: Sequence[Call]) -> Stages:
    """Stages that reduce or fill, then those that write, with values kept wherever that is less work."""
    calls = [*passes, *last]
    rows = [{name: i for i, name in enumerate(call.part.names)} for call in calls]
    stages, keys = Stages(calls, rows), _Keys(ledger, made)
    for write in last:
        for reduce in reversed(passes):
            alike = _alike(reduce, write) and id(reduce) not in stages.instead
            kept = _Kept(keys, reduce, write) if alike else None
            if kept is not None and kept.pays and kept.is_safe(stages.calls):
                kept.put(stages)
                break
    return stages


def _alike(reduce: Call, write: Call) -> bool:
    """Whether these are of the same elements, in the same dtype."""
    a, b = reduce.part, write.part
    what = bool(a.program.reduce and b.program.stores) and a.names == b.names and _wide(a) is _wide(b)
    return what and _sizes(a) == _sizes(b)


def _wide(part: Part) -> torch.dtype:
    return torch.float64 if torch.float64 in part.dtypes else torch.float32


def _sizes(part: Part) -> list[int]:
    assert isinstance(part.runner, NativeRunner)
    return part.runner.items.sizes


class _Keys:
    """What tells values of several programs apart: equal keys are equal numbers."""

    def __init__(self, ledger: HostLedger, made: set[int]) -> None:
        self._values, self._made = ledger.values, made
        self._other = {*ledger.inputs, *(op.out for op in ledger.ops)}
        self._numbers: dict[Any, int] = {}

    def is_late(self, cell: int) -> bool:
        """Whether a number per parameter is one of those that stages make."""
        return cell in self._made

    def column(self, call: Call, at: int) -> tuple[int, ...]:
        """Which memory a column is, whatever its cell."""
        held = call.columns[at]
        column: Column = self._values[held] if isinstance(held, int) else held
        return tuple(map(Tensor.data_ptr, column.tensors))

    def lies(self, call: Call, columns: Iterable[int]) -> set[int]:
        """Where columns lie, each parameter of them by itself: another stage may run over more of them, or fewer."""
        return {pointer for at in columns for pointer in self.column(call, at)}

    def of(self, call: Call) -> list[int]:
        """The keys of a program's instructions."""
        made: list[int] = []
        for op, operands in call.part.program.instructions:
            made.append(self._number((op, *(self.value(call, o, made) for o in operands))))
        return made

    def value(self, call: Call, value: Value, made: Sequence[int]) -> Any:
        """The key of one value."""
        program, kind = call.part.program, value[0]
        if kind == "value":
            return made[value[1]]
        if kind == "load":
            return "load", self.column(call, value[1])
        if kind == "draw":
            draw = program.draws[value[1]]
            return "draw", draw._replace(operands=tuple(self.value(call, o, made) for o in draw.operands))
        if kind in ("scalar", "entry"):
            cell = (call.scalars if kind == "scalar" else call.entries)[value[1]]
            known = cell in self._other or type(self._values[cell]) not in (float, int, bool)
            return (kind, cell) if known else (kind, "constant", repr(self._values[cell]))
        return value

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


class _Kept:
    """A write in two: what is known where `reduce` is, and what stands on numbers that come later.

    Attributes:
        pays: whether that can be, and is less work than to compute twice.
    """

    def __init__(self, keys: _Keys, reduce: Call, write: Call) -> None:
        self._keys, self._reduce, self._write = keys, reduce, write
        program, made = write.part.program, keys.of(write)
        self._numbers = {i for i, cell in enumerate(write.entries) if cell not in reduce.entries and keys.is_late(cell)}
        self._late: list[bool] = []
        for _, operands in program.instructions:
            self._late.append(any(map(self._is_late, operands)))
        early = [(c, v) for c, v in program.stores if not self._is_late(v)]
        wide, homes = _wide(write.part), {v: c for c, v in reversed(early)}
        self._room = {v: Column([], _addresses=array("q", bytes(8 * len(write.part.names)))) for v in self._cut()}
        given: dict[Value, Column | int] = {**self._room}
        for value, column in homes.items():
            if value in self._room and write.part.dtypes[column] is wide:
                given[value] = column  # it lies where it is stored anyway
                del self._room[value]
        self._first, self._last = _Piece(write, {}), _Piece(write, given)
        for column, value in early:
            self._first.store(column, value)
        for value, place in self._room.items():
            self._first.store(place, value)
        for column, value in program.stores:
            if self._is_late(value):
                self._last.store(column, value)
        kind, of = reduce.part.program.reduce or ("", ("zero",))
        wanted = keys.value(reduce, of, keys.of(reduce))
        self._kind = kind
        self._where = next((given[v] for v in given if made[v[1]] == wanted), None) if of[0] == "value" else None
        self.pays = self._where is not None and self._is_possible() and self._is_less()

    def _is_late(self, value: Value) -> bool:
        if value[0] == "draw":
            return any(map(self._is_late, self._write.part.program.draws[value[1]].operands))
        return self._late[value[1]] if value[0] == "value" else value[0] == "entry" and value[1] in self._numbers

    def _cut(self) -> list[Value]:
        """The results known early that something late reads."""
        both = zip(self._write.part.program.instructions, self._late, strict=True)
        read = [operand for (_, given), late in both if late for operand in given]
        return list(dict.fromkeys(v for v in read if v[0] == "value" and not self._late[v[1]]))

    def _is_possible(self) -> bool:
        """Whether the last pass reads nothing as it was before the first wrote, and every element is written."""
        program = self._write.part.program
        whole = program.grid is None or all(all(program.grid.spans[column]) for column, _ in program.stores)
        early = {column for column, value in program.stores if not self._is_late(value)}
        return whole and bool(self._last.program.stores) and early.isdisjoint(self._last.loaded)

    def _is_less(self) -> bool:
        """Whether the last pass reads less than the write did, or no root and no quotient is computed twice."""
        fewer = len(self._last.program.loads()) < len(self._write.part.program.loads())
        return fewer or any(op in _DEAR for op, _ in self._first.program.instructions)

    def is_safe(self, calls: Sequence[Call]) -> bool:
        """Whether no stage between touches what the first part writes, or writes what it reads."""
        lies, write = self._keys.lies, self._write
        mine = {c for c in self._first.columns if isinstance(c, int)}
        stores = {c for at, _ in self._first.program.stores for c in [self._first.columns[at]] if isinstance(c, int)}
        stored, read = lies(write, stores), lies(write, mine)
        begin = next(i for i, call in enumerate(calls) if call is self._reduce)
        for call in [call for call in calls[begin + 1 :] if call is not write]:
            program = call.part.program
            written = lies(call, [*(c for c, _ in program.stores), *(c for _, _, c in program.along)])
            if written & read or stored & lies(call, range(len(call.columns))):
                return False
        return True

    def put(self, stages: Stages) -> None:
        """Put it into the stages, for the parameters that there is room for."""
        part, wide = self._write.part, _wide(self._write.part)
        sizes = _sizes(part)
        mine = {name: i for i, name in enumerate(part.names) if not self._room or sizes[i] <= MOST}
        if not mine:
            return
        grid = self._reduce.part.program.grid
        grid = None if grid is None else Grid(((True,) * grid.rank,), grid.extents)
        again = Program([0], reduce=(self._kind, ("load", 0)), grid=grid)
        assert self._where is not None
        where = self._write.columns[self._where] if isinstance(self._where, int) else self._where
        first, norm, last = (
            self._first.ready(), _ready(self._reduce, again, [where], (wide,)), self._last.ready()
        )  # fmt: skip
        stages.replace(self._reduce, [first, norm], mine)
        stages.replace(self._write, [last], mine)
        stages.room += [(first, place) for place in self._room.values()]
        if self._room:
            most = -(-max(sizes[i] for i in mine.values()) * wide.itemsize // 64) * 64
            stages.size = max(stages.size, most)
            assert isinstance(first.part.runner, NativeRunner)
            first.part.runner.scratch += len(self._room) * most * torch.get_num_threads()


class _Piece:
    """A part of a write's program, as a program of its own.

    Attributes:
        columns: its columns: which of the write's, or room.
        loaded: those of the write's that it reads as they were.
    """

    def __init__(self, write: Call, given: Mapping[Value, Column | int]) -> None:
        self.program, self.columns, self.loaded = Program(), list[Column | int](), set[int]()
        self._write, self._given = write, given
        self._scalars, self._entries = list[int](), list[int]()
        self._done: dict[Value, Value] = {}

    def store(self, where: Column | int, value: Value) -> None:
        """Write a value of the write's there."""
        stored = self._value(value)
        self.program.stores.append((self._column(where), stored))

    def _column(self, where: Column | int) -> int:
        for i, one in enumerate(self.columns):
            if one is where or (isinstance(one, int) and one == where):
                return i
        self.columns.append(where)
        return len(self.columns) - 1

    def _value(self, value: Value) -> Value:
        if value not in self._done:
            self._done[value] = self._made(value)
        return self._done[value]

    def _made(self, value: Value) -> Value:
        kind, program = value[0], self._write.part.program
        if value in self._given:
            return ("load", self._column(self._given[value]))
        if kind == "load":
            self.loaded.add(value[1])
            return ("load", self._column(value[1]))
        if kind in ("scalar", "entry"):
            cells = self._scalars if kind == "scalar" else self._entries
            cells.append(value[1])
            return (kind, len(cells) - 1)
        if kind == "draw":
            draw = program.draws[value[1]]
            self.program.draws.append(draw._replace(operands=tuple(map(self._value, draw.operands))))
            return ("draw", len(self.program.draws) - 1)
        if kind == "value":
            op, operands = program.instructions[value[1]]
            self.program.instructions.append((op, tuple(map(self._value, operands))))
            return ("value", len(self.program.instructions) - 1)
        return value

    def ready(self) -> Call:
        """It ready to run, over all parameters of the write."""
        write, part, made = self._write, self._write.part, self.program
        made.columns = list(range(len(self.columns)))
        made.scalars = [part.program.scalars[i] for i in self._scalars]
        made.entries = [part.program.entries[i] for i in self._entries]
        grid = part.program.grid
        if grid is not None:
            spans = [grid.spans[c] if isinstance(c, int) else (True,) * grid.rank for c in self.columns]
            made.grid = Grid(tuple(spans), grid.extents)
        dtypes = [part.dtypes[c] if isinstance(c, int) else _wide(part) for c in self.columns]
        columns = [write.columns[c] if isinstance(c, int) else c for c in self.columns]
        call = _ready(write, made, columns, tuple(dtypes))
        scalars, entries = [write.scalars[i] for i in self._scalars], [write.entries[i] for i in self._entries]
        return dataclasses.replace(call, scalars=scalars, entries=entries)


def _ready(call: Call, program: Program, columns: list[Any], dtypes: tuple[torch.dtype, ...]) -> Call:
    """Another program over the parameters of a call, which has no numbers yet."""
    runner = Native().ready(program, dtypes, _sizes(call.part))
    part = dataclasses.replace(call.part, program=program, runner=runner, dtypes=dtypes, _places={})
    return Call(part, columns, [], [], None)
