"""Programs over a grid by torch's calls: rows of equal axes lie one behind the other, and are computed on together.

torch has no kernel over lists that reduces rows or broadcasts columns. But parameters come in few shapes: those of one
are one tensor with a dimension more, over which one call does what would be one for each of them. So how many calls
there are depends on the program and on how many shapes there are, not on how many parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.along import reduced
from gradchain.core.operations import OPERATIONS
from gradchain.core.sending import sent
from gradchain.engine.executors.chunks import flat, most_at_once
from gradchain.engine.executors.given import Given
from gradchain.engine.executors.lists import ListRunner, Script, countable, of_lists
from gradchain.engine.executors.schedule import DRAWING
from gradchain.engine.planning.grid import Grid
from gradchain.engine.planning.lower import Program, Value
from gradchain.engine.planning.rows import Column


@dataclass
class Stack:
    """Rows of equal axes.

    Attributes:
        extents: how long their axes are.
        rows: which they are.
    """

    extents: tuple[int, ...]
    rows: list[int] = field(default_factory=list)
    _at: Tensor | None = None

    def shape(self, spans: Sequence[bool]) -> tuple[int, ...]:
        """That of a column which goes along these axes."""
        return (len(self.rows), *(n if along else 1 for n, along in zip(self.extents, spans, strict=True)))

    def picked(self, numbers: Tensor) -> Tensor:
        """Numbers per row, to be met with elements of the rows."""
        if self._at is None:
            self._at = sent(self.rows, numbers.device, torch.int64)
        return numbers.index_select(0, self._at).reshape(-1, *(1 for _ in self.extents))


class GridRunner(ListRunner):
    """One program over rows with several axes."""

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
        assert program.grid is not None
        self._program, self._grid = countable(program), program.grid
        self.device = device
        self._wide = torch.float64 if torch.float64 in dtypes else torch.float32
        self._last = _last_uses(self._program)
        units = _units(self._program, self._grid, self._last)
        self._chunks = _chunked(self._grid.extents, units, self._wide.itemsize, bool(program.along))
        self._kept: dict[int, tuple[Column, list[list[Tensor]]]] = {}
        largest = max((_elements(chunk) for chunk in self._chunks), default=0)
        self.scratch = units * largest * self._wide.itemsize

    def _reduced(self, columns: Sequence[Column], given: Given) -> Tensor:
        """One float64 per row."""
        assert self._program.reduce is not None
        kind, operand = self._program.reduce
        found = []
        for k, chunk in enumerate(self._chunks):
            made = self._computed(k, columns, given)[operand]
            spans = (True,) * self._grid.rank
            found.append(of_lists(kind, _rows(_stacked(made, chunk, self._wide, self.device), chunk, spans)))
        return self._by_row(found)

    def _script(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Script:
        """Chunk by chunk: what computes everything that is written, and one copy into each column."""
        given = Given(self._program, scalars, entries, self.device, self._wide)
        targets = [c for c, _ in self._program.stores] + [c for *_, c in self._program.along]
        calls: list[Callable[[], object]] = []
        for k in range(len(self._chunks)):
            made: list[list[Tensor]] = [[] for _ in targets]
            calls.append(partial(self._fill, made, k, columns, given))
            for column, values in zip(targets, made, strict=True):
                places = self._flats(column, columns[column])[k]
                calls.append(partial(_torch.foreach("copy_"), places, values))
                calls.append(values.clear)
        return Script([partial(call) for call in calls], 1)

    def _fill(self, into: list[list[Tensor]], k: int, columns: Sequence[Column], given: Given) -> None:
        """What is to be written over a chunk: for each store, then for each reduction along axes, a list of rows."""
        chunk, held = self._chunks[k], self._computed(k, columns, given)
        made = []
        for column, value in self._program.stores:
            spans = self._grid.spans[column]
            made.append(_rows(_stacked(held[value], chunk, self._wide, self.device), chunk, spans))
        for kind, value, column in self._program.along:
            spans, whole = self._grid.spans[column], (True,) * self._grid.rank
            dims = [1 + d for d, along in enumerate(spans) if not along]
            stacks = zip(_stacked(held[value], chunk, self._wide, self.device), chunk, strict=True)
            of = [reduced(kind, value.expand(stack.shape(whole)).double(), dims) for value, stack in stacks]
            made.append(_rows(of, chunk, spans))
        for rows, filled in zip(made, into, strict=True):
            filled[:] = rows

    def _computed(self, k: int, columns: Sequence[Column], given: Given) -> dict[Value, Any]:
        """What is stored or reduced, of one chunk: a list with a tensor for each stack, or a number."""
        program, chunk = self._program, self._chunks[k]
        held: dict[Value, Any] = {}
        for i, (op, operands) in enumerate(program.instructions):
            value: Value = ("value", i)
            if value not in given.kinds:
                read = [self._operand(o, held, k, columns, given) for o in operands]
                held[value] = self._applied(op, read, len(chunk))
            for operand in operands:
                if self._last[operand] <= i:
                    held.pop(operand, None)
        for operand in program.results():
            held[operand] = self._operand(operand, held, k, columns, given)
        return held

    def _applied(self, op: str, given: list[Any], size: int) -> list[Tensor]:
        if op == "where" and not any(isinstance(g, list) for g in given[1:]):  # numbers alone say no dtype
            number = given[1]
            plain = not isinstance(number, Tensor)
            given[1] = torch.full((), number, dtype=self._wide, device=self.device) if plain else number
        typed: list[Any] = [self._wide] if OPERATIONS[op].typed else []
        return _torch.pointwise(op, given + typed, size)

    def _operand(self, value: Value, held: dict[Value, Any], k: int, columns: Sequence[Column], given: Given) -> Any:
        """An operand over a chunk: a tensor for each stack, or one number for all."""
        if value in held:
            return held[value]
        kind, chunk = given.kinds.get(value), self._chunks[k]
        if kind in ("S", "Z"):
            numbers = given.per_row(value)
            made: Any = [stack.picked(numbers) for stack in chunk]
        elif kind is not None:
            return given.fitted(value)
        elif value[0] == "load":
            made = self._loaded(value[1], columns[value[1]], k)
        elif value[0] == "draw":
            made = self._drawn(value[1], k, given)
        else:
            made = [torch.zeros((1,) * (1 + self._grid.rank), dtype=self._wide, device=self.device)] * len(chunk)
        held[value] = made
        return made

    def _loaded(self, at: int, column: Column, k: int) -> list[Tensor]:
        """A column in the compute dtype."""
        return self._split(torch.cat(self._flats(at, column)[k]).to(self._wide), k, self._grid.spans[at])

    def _drawn(self, at: int, k: int, given: Given) -> list[Tensor]:
        """Random numbers, one for each element."""
        runs = [(row, 0, math.prod(stack.extents)) for stack in self._chunks[k] for row in stack.rows]
        return self._split(given.drawn(self._program.draws[at], runs), k, (True,) * self._grid.rank)

    def _split(self, joined: Tensor, k: int, spans: Sequence[bool]) -> list[Tensor]:
        """Rows one behind the other, as stacks."""
        shapes = [stack.shape(spans) for stack in self._chunks[k]]
        parts = torch.split(joined, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _flats(self, at: int, column: Column) -> list[list[Tensor]]:
        """A column's rows as they lie in memory, chunk by chunk; kept as long as the column is the same one."""
        kept = self._kept.get(at)
        if kept is not None and kept[0] is column:
            return kept[1]
        rows = [flat(t.detach(), 0, t.numel()) for t in column.tensors]
        cut = [[rows[row] for stack in chunk for row in stack.rows] for chunk in self._chunks]
        if column.stays:
            self._kept[at] = (column, cut)
        return cut

    def _by_row(self, found: list[Tensor]) -> Tensor:
        """What was reduced, in the order of the rows; of a row without elements it is 0."""
        out = torch.zeros(len(self._grid.extents), dtype=torch.float64, device=self.device)
        if not found:
            return out
        rows = [row for chunk in self._chunks for stack in chunk for row in stack.rows]
        return out.index_copy_(0, sent(rows, self.device, torch.int64), torch.cat(found))


