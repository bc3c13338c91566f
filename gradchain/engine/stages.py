"""Which passes of a step run tensor by tensor, so that what one has read is in the cache for the next.

A step that is run again is a program of numbers, with passes of kernels between them. Where passes hang together only
by numbers of each parameter, and nothing but the last of them is wanted by anyone, they are one job of stages: a trust
ratio's norms and the update they scale, a factored second moment and the clip of its root mean square. What the host
has to know before anything is written is no stage: a norm of all gradients, a gate, a number that a link records.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from gradchain.core.scalars import Scalars
from gradchain.engine.executors.build import NoKernel
from gradchain.engine.executors.native import PARALLEL, NativeRunner
from gradchain.engine.executors.native_staged import ARITHMETIC, Numbers, Room, StagedRunner, elements_of
from gradchain.engine.keeping import Stages, with_kept_values
from gradchain.engine.planning.lower import Value
from gradchain.engine.planning.plan import Part
from gradchain.engine.recording.host import HostLedger, Op
from gradchain.engine.replay_data import Call, computed_later

SHARE = 2  # a parameter is one thread's: all of them together must be this many times as much for each thread

_PLAIN = (float, int, bool)


class _Unstaged(Exception):  # noqa: N818  # not an error: the passes run one after the other
    """Why passes are no stages."""


class _Ready(NamedTuple):
    runner: StagedRunner


class Staged(NamedTuple):
    """Calls that are one job; to whoever runs a step again it is one of them.

    Attributes:
        part: what has the runner.
        calls: its stages, in order; those that get numbers of the job have no entries of their own.
        rows: of those, their numbers per row; and the cells of the ones that are known before, by where they lie.
        scalars, entries: the cells of the numbers that the job computes with.
        names: the parameters.
    """

    part: _Ready
    calls: list[Call]
    rows: list[tuple[array[float], list[tuple[int, int]]] | None]
    scalars: list[int]
    entries: list[int]
    names: tuple[str, ...]

    @property
    def reads(self) -> list[int]:
        """The cells it reads."""
        known = [cell for rows in self.rows if rows is not None for _, cell in rows[1]]
        return [*(cell for call in self.calls for cell in call.reads), *known, *self.scalars, *self.entries]

    def arguments(self, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """What it runs on: the arguments of each stage, numbers, and numbers per parameter."""
        stages = []
        for call, own in zip(self.calls, self.rows, strict=True):
            columns, scalars, entries = call.arguments(values)
            stages.append((columns, scalars, entries if own is None else _known(own, call.part.names, values)))
        each = [_listed(values[cell], self.names) for cell in self.entries]
        per_row = each[0] if len(each) == 1 else [number for row in zip(*each, strict=True) for number in row]
        return stages, [values[cell] for cell in self.scalars], per_row


def _known(own: tuple[array[float], list[tuple[int, int]]], names: Sequence[str], values: list[Any]) -> array[float]:
    """Numbers per row with those put in that are known before."""
    rows, known = own
    width = len(rows) // len(names)
    for at, cell in known:
        rows[at::width] = array("d", values[cell].listed(names))
    return rows


def _listed(scalars: Scalars, names: Sequence[str]) -> list[Any]:
    """The numbers of parameters; 0 for one that has none, whose stages do not read it."""
    return [scalars[name] if name in scalars else 0.0 for name in names]


def in_stages(
    ledger: HostLedger, wanted: Iterable[int], calls: list[Call], parts: list[Part]
) -> tuple[list[Op], list[Any], list[Part]]:
    """The lines, the calls and the parts of a step that is run again, with stages where that can be.

    Args:
        ledger: its numbers.
        wanted: the cells of what it leaves.
        calls: what it writes.
        parts: all that it runs.
    """
    ops = ledger.ops
    taken = _taken(ops, wanted, calls)
    try:
        job, inside, told = _job(ledger, taken, calls, parts)
    except (_Unstaged, NoKernel):
        return ops, calls, parts
    fills = {id(op) for op in taken if op.what[0] == "fills"}
    ops = [computed_later(op) if id(op) in fills else op for op in ops]
    return ops, [*(call for call in calls if not any(call is one for one in inside)), job], told


def _taken(ops: list[Op], wanted: Iterable[int], calls: list[Call]) -> list[Op]:
    """The lines that nobody but a stage needs the result of, in order."""
    held = {*wanted, *(cell for call in calls if not _native(call) for cell in call.reads)}
    needed = held | {cell for call in calls for cell in call.reads}
    late = _late(ops)
    taken: list[Op] = []
    for op in reversed(ops):
        if op.out >= 0 and op.out not in needed:
            continue
        needed.update(op.reads)
        if op.out in late and op.out not in held:
            taken.append(op)
        elif op.what != ("alias",) or op.out in held:
            held.update(op.reads)
    return taken[::-1]


def _late(ops: list[Op]) -> set[int]:
    """The cells of what passes give, and of numbers made of that."""
    late = set[int]()
    for op in ops:
        word = op.what[0] if op.what else ""
        passes = word in ("reduces", "fills") and all(map(_native, op.what[1]))
        made = (word in ARITHMETIC or word in ("neg", "norms")) and any(cell in late for cell in op.reads)
        if passes or made:
            late.add(op.out)
    return late


def _native(call: Call) -> bool:
    return type(call.part.runner) is NativeRunner


def _job(
    ledger: HostLedger, taken: list[Op], calls: list[Call], parts: list[Part]
) -> tuple[Staged, list[Call], list[Part]]:
    """The job of what was taken and of the calls that stand on it; those calls, and what the step is told to run.

    Raises: _Unstaged where it cannot be.
    """
    passes = [op for op in taken if op.what[0] in ("reduces", "fills")]
    if not passes:
        raise _Unstaged("every pass is wanted by the host")
    last = _standing(ledger.ops, taken, calls)
    names = tuple(dict.fromkeys(name for call in last for name in call.part.names))
    before = [call for op in passes for call in op.what[1]]
    if len({id(call.part.runner) for call in (*before, *last)}) < len(before) + len(last):
        raise _Unstaged("one kernel runs twice")
    stages = with_kept_values(ledger, {op.out for op in taken}, before, last)
    runners: list[Any] = [call.part.runner for call in stages.calls]
    _check_balance(elements_of(runners, stages.rows, names))
    between = _Between(ledger, taken, stages)
    own = [between.rows(stage, call) for stage, call in enumerate(stages.calls)]
    widths = [len(call.entries) for call in stages.calls]
    scalars, entries = between.scalars, between.entries
    room = Room(stages.places, stages.size)
    runner = StagedRunner(runners, stages.rows, widths, names, between.numbers, len(scalars), len(entries), room)
    bare = [
        c if mine is None else dataclasses.replace(c, entries=[]) for c, mine in zip(stages.calls, own, strict=True)
    ]
    return Staged(_Ready(runner), bare, own, scalars, entries, names), last, stages.told(parts, [*before, *last])


def _standing(ops: list[Op], taken: list[Op], calls: list[Call]) -> list[Call]:
    """The calls that read what was taken, and those over the same parameters, which a stage may not race with."""
    inside = {op.out for op in taken}
    for op in ops:
        if op.what == ("alias",) and op.reads[0] in inside:
            inside.add(op.out)
    names: set[str] = set()
    last = [call for call in calls if not inside.isdisjoint(call.reads)]
    while len(names) < len(names := names.union(*(call.part.names for call in last))):
        last = [call for call in calls if not names.isdisjoint(call.part.names)]
    if not all(map(_native, last)):
        raise _Unstaged("another executor writes the same parameters")
    return last


def _check_balance(elements: Sequence[int]) -> None:
    """_Unstaged where threads would wait for the one that has the largest parameter."""
    threads, everything = torch.get_num_threads(), sum(elements)
    if threads > 1 and everything >= PARALLEL and max(elements) * threads * SHARE > everything:
        raise _Unstaged("one parameter is too much of all that there is for one thread")


class _Between:
    """The numbers between stages.

    Attributes:
        numbers: what is computed.
        scalars, entries: the cells of what the host gives.
    """

    def __init__(self, ledger: HostLedger, taken: list[Op], stages: Stages) -> None:
        self.numbers, self.scalars, self.entries = Numbers(), list[int](), list[int]()
        self._ledger = ledger
        self._made: dict[int, Value] = {}
        for op in taken:
            word = op.what[0]
            if word == "reduces":
                of = [stage for stage in stages.at(op.what[1]) if stages.calls[stage].part.program.reduce]
                kind = op.what[1][0].part.program.reduce[0]
                self.numbers.reduced.append((kind, of))
                self._made[op.out] = ("reduced", len(self.numbers.reduced) - 1)
            elif word == "norms":
                rows, scale = map(self._value, op.reads)
                rows = self._line("root", rows) if op.what[1] == 2 else rows
                self._made[op.out] = self._line("mul", scale, rows)
            elif word != "fills":
                self._made[op.out] = self._line(word, *map(self._value, op.reads))

    def _line(self, op: str, *operands: Value) -> Value:
        self.numbers.lines.append((op, operands))
        return ("number", len(self.numbers.lines) - 1)

    def _value(self, cell: int) -> Value:
        """What is in a cell: a number of the job, or one that the host gives it."""
        if cell in self._made:
            return self._made[cell]
        value = self._ledger.values[cell]
        if isinstance(value, Scalars):
            if value.column is None and not all(type(v) in _PLAIN for v in value.values()):
                raise _Unstaged("a number per parameter is a tensor")
            return ("entry", _slot(self.entries, cell))
        if type(value) not in _PLAIN:
            raise _Unstaged("a number is a tensor")
        return ("scalar", _slot(self.scalars, cell))

    def rows(self, stage: int, call: Call) -> tuple[array[float], list[tuple[int, int]]] | None:
        """The numbers per row of a stage that gets some of them; None for one that has them all before."""
        known = [(at, cell) for at, cell in enumerate(call.entries) if cell not in self._made]
        if len(known) == len(call.entries):
            return None
        self.numbers.put[stage] = [(at, self._made[c]) for at, c in enumerate(call.entries) if c in self._made]
        return array("d", bytes(8 * len(call.entries) * len(call.part.names))), known


def _slot(cells: list[int], cell: int) -> int:
    if cell not in cells:
        cells.append(cell)
    return cells.index(cell)
