"""A step run again from its numbers: the same kernels over the same memory, and none of the links' Python.

A step that has to be recorded is traced, if no link of it runs code of the user's; from then on only the numbers are
computed, and the kernels run. A chain goes several ways in turn: a window opens, grows and closes, an update is held.
Each way is known by its guards. Where none of those that are known fits, the links run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from gradchain.core.chain import chain
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.state import Links
from gradchain.core.step import Notes, Recorder, Step
from gradchain.core.transform import walk
from gradchain.engine.commit import Commit
from gradchain.engine.planning.plan import Part
from gradchain.engine.recording.host import HostLedger, Op, kind_of
from gradchain.engine.recording.tape import Tape
from gradchain.engine.traced import Call, Changes, Taken, changes_of, take, traced


@dataclasses.dataclass
class Asked:
    """A step that is asked for: the chain, the facts of the update, and what it is to work on.

    Attributes:
        received: the gradients as they came.
        grads: the same, laid out as the weights.
    """

    tx: chain
    step: Step
    received: EagerTensors
    grads: EagerTensors
    state: Links
    params: EagerTensors
    lent: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """What links may ask of an update that is no number."""
        step = self.step
        loss = None if step.loss is None else kind_of(step.loss)
        overrides = tuple([(a, id(o)) for a, o in step.overrides.items()]) if step.overrides else ()
        return (
            id(self.tx), self.grads.index, self.grads is self.received, self.lent, step.scaled, step.summed, step.last,
            step.weight is None, step.autocast, loss, overrides,
        )  # fmt: skip


@dataclasses.dataclass
class Recorded:
    """A step on its tape: the chain's state before and after it, what links left, what is written over what.

    Attributes:
        tracing: what the step is traced with, or None.
    """

    tx: chain
    tape: Tape
    step: Step
    notes: Notes
    lazy: Links
    new: Links
    roots: list[tuple[int, int]]
    written: Index | None
    tracing: Tracing | None


@dataclasses.dataclass
class Tracing:
    """What a trace begins with: the ledger, and the slots that are filled anew at each step.

    Attributes:
        memo: the slot of what ways that were tried have reduced.
        grads, received, params: the slots of Tensors.
        clocks: slot of each clock.
        weight, loss: the slots of the facts of a micro-batch, where it has them.
        taken: what is taken from the state.
    """

    ledger: HostLedger
    memo: int
    grads: int
    received: int
    params: int
    clocks: dict[str, int]
    weight: int | None
    loss: int | None
    taken: list[Taken] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, ledger: HostLedger, asked: Asked) -> Tracing:
        """The inputs of a step."""
        step = asked.step
        received = ledger.input(asked.received)
        return cls(
            ledger,
            ledger.input({}),
            received if asked.grads is asked.received else ledger.input(asked.grads),
            received,
            ledger.input(asked.params),
            {name: ledger.input(value) for name, value in step.clocks.items()},
            None if step.weight is None else ledger.input(step.weight),
            None if step.loss is None else ledger.input(step.loss),
        )

    def facts(self, step: Step) -> Step:
        """The facts of the step with their numbers in the ledger."""
        handle = self.ledger.handle
        clocks: dict[str, Any] = {name: handle(slot) for name, slot in self.clocks.items()}
        weight = None if self.weight is None else handle(self.weight)
        loss = None if self.loss is None else handle(self.loss)
        recorder: Recorder = self.ledger
        return step._replace(recorder=recorder, clocks=clocks, weight=weight, loss=loss)

    def fill(self, values: list[Any], asked: Asked) -> bool:
        """Put what a step gives into the slots. Whether its state is of the traced kind."""
        step = asked.step
        values[self.ledger.step], values[self.grads] = step, asked.grads
        values[self.received], values[self.params] = asked.received, asked.params
        for name, slot in self.clocks.items():
            values[slot] = step.clocks[name]
        if self.weight is not None:
            values[self.weight] = step.weight
        if self.loss is not None:
            values[self.loss] = step.loss
        return take(self.taken, asked.state, values)

    def traced(self, state: Links) -> Links:
        """The state with its numbers in the ledger."""
        return traced(state, self.ledger, self.taken)


Line = tuple[Callable[..., Any], int, int, int]
"""(function, first operand or -1 for all values, second operand or -1, result or -1)."""


class Way:
    """A step that can be run again.

    Attributes:
        kind: of the updates it is for.
        parts: what it runs, as the engine tells it.
        ran: whether it did, since it was traced.
        applies: whether it writes weights.
        written: which of them, where it is not all.
    """

    def __init__(
        self, asked: Asked, recorded: Recorded, changes: Changes, calls: list[Call], written: list[int] | None,
        parts: list[Part],
    ) -> None:  # fmt: skip
        assert recorded.tracing is not None
        self.kind, self.parts, self._tracing = asked.kind, parts, recorded.tracing
        self.ran = False
        self.applies = recorded.written is not None
        self._alive = (asked.tx, dict(asked.step.overrides))  # the kind has their ids
        self._changes, self._calls, self.written = changes, calls, written
        self._held, self._detail = recorded.notes.held, recorded.notes.detail
        ledger, notes = recorded.tracing.ledger, recorded.notes
        self._records = [(name, ledger.slot(value)) for name, value in notes.records.items()]
        self._used = [(name, ledger.slot(value)) for name, value in notes.used.items()]
        roots = [slot for _, slot in (*self._records, *self._used)] + changes.slots()
        first, put_off, self._last = ordered(ledger.ops, [*roots, *(slot for call in calls for slot in call.reads)])
        self._lines = [*first, *put_off]
        self._template: list[Any] = ledger.values
        for slot in (*ledger.given, *(op.out for op in ledger.ops if op.out >= 0)):
            self._template[slot] = None  # what is computed anew keeps no gradient alive
        ledger.forget()

    def values(self, asked: Asked, memo: dict[Any, Any]) -> list[Any] | None:
        """The numbers of a step; None where it takes another way."""
        values = self._template.copy()
        values[self._tracing.memo] = memo
        try:
            if not self._tracing.fill(values, asked):
                return None
            run(self._lines, values)
        except Exception:  # a guard; anything else happens to the links too, and is raised by them
            return None
        return values

    def prepared(self, values: list[Any], asked: Asked, commit: Commit) -> tuple[Links, Notes]:
        """What is to be written, put into the commit; the new state, and what links leave."""
        run(self._last, values)
        for call in self._calls:
            call.part.runner.write(commit, *call.arguments(values))
        notes = Notes(asked.step)
        notes.records = {name: values[slot] for name, slot in self._records}
        notes.used = {name: values[slot] for name, slot in self._used}
        notes.held, notes.detail = self._held, self._detail
        state: Links = self._changes.put(asked.state, values)
        return state, notes


def run(lines: list[Line], values: list[Any]) -> None:
    """Compute line after line."""
    for fn, a, b, out in lines:
        if b >= 0:
            result = fn(values[a], values[b])
        else:
            result = fn(values[a] if a >= 0 else values)
        if out >= 0:
            values[out] = result


def ordered(ops: list[Op], roots: Iterable[int]) -> tuple[list[Line], list[Line], list[Line]]:
    """The lines that are needed, so that a step which goes another way costs little.

    First what guards stand on; then those that stand on reductions, and what must not run in vain; last what no guard
    stands on: the way is decided.
    """
    needed, guarded, kept = set(roots), set[int](), list[Op]()
    for op in reversed(ops):
        if op.out < 0 or op.out in needed:
            needed.update(op.reads)
            kept.append(op)
            if op.out < 0 or op.refuses or op.out in guarded:
                guarded.update((op.out, *op.reads))
    stages: tuple[list[Line], list[Line], list[Line]] = ([], [], [])
    late: set[int] = set()
    gated = False
    for op in reversed(kept):
        after = op.reduces or any(slot in late for slot in op.reads) or (op.refuses and gated)
        if after:
            late.add(op.out)
            gated = gated or op.out < 0
        stages[int(after) if op.out in guarded else 2].append(_line(op))
    return stages


def _line(op: Op) -> Line:
    if op.whole:
        return op.fn, -1, -1, op.out
    first, second = op.reads if len(op.reads) == 2 else (op.reads[0], -1)
    return op.fn, first, second, op.out


def way_of(
    asked: Asked, recorded: Recorded, settled: Links, calls: Callable[[], list[Call]], written: list[int] | None,
    parts: list[Part],
) -> Way | str:  # fmt: skip
    """How to run a traced step again, or why that cannot be."""
    assert recorded.tracing is not None
    ledger = recorded.tracing.ledger
    changes = changes_of(recorded.lazy, recorded.new, settled, ledger)
    made = [] if ledger.broken else calls()
    return ledger.broken or Way(asked, recorded, changes, made, written, parts)


MOST_WAYS = 24  # that are known of one chain
MOST_PATIENCE = 1024  # recordings between two traces where tracing comes to nothing


class Ways:
    """The steps that can be run again.

    Where ways do not come back, tracing them is for nothing: after each that never ran again, the next is traced only
    after twice as many recordings.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Way]] = {}
        self._recent: dict[Way, None] = {}  # in the order they were gone, the latest last
        # the last two; and what was gone after any two, when last they were: a window is the same many steps long
        self._before: tuple[Way | None, Way | None] = (None, None)
        self._after: dict[tuple[Way | None, Way | None], Way] = {}
        self._failures, self._wait = 0, 0

    def forget(self) -> None:
        """State or weights are not where they were."""
        if self._recent and not any(way.ran for way in self._recent):
            self.failed()
        self._known.clear()
        self._recent.clear()
        self._after.clear()
        self._before = (None, None)

    def fitting(self, asked: Asked) -> tuple[Way, list[Any]] | None:
        """The way that a step takes, and its numbers; None where no way that is known is its own."""
        kind = asked.kind
        known = self._known.get(kind) if self._known else None
        if known is None:
            return None
        memo: dict[Any, Any] = {}
        likely = self._after.get(self._before)
        if likely is not None and likely.kind == kind:
            values = likely.values(asked, memo)
            if values is not None:
                return likely, values
        for way in known:
            values = None if way is likely else way.values(asked, memo)
            if values is not None:
                return way, values
        return None

    def gone(self, way: Way) -> None:
        """A step went this way."""
        self._failures, way.ran = 0, True
        self._note(way)

    def _note(self, way: Way) -> None:
        earlier, latest = self._before
        self._after[self._before] = way
        if way is not latest:
            self._recent.pop(way, None)
            self._recent[way] = None
        if way is not latest or way is not earlier:
            self._before = (latest, way)

    def wanted(self) -> bool:
        """Whether to trace the step that is about to be recorded."""
        if self._wait:
            self._wait -= 1
            return False
        return True

    def keep(self, way: Way) -> None:
        """Keep a way, in place of the one that was not gone for longest."""
        self._known.setdefault(way.kind, []).insert(0, way)
        self._note(way)
        if len(self._recent) > MOST_WAYS:
            oldest = next(iter(self._recent))
            del self._recent[oldest]
            self._after = {before: way for before, way in self._after.items() if oldest not in (*before, way)}
            self._known[oldest.kind].remove(oldest)
            if not self._known[oldest.kind]:
                del self._known[oldest.kind]
            if not oldest.ran:
                self.failed()

    def failed(self) -> None:
        """A trace came to nothing."""
        self._failures += 1
        self._wait = min(2**self._failures, MOST_PATIENCE)


def own_code(tx: chain) -> str:
    """Which link runs code of a user's, which may do more than mathematics at every step; "" if none does."""
    for address, link, _ in walk(tx, None):
        if type(link).__module__.partition(".")[0] != "gradchain":
            return f"{address} is a link of yours, whose code runs at every step"
        if link.calls_back:
            return f"{address} calls code of yours, which runs at every step"
    return ""


def never_again(step: Step) -> str:
    """Why an update of this kind is recorded each time; "" if it may be run again."""
    if step.evaluate is not None:
        return "a closure was evaluated"
    if step.over_ranks is not None:
        return "several ranks take part"
    return "a window was flushed" if step.flushing else ""
