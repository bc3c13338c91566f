"""What a step needs to be run again beside its numbers: its kernels over columns, and its state in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.scalars import Count
from gradchain.core.state import Links, S, State
from gradchain.core.tensors import Tensors
from gradchain.engine.planning.plan import Part
from gradchain.engine.planning.rows import Column
from gradchain.engine.recording.host import HostLedger, kind_of
from gradchain.engine.recording.numbers import Number
from gradchain.engine.recording.tape import Tape

# kernels


@dataclass
class Call:
    """A part's program as it is run again.

    Attributes:
        part: the program made ready.
        columns: its tensors; the cell of those that are others at each step.
        scalars: the cells of its numbers.
        entries: the cells of its numbers per parameter.
        key: what it computes in one step, the same in every replay; None where that follows from the numbers of one.
    """

    part: Part
    columns: list[Column | int]
    scalars: list[int]
    entries: list[int]
    key: tuple[int, ...] | None

    @classmethod
    def of(cls, part: Part, tape: Tape, ledger: HostLedger, lent: bool, column: Callable[[int], Column]) -> Call:
        """A part of a recorded step; `column` gives that of a leaf whose tensors stay."""
        program = part.program
        anew = [_column(leaf, part, tape, ledger, lent) for leaf in program.columns]
        columns = [column(leaf) if at is None else at for leaf, at in zip(program.columns, anew, strict=True)]
        numbers = [ledger.sources[s] if s in ledger.sources else ledger.cell(tape.scalars[s]) for s in program.scalars]
        alike = not numbers and not program.entries and not any(tape.ops[i][1] == "extra" for i in program.columns)
        key = (id(part), *(0 if type(c) is int else id(c) for c in columns)) if alike else None
        return cls(part, columns, numbers, [ledger.entry_sources[s] for s in program.entries], key)

    @property
    def reads(self) -> tuple[int, ...]:
        """The cells it reads."""
        return (*(c for c in self.columns if type(c) is int), *self.scalars, *self.entries)

    def arguments(self, values: list[Any]) -> tuple[list[Column], list[Any], Sequence[Any]]:
        """What it runs on: columns, numbers, and numbers per row."""
        columns: list[Any] = [values[c] if type(c) is int else c for c in self.columns]
        entries = self.part.rows([values[i] for i in self.entries]) if self.entries else ()
        return columns, [values[i] for i in self.scalars], entries

    def run(self, values: list[Any]) -> Any:
        """Run it now."""
        return self.part.runner.run(*self.arguments(values))


def _column(leaf: int, part: Part, tape: Tape, ledger: HostLedger, lent: bool) -> int | None:
    """The cell of a leaf's column, where its tensors are others at each step."""
    tensors, kind = tape.leaves[leaf], tape.ops[leaf][1]
    if kind in ("param", "state"):
        return None
    index = tensors.index
    position = None if part.names == index.names else [index.position[n] for n in part.names]
    cell = ledger.cell(tensors)
    return ledger.shared(
        ("column", cell, part.names), partial(_rows, position, lent or kind == "extra"), ledger.handle(cell)
    )


def _rows(position: list[int] | None, lent: bool, tensors: EagerTensors) -> Column:
    data = tensors._data
    return Column(data if position is None else [data[i] for i in position], lent)


def replayed_reduction(
    ledger: HostLedger, memo: int, calls: list[Call], places: list[list[int] | None], size: int, rows: list[float]
) -> Number:
    """The numbers that a reduction over several classes gave, which are to be computed anew at each step."""
    keys = [call.key for call in calls]
    key = None if None in keys else tuple(keys)
    reads = tuple(cell for call in calls for cell in call.reads)
    run = partial(_reduced, key, memo, calls, places, size)
    return Number(ledger, ledger.note(run, (memo, *reads), rows, reduces=True))


def _reduced(
    key: Any, memo: int, calls: list[Call], places: list[list[int] | None], size: int, values: list[Any]
) -> list[float]:
    done: dict[Any, list[float]] = values[memo]  # by a replay that was tried before this one
    if key is None or key not in done:
        rows = rows_of_classes([call.run(values) for call in calls], places, size)
        if key is None:
            return rows
        done[key] = rows
    return done[key]


def rows_of_classes(parts: list[list[float]], places: list[list[int] | None], size: int) -> list[float]:
    """Numbers of classes put where each belongs."""
    if len(parts) == 1 and places[0] is None:
        return parts[0]
    rows = [0.0] * size
    for numbers, where in zip(parts, places, strict=True):
        for at, value in zip(range(size) if where is None else where, numbers, strict=False):
            rows[at] = value
    return rows