def _stacked(value: Any, chunk: Sequence[Stack], wide: torch.dtype, device: torch.device) -> list[Tensor]:
    """A value as a tensor for each stack; it may be a mere number."""
    if isinstance(value, list):
        return value
    one = value if isinstance(value, Tensor) else torch.full((), value, dtype=wide, device=device)
    return [one.reshape((1,) * (1 + len(stack.extents))) for stack in chunk]


def _rows(stacks: Sequence[Tensor], chunk: Sequence[Stack], spans: Sequence[bool]) -> list[Tensor]:
    """Stacks as rows, flat, each with all elements of a column that goes along these axes."""
    shapes = [stack.shape(spans) for stack in chunk]
    whole = (t.expand(shape).reshape(shape[0], -1) for t, shape in zip(stacks, shapes, strict=True))
    return [row for rows in whole for row in rows.unbind()]


def _last_uses(program: Program) -> dict[Value, int]:
    """Which instruction is the last to read a value; none is for what is stored or reduced."""
    last: dict[Value, int] = {}
    for i, (_, operands) in enumerate(program.instructions):
        last.update(dict.fromkeys(operands, i))
    return {**last, **dict.fromkeys(program.results(), len(program.instructions))}


def _units(program: Program, grid: Grid, last: dict[Value, int]) -> int:
    """How many values of all elements live at once, at most, beside what one call makes of its own."""
    live: set[Value] = set()
    most = 0
    for i, (_, operands) in enumerate(program.instructions):
        live.update(o for o in operands if o[0] in ("draw", "value") or (o[0] == "load" and all(grid.spans[o[1]])))
        live.add(("value", i))
        most = max(most, len(live))
        live = {v for v in live if last.get(v, i) > i}
    results = len({*program.results(), *live}) + len(program.stores) + 3 * bool(program.along or program.reduce)
    return max(most, results) + 2 + DRAWING * bool(program.draws)


def _chunked(extents: Sequence[tuple[int, ...]], units: int, itemsize: int, empty: bool) -> list[list[Stack]]:
    """Rows in stacks of equal axes, and those in as few chunks as `units` values at once allow; `empty` ones if asked.

    A row is never cut, for what is reduced lies along all of an axis.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, axes in enumerate(extents):
        if empty or all(axes):
            alike.setdefault(axes, []).append(row)
    sizes = [math.prod(axes) for axes in extents]
    return list(_filled(alike, most_at_once(sum(sizes), units, itemsize)))


def _filled(alike: dict[tuple[int, ...], list[int]], each: int) -> Iterator[list[Stack]]:
    """Chunks of at most so many elements, or of one row."""
    chunk: list[Stack] = []
    room = each
    for axes, rows in alike.items():
        size = math.prod(axes)
        for row in rows:
            if size > room and chunk:
                yield chunk
                chunk, room = [], each
            if not chunk or chunk[-1].extents != axes:
                chunk.append(Stack(axes))
            chunk[-1].rows.append(row)
            room -= size
    if chunk:
        yield chunk


def _elements(chunk: Sequence[Stack]) -> int:
    return sum(len(stack.rows) * math.prod(stack.extents) for stack in chunk)
