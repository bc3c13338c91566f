"""The default on CUDA: programs by torch._foreach over whole classes of parameters, in place, with bounded scratch.

How many calls a step makes does not depend on how many parameters there are, nor does the host wait for any of them:
a reduction leaves its numbers on the device. On the CPU it does the very same, and stands in for it in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.operations import OPERATIONS
from gradchain.core.sending import sent
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.chunks import Chunk, Cuts, Kept, chunked
from gradchain.engine.executors.foreach_grids import GridRunner
from gradchain.engine.executors.given import Given
from gradchain.engine.executors.lists import ListRunner, Script, born, countable, of_lists
from gradchain.engine.executors.schedule import Buffer, Call, Schedule, scheduled
from gradchain.engine.operations import REDUCTIONS, TYPES
from gradchain.engine.planning.lower import Drawn, Program, Value
from gradchain.engine.planning.rows import Column


class Foreach:
    """Programs run an operation at a time over all rows of a class, on one device."""

    name = "foreach"
    grids = True

    def __init__(self, device: torch.device | str) -> None:
        self.device = self.numbers_on = torch.device(device)

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why this program cannot run by calls over lists, or None."""
        unknown = [d for d in dtypes if d not in TYPES]
        if unknown:
            return f"no kernels over lists for {unknown[0]}"
        strange = [op for op, _ in (*program.instructions, *program.numbers) if op not in OPERATIONS]
        return f"no kernel of torch for the operation {strange[0]!r}" if strange else None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> ListRunner:
        """The program made ready for rows of these sizes."""
        refused = self.legal(program, dtypes)
        if refused is not None:
            raise NoKernel(refused)
        if program.grid is not None:
            return GridRunner(program, dtypes, self.device)
        return ForeachRunner(program, dtypes, sizes, self.device)


class _Plan(NamedTuple):
    """What numbers of these kinds make of a program: its calls, its chunks, and the slots of each chunk."""

    schedule: Schedule
    chunks: list[Chunk]
    kept: Kept | None
    slots: list[list[tuple[list[Tensor], list[Tensor]]]]  # by chunk: rows, and the flat stretch they lie over