def replayed_computation(ledger: HostLedger, outs: list[EagerTensors], calls: list[Call]) -> None:
    """Tensors in memory that kernels fill: they are not before these ran."""
    cells = tuple(map(ledger.cell, outs))
    done = ledger.note(partial(_computed, cells, calls), (*cells, *(c for call in calls for c in call.reads)), outs)
    for k, out in enumerate(outs):
        ledger.set_cell(out, ledger.note(partial(_picked, done, k), (done,), out))


def _computed(cells: tuple[int, ...], calls: list[Call], values: list[Any]) -> list[Any]:
    for call in calls:
        call.run(values)
    return [values[cell] for cell in cells]


def _picked(cell: int, k: int, values: list[Any]) -> Any:
    return values[cell][k]


# state


StateCells = tuple[tuple[str, ...], list[tuple[int, str, Any]], list[tuple[str, Any]]]
"""(names of the links down to a state; cell, field and what a value must be like; field and what it must be)."""


def fill_from_state(state_cells: list[StateCells], state: Links, values: list[Any]) -> bool:
    """Put what `state` has into the cells. Whether it is a state of the recorded kind."""
    for path, numbers, fixed in state_cells:
        inner: State = state
        for name in path:
            inner = inner.held()[name]
        fields = inner.__dict__
        for cell, name, kind in numbers:
            value = fields[name]
            if type(value) is Count:
                value = value.value
            if type(value) is not kind and _kind(value) != kind:
                return False
            values[cell] = value
        for name, value in fixed:
            if fields[name] != value:
                return False
    return True


def _kind(value: Any) -> Any:
    if isinstance(value, (int, float, Tensor)):
        return type(value) if type(value) in (int, float) else kind_of(value)
    if isinstance(value, Tensors):
        return Tensors, value.index.names
    return kind_of(value)


def state_in_ledger(state: S, ledger: HostLedger, state_cells: list[StateCells], path: tuple[str, ...] = ()) -> S:
    """`state` with its numbers in the ledger; what is state_cells from there is added to `state_cells`."""
    changes: dict[str, Any] = {}
    numbers: list[tuple[int, str, Any]] = []
    fixed: list[tuple[str, Any]] = []
    for name, value in state.items():
        inner = value.value if isinstance(value, Count) else value
        if isinstance(inner, Tensors):
            if name in state.whole:
                numbers.append((ledger.input(inner), name, _kind(inner)))
        elif isinstance(inner, bool) or _kind(inner) is None:
            fixed.append((name, value))
        else:
            cell = ledger.input(inner)
            numbers.append((cell, name, _kind(inner)))
            number = ledger.handle(cell)
            changes[name] = Count(value.names, number) if isinstance(value, Count) else number
    if numbers or fixed:
        state_cells.append((path, numbers, fixed))
    held = {name: state_in_ledger(inner, ledger, state_cells, (*path, name)) for name, inner in state.held().items()}
    return state.replace(**changes).holding(held)


@dataclass
class StateChanges:
    """Which fields of a state are others after each step, and the cells of what they become."""

    fields: list[tuple[str, int]]
    links: list[tuple[str, StateChanges]]

    def put(self, state: S, values: list[Any]) -> S:
        """`state` after this step."""
        changes: dict[str, Any] = {name: values[cell] for name, cell in self.fields}
        if self.links:
            known = state.held()
            changes["links"] = {**known, **{name: below.put(known[name], values) for name, below in self.links}}
        return state.replace(**changes)

    def cells(self) -> list[int]:
        """The cells of all of them."""
        return [cell for _, cell in self.fields] + [cell for _, below in self.links for cell in below.cells()]


def state_changes(before: State, after: State, stored: State, ledger: HostLedger) -> StateChanges:
    """What becomes of a state with its numbers in the ledger: `after` as the links left it, `settled` as it is kept."""
    found = StateChanges([], [])
    for name, value in after.items():
        if value is before[name] or (isinstance(value, Tensors) and name not in after.whole):
            continue
        kept = stored[name]
        if isinstance(value, Tensors):
            if len(kept) and not ledger.has_cell(kept):
                ledger.breaks(f"{name} is made of what is not in memory")
            cell = ledger.cell(kept)
        elif isinstance(value, Count):
            cell = ledger.add(partial(Count, value.names), value.value)
        else:
            cell = ledger.cell(value)
        found.fields.append((name, cell))
    for name, inner in before.held().items():
        below = state_changes(inner, after.held()[name], stored.held()[name], ledger)
        if below.fields or below.links:
            found.links.append((name, below))
    return found
