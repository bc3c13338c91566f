"""Numbers of the host, in a step that is to be run again: their values are known, and so is how they came about.

A recording costs the links' own Python at every step. What it leaves is a tape, which is the same at the next step, and
numbers, which are not: they follow from clocks, schedules, counts and norms. This ledger is the program of those
numbers. Whatever leaves it (a truth, a float, a key of a dict) is a guard: the program holds for steps in which that
comes out the same. So a number is in the program, or cannot be another one where all guards pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import ANY, BESIDE, HOST, Count, Scalars
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import Unrecorded
from gradchain.engine.recording.numbers import Each, Ledger, Number

_PLAIN = frozenset({float, int, bool})
_PYTHON = {**HOST, **BESIDE, "div": operator.truediv}  # what a link's own code does with plain numbers


class GuardFailed(Exception):  # noqa: N818  # not an error: this step is another than the recorded one
    """Something came out otherwise than in the recorded step."""


class Op(NamedTuple):
    """One line of the program.

    Attributes:
        fn: of the values it reads, one or two; of the list of all values, where `whole`.
        reads: their cells.
        out: the cell of the result, or -1 for a guard, which raises `GuardFailed`.
        whole: whether `fn` takes the list.
        reduces: whether it passes over gradients, or meets other ranks, and is put off.
        refuses: whether it may raise `GuardFailed` too, or runs a function of the user's, and must not run in vain.
        what: what it does, in words that kernels know, where it is no more than that: see `engine.stages`.
    """

    fn: Callable[..., Any]
    reads: tuple[int, ...]
    out: int
    whole: bool = False
    reduces: bool = False
    refuses: bool = False
    what: tuple[Any, ...] = ()


class HostLedger(Ledger):
    """The program of the numbers of one step.

    Attributes:
        values: what is in each cell: constants, what is given anew at each step, and what this step computed.
        ops: what is computed, in order.
        inputs: the cells that are filled anew at each step.
        step: the cell of the facts of a step.
        scalars, entries: the tape's numbers, and numbers per parameter, by cell of the tape.
        sources, entry_sources: cell of the tape → cell here.
        met: the cell of what ranks met for last; -1 where they did not.
        broken: why the step cannot be run again from its numbers; "" if it can.
    """

    def __init__(self, scalars: list[Any], entries: list[Any], step: Step) -> None:
        self.values: list[Any] = []
        self.ops: list[Op] = []
        self.inputs: list[int] = []
        self.scalars, self.entries = scalars, entries
        self.sources: dict[int, int] = {}
        self.entry_sources: dict[int, int] = {}
        self.met = -1
        self.broken = ""
        self._guarded: set[tuple[int, bool]] = set()
        self._tensors: dict[int, int] = {}  # where Tensors in memory are, by identity
        self._shared: dict[Any, int] = {}
        self.step = self.input(step)

    def forget(self) -> None:
        """The recording is done: let go of what it saw."""
        self._tensors, self._shared, self._guarded = {}, {}, set()

    # cells

    def input(self, value: Any) -> int:
        """The cell of something that is given anew at each step."""
        self.values.append(value)
        self.inputs.append(len(self.values) - 1)
        if isinstance(value, EagerTensors):
            self._tensors[id(value)] = len(self.values) - 1
        return len(self.values) - 1

    def cell(self, value: Any) -> int:
        """Where a value is: that of a number, or of Tensors that are known; a new one for a constant."""
        if isinstance(value, (Number, Each)):
            if value.ledger is not self:
                raise TypeError("a number of another step was kept")
            at: int = value.at
            return at
        if isinstance(value, EagerTensors) and id(value) in self._tensors:
            return self._tensors[id(value)]
        if isinstance(value, Scalars) and value.column is None and any(isinstance(v, Number) for v in value.values()):
            return self._joined(value)
        self.values.append(value)
        return len(self.values) - 1

    def _joined(self, scalars: Scalars) -> int:
        """Numbers per parameter that a link put together of numbers."""
        cells: dict[int, int] = {}
        at = {name: cells.setdefault(id(v), self.cell(v)) for name, v in scalars.items()}
        return self.note(partial(_joined, at), tuple(cells.values()), _joined(at, self.values))

    def handle(self, cell: int) -> Any:
        """What is in a cell, as links compute with it."""
        value = self.values[cell]
        return Each(self, cell, tuple(value)) if isinstance(value, Scalars) else Number(self, cell)

    def plain(self, value: Any) -> Any:
        """A number, or numbers per parameter, without the ledger."""
        known = isinstance(value, (Number, Each)) or (type(value) is Scalars and value.column is None)
        return self.values[self.cell(value)] if known else value

    def without_ledger(self, value: Any) -> Any:
        """A number, a count, or numbers per parameter, as they are now."""
        if isinstance(value, Count):
            return Count(value.names, self.plain(value.value))
        return self.plain(value)

    def note(self, fn: Callable[[list[Any]], Any], reads: tuple[int, ...], value: Any, **how: Any) -> int:
        """One more line, of which the result is known. Where it is."""
        self.values.append(value)
        self.ops.append(Op(fn, reads, len(self.values) - 1, True, **how))
        return len(self.values) - 1

    def add(self, fn: Callable[..., Any], *args: Any, refuses: bool = False, what: tuple[Any, ...] = ()) -> int:
        """`fn` of some values, now and whenever the step is run again. Where the result is."""
        reads = tuple(map(self.cell, args))
        value = fn(*(self.values[cell] for cell in reads))
        if len(reads) not in (1, 2):
            return self.note(partial(_spread, fn, reads), reads, value, refuses=refuses, what=what)
        self.values.append(value)
        self.ops.append(Op(fn, reads, len(self.values) - 1, refuses=refuses, what=what))
        return len(self.values) - 1

    def shared(self, key: Any, fn: Callable[..., Any], *args: Any, what: tuple[Any, ...] = ()) -> int:
        """The same, once for a key."""
        if key not in self._shared:
            self._shared[key] = self.add(fn, *args, what=what)
        return self._shared[key]

    def call(self, fn: Callable[..., Any], *args: Any, what: tuple[Any, ...] = ()) -> Any:
        """`fn` of some values as a number, or as numbers per parameter."""
        return self.handle(self.add(fn, *args, what=what))

    # tensors in memory

    def has_cell(self, tensors: Tensors) -> bool:
        """Whether it is known how these come about."""
        return id(tensors) in self._tensors

    def set_cell(self, tensors: Tensors, cell: int) -> None:
        """They are what is in a cell."""
        self.values[cell] = tensors  # which keeps them alive, and with them their id
        self._tensors[id(tensors)] = cell

    def load(self, tensors: EagerTensors, fitted: EagerTensors, fit: Callable[[EagerTensors], EagerTensors]) -> None:
        """Tensors from memory came onto the tape."""
        if len(tensors) and not self.has_cell(tensors):
            self.breaks("a link made tensors of its own")
        elif len(tensors):
            kinds, cell = [(t.dtype, t.shape) for t in fitted._data], self.cell(tensors)
            self.set_cell(fitted, self.note(partial(_fitted, fit, kinds, cell), (cell,), fitted, refuses=True))

    def in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn` of tensors in memory, and of numbers: tensors in memory, made anew whenever the step is run again."""
        return self._made(self.note, fn, args)

    def met_in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The same, where ranks make them together."""
        return self._made(self._note_of_all, fn, args)

    def _made(self, note: Callable[..., int], fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        cells = tuple(map(self.cell, args))
        made = fn(*(self.values[cell] for cell in cells))
        if isinstance(made, tuple):
            several = note(partial(_spread, fn, cells), cells, made)
            for position, tensors in enumerate(made):
                if not self.has_cell(tensors):
                    self.set_cell(tensors, self.note(partial(_nth, position, several), (several,), tensors))
        elif not self.has_cell(made):
            self.set_cell(made, note(partial(_spread, fn, cells), cells, made))
        return made

    # what ranks meet for

    def meets(self, fn: Callable[..., Any], *args: Any) -> int:
        """`fn` of some values, for which ranks meet. Where the result is."""
        cells = tuple(map(self.cell, args))
        return self._note_of_all(partial(_spread, fn, cells), cells, fn(*(self.values[cell] for cell in cells)))

    def _note_of_all(self, fn: Callable[[list[Any]], Any], reads: tuple[int, ...], value: Any) -> int:
        """A line in which ranks meet: after the last such, after the guards before it, whether or not it is read.

        Another rank may record the step that this one runs again, and comes to the meetings of the links.
        """
        before = () if self.met < 0 else (self.met,)
        self.met = self.note(fn, (*reads, *before), value, reduces=True)
        return self.met

    def measure(self, fn: Callable[..., Any], tensors: EagerTensors) -> Any:
        """`fn` of tensors in memory: a number, or numbers per parameter."""
        cell = self.cell(tensors)
        return self.handle(self.note(partial(_spread, fn, (cell,)), (cell,), fn(tensors), reduces=True))

    def escapes(self, what: str) -> None:
        """A link has `what`, of which nobody knows what it makes."""
        self.breaks(f"a link reads {what}")

    # what core asks

    def number_from(self, of: Callable[..., Any], *args: Any) -> Any:
        """`of` the facts of a step and some numbers: a number, or numbers per parameter, of one kind at each step."""
        kinds: list[Any] = []
        cell = self.add(partial(_alike, of, kinds), Number(self, self.step), *args, refuses=True)
        if kinds[0] is None:
            self.breaks(f"{self.values[cell]!r} is no number")
        return self.handle(cell)

    def tensors_from(self, of: Callable[..., Tensors], *args: Any) -> Tensors:
        """`of` the facts of a step and more: Tensors in memory."""
        made: Tensors = self.in_memory(of, Number(self, self.step), *args)
        return made

    def reads(self, owner: str, what: str) -> None:
        """A link reads what the program does not hold."""
        self.breaks(f"{owner} reads {what}")

    def breaks(self, why: str) -> None:
        """Something was done that the program does not hold."""
        self.broken = self.broken or why

    # arithmetic

    def apply(self, op: str, args: Sequence[Any]) -> Any:
        """One operation on numbers."""
        args = [a.value if isinstance(a, Count) else a for a in args]
        for arg in args:
            if isinstance(arg, Tensors):
                return arg._apply(op, tuple(args))
        plain = all(type(self.plain(a)) in _PLAIN for a in args)
        return self.call((_PYTHON if plain else ANY)[op], *args, what=(op,))

    def operand(self, value: Any) -> tuple[str, int]:
        """How an operation on the tape refers to a number, or to numbers per parameter."""
        if isinstance(value, Scalars):
            cell = self.cell(value)
            self.entry_sources[len(self.entries)] = cell
            self.entries.append(self.values[cell])
            return ("e", len(self.entries) - 1)
        now = self.plain(value)
        if isinstance(now, Tensor) and (now.requires_grad or now.device.type != "cpu"):
            raise Unrecorded("a scalar lives on another device, or requires a gradient")
        cell = self.cell(value)
        if type(now) is not float:
            cell = self.shared(("float", cell), float, Number(self, cell))
        self.sources[len(self.scalars)] = cell
        self.scalars.append(self.values[cell])
        return ("s", len(self.scalars) - 1)

    def behind(self, cell: int, value: Any) -> Any:
        """The number that the tape has in a cell."""
        return Number(self, self.sources[cell]) if cell in self.sources else value

    # what leaves the ledger

    def truth(self, number: Number) -> bool:
        """Whether it holds: a guard."""
        cell, truth = number.at, bool(self.values[number.at])
        self._guard((cell, True), _still_true if truth else _still_false, cell)
        return truth

    def item(self, number: Number) -> Any:
        """The number itself: a guard."""
        cell, value = number.at, self.values[number.at]
        value = value.item() if isinstance(value, Tensor) else value
        self._guard((cell, False), partial(_still, value), cell)
        return value

    def _guard(self, key: tuple[int, bool], fn: Callable[[Any], None], cell: int) -> None:
        if key not in self._guarded:
            self._guarded.add(key)
            self.ops.append(Op(fn, (cell,), -1))

    def tensor(self, number: Number | Each) -> Tensor:
        """The value as float64: guards."""
        items = [v.item() for v in number.values()] if isinstance(number, Each) else number.item()
        return torch.tensor(items, dtype=torch.float64, device="cpu")

    def named(self, each: Each) -> dict[str, Any]:
        """Numbers per parameter, by name."""
        return {name: self.call(partial(_entry, name), each) for name in each.names}

    def alike(self, each: Each) -> bool:
        """Whether numbers per parameter are all the same: a guard."""
        return bool(self.call(Scalars.alike, each))

    def largest(self, each: Each) -> Any:
        """The largest of numbers per parameter, none of which is negative."""
        return self.call(Scalars.largest, each)


def kind_of(value: Any) -> Any:
    """What a value must be like to stand where another stood; None for what is no number."""
    if isinstance(value, (int, float)):
        return float
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.device
    if isinstance(value, Scalars):
        return Scalars, value.column[0] if value.column else tuple(value)
    return None


def _spread(fn: Callable[..., Any], cells: tuple[int, ...], values: list[Any]) -> Any:
    return fn(*(values[cell] for cell in cells))


def _nth(position: int, cell: int, values: list[Any]) -> Any:
    return values[cell][position]


def _alike(of: Callable[..., Any], kinds: list[Any], *given: Any) -> Any:
    """`of` what is given, as long as it is of the kind that it was at first."""
    value = of(*given)
    if not kinds:
        kinds.append(kind_of(value))
    elif type(value) is not kinds[0] and kind_of(value) != kinds[0]:
        raise GuardFailed
    return value


def _joined(at: dict[str, int], values: list[Any]) -> Scalars:
    return Scalars({name: values[cell] for name, cell in at.items()})


def _fitted(fit: Callable[[Any], EagerTensors], kinds: list[Any], cell: int, values: list[Any]) -> Any:
    fitted = fit(values[cell])
    if [(t.dtype, t.shape) for t in fitted._data] != kinds:
        raise GuardFailed
    return fitted


def _entry(name: str, scalars: Scalars) -> Any:
    return scalars[name]


def _still_true(value: Any) -> None:
    if not value:
        raise GuardFailed


def _still_false(value: Any) -> None:
    if value:
        raise GuardFailed


def _still(expected: Any, value: Any) -> None:
    value = value.item() if isinstance(value, Tensor) else value
    if type(value) is not type(expected) or not (value == expected or (value != value and expected != expected)):
        raise GuardFailed