class ForeachRunner(ListRunner):
    """One program over rows of fixed sizes."""

    def __init__(
        self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int], device: torch.device
    ) -> None:
        self._program = countable(program)
        self._dtypes, self._sizes, self.device = dtypes, sizes, device
        self._wide = torch.float64 if torch.float64 in dtypes else torch.float32
        self._plans: dict[Any, _Plan] = {}
        self._cuts = Cuts()
        self.scratch = None  # it depends on where numbers lie

    def _script(self, columns: Sequence[Column], scalars: Sequence[Any], entries: Sequence[Any]) -> Script:
        given = Given(self._program, scalars, entries, self.device, self._wide)
        plan = self._planned(given, columns)
        calls = [self._calls(plan, k, columns, given)[0] for k in range(len(plan.chunks))]
        about = ([plan.kept.take], [plan.kept.give_back]) if plan.kept else ([], [])
        first = next((i for i, call in enumerate(plan.schedule.calls) if call.into.kind == "column"), 0)
        return Script([*about[0], *chain.from_iterable(calls), *about[1]], len(about[0]) + first, plan.kept)

    def _planned(self, given: Given, columns: Sequence[Column]) -> _Plan:
        """What numbers of these kinds make of the program, once."""
        key = tuple(given.kinds.values())
        if key not in self._plans:
            schedule = scheduled(self._program, self._dtypes, self._wide, given.kinds)
            beside = 1 if self._program.reduce and self._program.reduce[0] == "sum" else 0
            chunks = chunked(self._sizes, schedule.units + beside, self._wide.itemsize)
            longest = max((chunk.stretch for chunk in chunks), default=0)
            kept = Kept(schedule.slots * longest, self._wide, self.device) if schedule.slots and chunks else None
            like = columns[0].tensors if columns else None
            slots = [[self._slot(chunk, kept, k * longest, like) for k in range(schedule.slots)] for chunk in chunks]
            self._plans[key] = _Plan(schedule, chunks, kept, slots)
            self.scratch = (schedule.units + beside) * longest * self._wide.itemsize
        return self._plans[key]

    @staticmethod
    def _slot(
        chunk: Chunk, kept: Kept | None, offset: int, like: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        assert kept is not None
        stretch = kept.memory.as_strided((chunk.stretch,), (1,), offset)
        return chunk.laid(kept.memory, offset, like), [stretch]

    def _calls(
        self, plan: _Plan, k: int, columns: Sequence[Column], given: Given
    ) -> tuple[list[Callable[[], object]], Callable[[Buffer], list[Tensor]]]:
        """The calls over one chunk, to be made in order, and where they leave what lies in a buffer."""
        cut = [self._cuts.of(i, column, plan.chunks)[k] for i, column in enumerate(columns)]
        made: dict[Buffer, list[Tensor]] = {}

        def rows(buffer: Buffer) -> list[Tensor]:
            if buffer.kind == "column":
                return cut[buffer.at]
            return plan.slots[k][buffer.at][0] if buffer.kind == "slot" else made.setdefault(buffer, [])

        def stretch(buffer: Buffer) -> list[Tensor]:
            return plan.slots[k][buffer.at][1] if buffer.kind == "slot" else made.setdefault(buffer, [])

        chunk = _Chunk(plan.chunks[k], rows, stretch, given, self._wide, self.device, self._program.draws)
        return [chunk.bound(call) for call in plan.schedule.calls], rows

    # reductions

    def _reduced(self, columns: Sequence[Column], given: Given) -> Tensor:
        """One float64 per row."""
        assert self._program.reduce is not None
        kind, plan = self._program.reduce[0], self._planned(given, columns)
        partial_results: list[Tensor] = []
        with nullcontext() if plan.kept is None else plan.kept:
            for k in range(len(plan.chunks)):
                calls, rows = self._calls(plan, k, columns, given)
                for call in calls:
                    call()
                assert plan.schedule.result is not None
                partial_results.append(of_lists(kind, rows(plan.schedule.result)))
                del calls, rows
        return self._of_rows(kind, plan.chunks, partial_results)

    def _of_rows(self, kind: str, chunks: Sequence[Chunk], found: list[Tensor]) -> Tensor:
        """What the pieces gave, met row by row; of a row without elements it is 0."""
        pieces = [piece for chunk in chunks for piece in chunk.pieces]
        if len(found) == 1 and len(pieces) == len(self._sizes):
            return found[0]
        out = torch.zeros(len(self._sizes), dtype=torch.float64, device=self.device)
        if not found:
            return out
        where = sent([row for row, _, _ in pieces], self.device, torch.int64)
        met = "amax" if REDUCTIONS[kind].meet.torch == "amax" else "sum"
        return out.scatter_reduce_(0, where, torch.cat(found), met)


class _Chunk(NamedTuple):
    """What calls over one chunk read and write."""

    chunk: Chunk
    rows: Callable[[Buffer], list[Tensor]]
    stretch: Callable[[Buffer], list[Tensor]]
    given: Given
    wide: torch.dtype
    device: torch.device
    draws: Sequence[Drawn]

    def bound(self, call: Call) -> Callable[[], object]:
        """A call with its arguments. One that writes what is read again is C alone; see Script."""
        how, into = call.how, call.into
        if how == "over":
            return partial(_torch.foreach(f"{call.what}_"), self.rows(into), *self._lists(call), **self._factor(call))
        if how == "born":
            kernel = partial(_torch.foreach(call.what), **self._factor(call))
            return born(self.rows(into), kernel, self._lists(call))
        if how == "copy":
            return partial(_torch.foreach("copy_"), self.rows(into), *self._lists(call))
        if how == "drop":
            return partial(self.rows(into).clear)
        if how == "fill":
            number = self._listed(call.given[0]) if call.given else 0.0
            (stretch,) = self.stretch(into)
            return partial(stretch.copy_, number) if isinstance(number, Tensor) else partial(stretch.fill_, number)
        if how == "settle":
            assert isinstance(call.given[0], Buffer)
            return partial(_settle, self.stretch(into)[0], self.stretch(call.given[0]))
        if how == "spread":
            assert not isinstance(call.given[0], Buffer)
            return partial(_spread, self.stretch(into), self.chunk, self.given.per_row(call.given[0]))
        if how == "draw":
            assert not isinstance(call.given[0], Buffer)
            pieces = zip(self.chunk.pieces, self.chunk.padded, strict=True)
            runs = [(row, start, padded) for (row, start, _), padded in pieces]
            draw = partial(self.given.drawn, self.draws[call.given[0][1]], runs)
            return partial(_drawn, self.stretch(into), draw)
        operands = [self.stretch(g) if isinstance(g, Buffer) else self._number(call.what, g) for g in call.given]
        return partial(_computed, self.stretch(into), call.what, operands, self.wide)

    def _lists(self, call: Call) -> list[Any]:
        return [self.rows(g) if isinstance(g, Buffer) else self._listed(g) for g in call.given]

    def _listed(self, value: Any) -> Any:
        number = self.given.fitted(value)
        return [number[row] for row, _, _ in self.chunk.pieces] if isinstance(number, list) else number

    def _number(self, op: str, value: Value) -> Any:
        number = self.given.fitted(value)
        if op != "where" or isinstance(number, (Tensor, bool)):
            return number
        return torch.full((), number, dtype=self.wide, device=self.device)  # numbers alone say no dtype

    def _factor(self, call: Call) -> dict[str, float]:
        if call.by is None:
            return {}
        factor, sign = call.by
        return {"alpha": sign if factor is None else sign * self.given[factor]}


def _computed(into: list[Tensor], op: str, operands: Sequence[Any], wide: torch.dtype) -> None:
    """An operation over flat stretches, by its truth."""
    operation = OPERATIONS[op]
    given = [o[0] if isinstance(o, list) else o for o in operands]
    into[:] = [operation.truth(*given, *([wide] if operation.typed else []))]


def _settle(slot: Tensor, stretch: list[Tensor]) -> None:
    slot.copy_(stretch[0])


def _spread(into: list[Tensor], chunk: Chunk, numbers: Tensor) -> None:
    into[:] = [chunk.spread(numbers)]


def _drawn(into: list[Tensor], draw: Callable[[], Tensor]) -> None:
    into[:] = [draw()]
