"""A step run again from its numbers: the same kernels over the same memory, and none of the links' Python.

A step that has to be recorded is traced, if no link of it runs code of the user's; from then on only the numbers are
computed, and the kernels run. Where a condition on numbers comes out otherwise, or anything else is not as it was,
links run again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.eager import EagerTensors
from gradchain.core.hyper import is_number
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars
from gradchain.core.state import Links, S, State
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.engine.commit import Commit
from gradchain.engine.planning.plan import Part
from gradchain.engine.planning.rows import Column
from gradchain.engine.recording.tape import Lazy, Tape, total
from gradchain.engine.recording.trace import Other, Trace, Traced, plain


@dataclass
class Call:
    """A part's program over the rows of a class, as it is run again.

    Attributes:
        part: the program made ready.
        columns: its tensors; None for those of gradients, which are new each step.
        rows: where the class lies among the gradients; None if it is all of them.
        scalars: where its numbers are in the trace.
        entries: where its numbers per parameter are.
    """

    part: Part
    columns: list[Column | None]
    rows: list[int] | None
    scalars: list[int]
    entries: list[int]

    def run(self, values: list[Any], whole: Column) -> Any:
        """Run it on these numbers, and on the rows of a column of all gradients."""
        return self.part.runner.run(*self.arguments(values, whole))

    def arguments(self, values: list[Any], whole: Column) -> tuple[list[Column], list[Any], Sequence[Any]]:
        """What it runs on: columns, numbers, and numbers per row."""
        columns: list[Any] = self.columns
        if None in columns:
            fresh = whole if self.rows is None else Column([whole.tensors[i] for i in self.rows], whole.lent)
            columns = [column or fresh for column in columns]
        entries = self.part.rows([values[i] for i in self.entries]) if self.entries else ()
        return columns, [values[i] for i in self.scalars], entries

    @classmethod
    def of(cls, part: Part, tape: Tape, columns: list[Column | None]) -> Call:
        """A part of a traced step."""
        trace, rows = tape.trace, None
        assert trace is not None
        for leaf in part.program.columns:
            tensors = tape.leaves[leaf]
            if tape.ops[leaf][1] == "grad" and len(part.names) < len(tensors):
                rows = [tensors.index.position[n] for n in part.names]
        program = part.program
        slots = [tape.sources[s] if s in tape.sources else trace.slot(tape.scalars[s]) for s in program.scalars]
        if any(s not in tape.entry_sources for s in program.entries):
            trace.breaks("it has numbers per parameter that a link made")
        return cls(part, columns, rows, slots, [tape.entry_sources.get(s, 0) for s in program.entries])


@dataclass
class Reduction:
    """The kernels of a reduction over several classes, as they are run again.

    Attributes:
        calls: one per class.
        places: where the numbers of each class belong; None for all in order.
        size: how many numbers there are.
    """

    calls: list[Call]
    places: list[list[int] | None]
    size: int

    def noted(self, trace: Trace, rows: list[float]) -> Traced:
        """The total of these numbers, which the trace is to compute anew each time."""
        out = trace.number(total(rows))
        here = weakref.proxy(trace)  # a trace that held itself would keep the weights till it is collected
        trace.ops.append((lambda _: self._total(here), out.slot, -1, out.slot))
        return out

    def _total(self, trace: Trace) -> float:
        assert trace.gradients is not None
        parts = [call.run(trace.values, trace.gradients) for call in self.calls]
        return total(gathered(parts, self.places, self.size))


def gathered(parts: list[list[float]], places: list[list[int] | None], size: int) -> list[float]:
    """Numbers of classes put where each belongs."""
    if len(parts) == 1 and places[0] is None:
        return parts[0]
    rows = [0.0] * size
    for numbers, where in zip(parts, places, strict=True):
        for at, value in zip(range(size) if where is None else where, numbers, strict=False):
            rows[at] = value
    return rows


@dataclass
class Numbers:
    """Which numbers of a state are others after each step: field, slot, and the names counted if it is a Count."""

    fields: list[tuple[str, int, tuple[str, ...] | None]]
    links: dict[str, Numbers]

    def put(self, state: S, values: list[Any]) -> S:
        """`state` with the numbers of this step."""
        changes: dict[str, Any] = {
            name: values[slot] if names is None else Count(names, values[slot]) for name, slot, names in self.fields
        }
        known = state.held()
        held = {name: numbers.put(known[name], values) for name, numbers in self.links.items()}
        changed = state.replace(**changes) if changes else state
        return changed.holding({**known, **held}) if held else changed


@dataclass
class Given:
    """What a trace takes from the state.

    Attributes:
        numbers: slot, names of the links down to a state, and its field.
        fixed: the same for what is no number, and what it must be.
    """

    numbers: list[tuple[int, tuple[str, ...], str]] = field(default_factory=list)
    fixed: list[tuple[Any, tuple[str, ...], str]] = field(default_factory=list)

    def take(self, state: State, values: list[Any]) -> bool:
        """Put the numbers of `state` into their slots. Whether it is a state of the traced kind."""
        for slot, path, name in self.numbers:
            value = _inner(state, path)[name]
            values[slot] = value.uniform if isinstance(value, Count) else value
            if not is_number(values[slot]):
                return False
        return all(_inner(state, path)[name] == value for value, path, name in self.fixed)


@dataclass
class Asked:
    """A step that is asked for: the chain, the facts of the update, and what it is given."""

    tx: chain
    step: Step
    grads: EagerTensors
    state: Links
    params: EagerTensors
    lent: bool


@dataclass
class Recorded:
    """A step on its tape: the chain's state before and after it, what is written over what, and which weights."""

    tx: chain
    tape: Tape
    step: Step
    notes: Notes
    lazy: Links
    given: Given
    new: Links
    roots: list[tuple[int, int]]
    written: Index | None


