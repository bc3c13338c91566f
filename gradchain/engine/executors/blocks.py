"""The executor that is always there: torch._foreach over cache-sized pieces, with bounded scratch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.along import reduced
from gradchain.core.operations import OPERATIONS
from gradchain.core.random import drawn_rows
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import CHUNK, folded
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Drawn, Program, Value
from gradchain.engine.planning.rows import Column

BUCKET = 1 << 17  # elements that are worked on at once: a few of them fit into the cache


class Blocks:
    """Programs run an operation at a time over buckets of pieces."""

    name = "blocks"
    grids = True
    numbers_on = None

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Every program that torch can compute."""
        return None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> BlocksRunner:
        """The program, with the rows cut into pieces and the pieces put into buckets."""
        return BlocksRunner(program, dtypes, sizes)


class BlocksRunner:
    """One program over rows of fixed sizes."""

    source = None

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> None:
        self._program = program
        self._wide = torch.float64 if torch.float64 in dtypes else torch.float32
        self._rows = len(sizes)
        self._extents = [(size,) for size in sizes] if program.grid is None else program.grid.extents
        depth = [math.prod(extents[1:]) for extents in self._extents]
        most = REDUCTIONS[program.reduce[0]].most if program.reduce else CHUNK
        pieces = [
            (row, start, min(step, extents[0] - start))
            for row, extents in enumerate(self._extents)
            for step in [max(most // max(depth[row], 1), 1)]
            for start in range(0, extents[0], step)
        ]
        if program.along:  # of nothing there is a result too
            pieces = [(row, 0, extents[0]) for row, extents in enumerate(self._extents)]
        self._row_of = [row for row, _, _ in pieces]
        self.buckets = _bucketed(pieces, depth)
        self._views: dict[int, tuple[Column, list[list[Tensor]]]] = {}
        # a copy of what is narrower than the compute dtype, every result, and a temporary beside it
        held = sum(d != self._wide for d in dtypes) + len(program.instructions) + len(program.stores) + 2
        largest = max((sum(size * depth[row] for row, _, size in bucket) for bucket in self.buckets), default=0)
        self.scratch = held * largest * self._wide.itemsize

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> list[float] | None:
        """Run over all buckets; see Runner."""
        buckets = _Buckets(self, columns, scalars, entries)
        if self._program.along:
            self._along(buckets)
            return None
        if self._program.reduce is None:
            buckets()
            return None
        kind, operand = self._program.reduce
        found: list[float] = []
        for k in range(len(self.buckets)):
            found += [REDUCTIONS[kind].truth(v).item() for v in _pick(operand, self.computed(k, buckets))]
        return folded(kind, self._row_of, found, self._rows)

    def _along(self, buckets: _Buckets) -> None:
        """Reduce along axes into columns, bucket by bucket."""
        assert self._program.grid is not None
        for k in range(len(self.buckets)):
            held = self.computed(k, buckets)
            for kind, operand, column in self._program.along:
                dims = [d for d, along in enumerate(self._program.grid.spans[column]) if not along]
                for view, value in zip(buckets.views[column][k], _pick(operand, held), strict=True):
                    # what a reduction is along is of size 1 in memory: one place of the view, which has all as one
                    kept = view[tuple(slice(0, 1) if d in dims else slice(None) for d in range(view.ndim))]
                    kept.copy_(reduced(kind, value.double(), dims))

    def write(
        self, commit: Commit, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        """Have a commit write bucket by bucket; see Runner."""
        commit.add(_Buckets(self, columns, scalars, entries))

    def stored(self, k: int, given: _Buckets) -> list[tuple[list[Tensor], list[Tensor]]]:
        """What is to be written over a bucket: where, and what."""
        held = self.computed(k, given)
        # what is stored as it was loaded is copied first: another store may write over it
        stored = [
            (given.views[column][k], _pick(operand, held), operand[0] == "load")
            for column, operand in self._program.stores
        ]
        return [(p, [v.clone() for v in r] if raw else _as_list(r, p)) for p, r, raw in stored]

    def computed(self, k: int, given: _Buckets) -> dict[str, Any]:
        """Every value of the program over a bucket."""
        bucket, width = self.buckets[k], len(self._program.entries)
        loads = self._program.loads()
        loaded = [[v.to(self._wide) for v in view[k]] if i in loads else [] for i, view in enumerate(given.views)]
        per_row = [[given.entries[row * width + i] for row, _, _ in bucket] for i in range(width)]
        held = {"load": loaded, "scalar": given.scalars, "entry": per_row, "zero": self._zeros(bucket)}
        held["draw"] = [self._drawn(draw, bucket, held) for draw in self._program.draws]
        self._compute(held, len(bucket))
        return held

    def _drawn(self, draw: Drawn, bucket: list[tuple[int, int, int]], held: dict[str, Any]) -> list[Tensor]:
        """Random numbers for a bucket's pieces."""
        x, y, step, first = (_per_piece(operand, held, len(bucket)) for operand in draw.operands)
        shapes = [(size, *self._extents[row][1:]) for row, _, size in bucket]
        runs = [
            (int(first[i]) + start * math.prod(shape[1:]), math.prod(shape))
            for i, ((_, start, _), shape) in enumerate(zip(bucket, shapes, strict=True))
        ]
        keys = [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
        dtype = torch.float64 if draw.wide else torch.float32
        numbers = drawn_rows(draw.kind, keys, step[0], draw.stream, runs, dtype, "cpu").to(self._wide)
        parts = torch.split(numbers, [many for _, many in runs])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def cut(self, i: int, column: Column) -> list[list[Tensor]]:
        """A column's pieces, by bucket; kept as long as the column is the same one."""
        kept = self._views.get(i)
        if kept is not None and kept[0] is column:
            return kept[1]
        grid = self._program.grid
        spans = (True,) if grid is None else grid.spans[i]
        whole = [_over(t.detach(), extents, spans) for t, extents in zip(column.tensors, self._extents, strict=True)]
        cut = [[whole[row][start : start + size] for row, start, size in bucket] for bucket in self.buckets]
        if column.stays:
            self._views[i] = (column, cut)
        return cut

    def _compute(self, held: dict[str, Any], size: int) -> None:
        """Every instruction, over one bucket; its results are `held["value"]`."""
        values = held["value"] = []
        for op, operands in self._program.instructions:
            given = [_pick(o, held) for o in operands] + ([self._wide] if OPERATIONS[op].typed else [])
            if op == "where" and not any(isinstance(c, list) and isinstance(c[0], Tensor) for c in given[1:]):
                given[1] = _as_list(
                    given[1], [torch.empty((), dtype=self._wide, device="cpu")] * size
                )  # numbers say no dtype
            values.append(_torch.pointwise(op, given, size))

    def _zeros(self, bucket: list[tuple[int, int, int]]) -> list[Tensor]:
        """Zeros like the bucket's pieces, for a program that asks for them."""
        return (
            [torch.zeros(size, *self._extents[row][1:], dtype=self._wide, device="cpu") for row, _, size in bucket]
            if self._program.has_zeros()
            else []
        )


class _Buckets:
    """A program over its columns, written bucket by bucket.

    Where it stands is one value: the bucket that comes next, and what is to be written over it, once that is computed.
    Nothing is computed from what may be written over already.
    """

    def __init__(
        self, runner: BlocksRunner, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        self._runner, self.scalars, self.entries = runner, scalars, entries
        self.views = [runner.cut(i, column) for i, column in enumerate(columns)]
        self._now: tuple[int, list[tuple[list[Tensor], list[Tensor]]] | None] = (0, None)

    @property
    def begun(self) -> bool:
        """Whether a bucket may be written."""
        return self._now != (0, None)

    def __call__(self) -> None:
        """Write the buckets that are left."""
        while self._now[0] < len(self._runner.buckets):
            k, ready = self._now
            if ready is None:
                ready = self._runner.stored(k, self)
                self._now = (k, ready)
            for places, results in ready:
                _torch.copy_(places, results)
            self._now = (k + 1, None)


def _pick(operand: Value, held: dict[str, Any]) -> Any:
    kind = operand[0]
    return held[kind] if kind == "zero" else held[kind][operand[1]]


def _per_piece(operand: Value, held: dict[str, Any], size: int) -> Any:
    """A number, piece by piece."""
    number = _pick(operand, held)
    return number if isinstance(number, list) else [number] * size


def _as_list(results: Any, places: list[Tensor]) -> list[Tensor]:
    """What is stored, one tensor per place; a program may store a mere number."""
    if isinstance(results, list) and isinstance(results[0], Tensor):
        return results
    numbers = results if isinstance(results, list) else [results] * len(places)
    return [torch.full_like(place, number) for place, number in zip(places, numbers, strict=True)]


def _over(tensor: Tensor, extents: tuple[int, ...], spans: tuple[bool, ...]) -> Tensor:
    """A tensor that fills one stretch of memory, over axes: expanded along those that it does not go along."""
    strides, step = [], 1
    for extent, along in zip(reversed(extents), reversed(spans), strict=True):
        strides.append(step if along else 0)
        step *= extent if along else 1
    return tensor.as_strided(extents, strides[::-1])


def _bucketed(pieces: list[tuple[int, int, int]], depth: list[int]) -> list[list[tuple[int, int, int]]]:
    """Pieces in order, in groups of at most about BUCKET elements, of which a piece has so many times its row's."""
    buckets: list[list[tuple[int, int, int]]] = []
    room = 0
    for piece in pieces:
        elements = piece[2] * depth[piece[0]]
        if elements > room or not buckets:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(piece)
        room -= elements
    return buckets