@dataclass
class Replay:
    """A step that can be run again.

    Attributes:
        tx: the chain.
        known: what is known of an update like the traced one.
        index: the parameters that had a gradient.
        lent: whether gradients stay the user's.
        trace: the program of the numbers.
        clocks: slot of each clock.
        given: what is taken from the state.
        numbers: where they are put into the new state.
        calls: the kernels that write.
        written: where the weights that they write are among all; None for all of them.
        records: address → slot or number, of what links recorded.
        used: address → slot, of the hyperparameters that are not mere numbers.
    """

    tx: Transform
    known: tuple[Any, ...]
    index: Index
    lent: bool
    trace: Trace
    clocks: dict[str, int]
    given: Given
    numbers: Numbers
    calls: list[Call]
    written: list[int] | None
    records: list[tuple[str, int]]
    used: list[tuple[str, int]]
    parts: list[Part] = field(default_factory=list)  # what it runs, as the engine tells it
    ran: bool = False  # since it was traced

    def fits(self, asked: Asked) -> bool:
        """Whether an update that is known to have the same state, weights and plans is the traced one's like."""
        same = asked.tx is self.tx and asked.grads.index is self.index and asked.lent == self.lent
        return same and can_trace(asked.step) and known(asked.step) == self.known

    def again(self, asked: Asked, commit: Commit) -> tuple[Links, Notes] | None:
        """The new state and what links would leave; None where this step goes another way."""
        trace, step, params = self.trace, asked.step, asked.params
        before = trace.values
        values = trace.values = before.copy()
        for name, slot in self.clocks.items():
            values[slot] = step.clocks[name]
        if not self.given.take(asked.state, values):
            trace.values = before
            return None
        whole = trace.gradients = Column(asked.grads._data, self.lent)
        trace.step = Step(params, step.clocks)
        try:
            for fn, a, b, out in trace.ops:
                values[out] = fn(values[a]) if b < 0 else fn(values[a], values[b])
        except Other:
            return None
        finally:
            trace.values, trace.gradients = before, None
        for call in self.calls:
            commit.add(partial(call.part.runner.run, *call.arguments(values, whole)))
        weights = params._data
        written = weights if self.written is None else [weights[i] for i in self.written]
        commit.add(partial(_torch.increment_version, written))
        notes = Notes(step)
        notes.records = {name: values[slot] for name, slot in self.records}
        notes.used = {name: values[slot] for name, slot in self.used}
        return self.numbers.put(asked.state, values), notes


MOST_WAYS = 4  # that are known of one chain
MOST_PATIENCE = 1024  # recordings between two traces where tracing comes to nothing


class Replays:
    """The steps that can be run again, the last one first.

    A chain may go several ways in turn, as where it averages every few steps. Where ways do not come back, tracing them
    is for nothing: after each that never ran again, the next is traced only after twice as many recordings.
    """

    def __init__(self) -> None:
        self._known: list[Replay] = []
        self._failures, self._wait = 0, 0

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self._known)

    def forget(self) -> None:
        """State or weights are not where they were."""
        self._known.clear()

    def again(self, asked: Asked, commit: Commit) -> tuple[list[Part], Links, Notes] | None:
        """What will run, the new state and the notes; None where no step that is known goes this way."""
        for i, replay in enumerate(self._known):
            if replay.fits(asked):
                found = replay.again(asked, commit)
                if found is not None:
                    self._failures, replay.ran = 0, True
                    if i:
                        self._known.insert(0, self._known.pop(i))
                    return replay.parts, *found
        return None

    def wanted(self) -> bool:
        """Whether to trace the step that is about to be recorded."""
        if self._wait:
            self._wait -= 1
            return False
        return True

    def keep(self, replay: Replay | None) -> None:
        """Keep a traced step, in place of the one that was not run for longest; None where a trace came to nothing."""
        if replay is not None:
            self._known.insert(0, replay)
        last = self._known.pop() if len(self._known) > MOST_WAYS else None
        if replay is None or (last is not None and not last.ran):
            self._failures += 1
            self._wait = min(2**self._failures, MOST_PATIENCE)


def known(step: Step) -> tuple[Any, ...]:
    """What links may have asked of an update that can be traced."""
    return step.scaled, step.summed, step.autocast


def can_trace(step: Step) -> bool:
    """Whether an update is a plain one: no closure, no window that closes early, no override, one process."""
    early = step.last or step.flushing or step.weight is not None
    return not (early or step.overrides or step.evaluate is not None or step.over_ranks is not None)


def ours(tx: Transform) -> bool:
    """Whether no link runs code of the user's: what that does beside mathematics must happen at every step."""
    links = [link for _, link, _ in walk(tx, None)]
    return all(type(link).__module__.partition(".")[0] == "gradchain" and not link.calls_back for link in links)


def _inner(state: State, path: tuple[str, ...]) -> State:
    for name in path:
        state = state.held()[name]
    return state


def traced(state: S, trace: Trace, given: Given, path: tuple[str, ...] = ()) -> S:
    """`state` with its numbers in the trace; what it takes from there is added to `given`."""
    changes: dict[str, Any] = {}
    for name, value in state.items():
        if is_number(value):
            number = changes[name] = trace.number(value)
            given.numbers.append((number.slot, path, name))
        elif isinstance(value, Count) and value.uniform is not None:
            number = trace.number(value.uniform)
            changes[name] = Count(value.names, number)  # type: ignore[arg-type]  # as an int
            given.numbers.append((number.slot, path, name))
        elif isinstance(value, (Count, Scalars, Tensor)):
            trace.breaks(f"{name} is no plain number")
        elif not isinstance(value, Tensors):
            given.fixed.append((value, path, name))
    held = {name: traced(inner, trace, given, (*path, name)) for name, inner in state.held().items()}
    return state.replace(**changes).holding(held)


def untraced(state: S) -> S:
    """`state` with plain numbers."""
    changes: dict[str, Any] = {}
    for name, value in state.items():
        if type(value) is Traced:
            changes[name] = value.value
        elif isinstance(value, Count) and value.uniform is not None:
            changes[name] = Count(value.names, plain(value.uniform))
    held = {name: untraced(inner) for name, inner in state.held().items()}
    return state.replace(**changes).holding(held)


def _numbers_of(old: State, new: State, trace: Trace) -> Numbers:
    """What becomes of the numbers of a traced state. The trace breaks where anything else is another thing after it."""
    found = Numbers([], {})
    for name, after in new.items():
        before = old[name]
        number = before.uniform if isinstance(before, Count) else before
        if after is before or (isinstance(after, Lazy) and name not in new.whole):
            continue
        result = after.uniform if isinstance(after, Count) else after
        same_kind = isinstance(after, Count) == isinstance(before, Count)
        if type(number) is not Traced or not same_kind or not (type(result) is Traced or is_number(result)):
            trace.breaks(f"{name} is no longer what it was")
            continue
        slot = trace.slot(result)
        if slot != number.slot:
            found.fields.append((name, slot, after.names if isinstance(after, Count) else None))
    for name, inner in old.held().items():
        held = _numbers_of(inner, new.held()[name], trace)
        if held.fields or held.links:
            found.links[name] = held
    return found


def kept(
    recorded: Recorded, written: list[int] | None, settled: Links, lent: bool, calls: Callable[[], list[Call]]
) -> tuple[Links, Replay | None]:
    """The new state of a traced step in plain numbers; and how to run it again, if its numbers are all there is."""
    tape, notes = recorded.tape, recorded.notes
    trace = tape.trace
    assert trace is not None
    numbers = _numbers_of(recorded.lazy, recorded.new, trace)
    records, used = list(_slots(notes.records, trace)), list(_slots(notes.used, trace))
    if recorded.written is None or notes.held or notes.detail or any(op == ("leaf", "extra") for op in tape.ops):
        trace.breaks("it does more than write weights and state")
    settled = untraced(settled)
    notes.records = {name: plain(value) for name, value in notes.records.items()}
    notes.used = {name: plain(value) for name, value in notes.used.items()}
    made = [] if trace.broken else calls()
    if trace.broken:
        return settled, None
    index = next(tape.indices[i] for i, op in enumerate(tape.ops) if op == ("leaf", "grad"))
    numbered: Mapping[str, Any] = recorded.step.clocks
    clocks = {name: number.slot for name, number in numbered.items()}
    replay = Replay(
        recorded.tx,
        known(recorded.step),
        index,
        lent,
        trace,
        clocks,
        recorded.given,
        numbers,
        made,
        written,
        records,
        used,
    )
    return settled, replay


def _slots(noted: Mapping[str, Any], trace: Trace) -> Iterator[tuple[str, int]]:
    """Where what links recorded is in the trace."""
    for name, value in noted.items():
        if type(value) is not Traced and not is_number(value):
            trace.breaks(f"{name} is no plain number")
        yield name, trace.slot(value)
