"""A step run again from its numbers: the same kernels over the same memory, and none of the links' Python.

A step that has to be recorded is recorded with its numbers, if no link of it runs code of the user's; from then on only
the numbers are computed, and the kernels run. A chain does several things in turn: a window opens and closes, an update
is held. Each is a replay, known by its guards. Where none of those that are kept fits, the links run again.
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
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit
from gradchain.engine.planning.plan import Part
from gradchain.engine.recording.host import HostLedger, Op, kind_of
from gradchain.engine.recording.tape import Tape
from gradchain.engine.replay_data import Call, StateCells, StateChanges, fill_from_state, state_changes, state_in_ledger
from gradchain.engine.stages import in_stages


@dataclasses.dataclass
class Request:
    """A step that is request for: the chain, the facts of the update, and what it is to work on.

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
            step.flushing, step.weight is None, step.autocast, loss, overrides,
        )  # fmt: skip


@dataclasses.dataclass
class Recording:
    """A step on its tape: the chain's state before and after it, what links left, what is written over what.

    Attributes:
        inputs: what its numbers begin with; None where they were not recorded.
        own: the weights that a link writes where they lie; None where none does.
    """

    tx: chain
    tape: Tape
    step: Step
    notes: Notes
    lazy: Links
    new: Links
    roots: list[tuple[int, int]]
    written: Index | None
    inputs: ReplayInputs | None
    own: Weights | None = None


@dataclasses.dataclass
class ReplayInputs:
    """What the numbers of a step begin with: the ledger, and the cells that are filled anew at each step.

    Attributes:
        memo: the cell of what replays that were tried have reduced.
        grads, received, params: the cells of Tensors.
        clocks: cell of each clock.
        weight, loss: the cells of the facts of a micro-batch, where it has them.
        state_cells: what is state_cells from the state.
    """

    ledger: HostLedger
    memo: int
    grads: int
    received: int
    params: int
    clocks: dict[str, int]
    weight: int | None
    loss: int | None
    state_cells: list[StateCells] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, ledger: HostLedger, request: Request) -> ReplayInputs:
        """The inputs of a step."""
        step = request.step
        received = ledger.input(request.received)
        return cls(
            ledger,
            ledger.input({}),
            received if request.grads is request.received else ledger.input(request.grads),
            received,
            ledger.input(request.params),
            {name: ledger.input(value) for name, value in step.clocks.items()},
            None if step.weight is None else ledger.input(step.weight),
            None if step.loss is None else ledger.input(step.loss),
        )

    def facts(self, step: Step) -> Step:
        """The facts of the step with their numbers in the ledger."""
        handle = self.ledger.handle
        clocks: dict[str, Any] = {name: handle(cell) for name, cell in self.clocks.items()}
        weight = None if self.weight is None else handle(self.weight)
        loss = None if self.loss is None else handle(self.loss)
        recorder: Recorder = self.ledger
        return step._replace(recorder=recorder, clocks=clocks, weight=weight, loss=loss)

    def fill(self, values: list[Any], request: Request) -> bool:
        """Put what a step gives into the cells. Whether its state is of the recorded kind."""
        step = request.step
        values[self.ledger.step], values[self.grads] = step, request.grads
        values[self.received], values[self.params] = request.received, request.params
        for name, cell in self.clocks.items():
            values[cell] = step.clocks[name]
        if self.weight is not None:
            values[self.weight] = step.weight
        if self.loss is not None:
            values[self.loss] = step.loss
        return fill_from_state(self.state_cells, request.state, values)

    def state(self, state: Links) -> Links:
        """The state with its numbers in the ledger."""
        return state_in_ledger(state, self.ledger, self.state_cells)


Line = tuple[Callable[..., Any], int, int, int]
"""(function, first operand or -1 for all values, second operand or -1, result or -1)."""


class Replay:
    """A step that can be run again.

    Attributes:
        kind: of the updates it is for.
        parts: what it runs, as the engine tells it.
        maps: how it calls functions of whole tensors.
        ran: whether it did, since it was recorded.
        applies: whether it writes weights.
        written: which of them, where it is not all.
    """

    def __init__(
        self,
        request: Request,
        recorded: Recording,
        changes: StateChanges,
        calls: list[Call],
        written: list[int] | None,
        parts: list[Part],
    ) -> None:
        assert recorded.inputs is not None
        self.kind, self._inputs = request.kind, recorded.inputs
        self.ran, self.maps = False, recorded.tape.maps
        self.applies = recorded.written is not None
        self._alive = (request.tx, dict(request.step.overrides))  # the kind has their ids
        self._changes, self.written = changes, written
        self._held, self._detail = recorded.notes.held, recorded.notes.detail
        ledger, notes = recorded.inputs.ledger, recorded.notes
        self._records = [(name, ledger.cell(value)) for name, value in notes.records.items()]
        self._used = [(name, ledger.cell(value)) for name, value in notes.used.items()]
        roots = [cell for _, cell in (*self._records, *self._used)] + changes.cells()
        roots += [ledger.met] if ledger.met >= 0 else []  # other ranks come to that meeting
        ops, self._calls, self.parts = in_stages(ledger, roots, calls, parts)
        first, put_off, self._last = ordered(ops, [*roots, *(cell for call in self._calls for cell in call.reads)])
        self._lines = [*first, *put_off]
        self._template: list[Any] = ledger.values
        for cell in (*ledger.inputs, *(op.out for op in ledger.ops if op.out >= 0)):
            self._template[cell] = None  # what is computed anew keeps no gradient alive
        ledger.forget()

    def values(self, request: Request, memo: dict[Any, Any]) -> list[Any] | None:
        """The numbers of a step; None where a guard fails."""
        values = self._template.copy()
        values[self._inputs.memo] = memo
        try:
            if not self._inputs.fill(values, request):
                return None
            run(self._lines, values)
        except Exception:  # a guard; anything else happens to the links too, and is raised by them
            return None
        return values

    def prepared(self, values: list[Any], request: Request, commit: Commit) -> tuple[Links, Notes]:
        """What is to be written, put into the commit; the new state, and what links leave."""
        run(self._last, values)
        for call in self._calls:
            call.part.runner.write(commit, *call.arguments(values))
        notes = Notes(request.step)
        notes.records = {name: values[cell] for name, cell in self._records}
        notes.used = {name: values[cell] for name, cell in self._used}
        notes.held, notes.detail = self._held, self._detail
        state: Links = self._changes.put(request.state, values)
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
    """The lines that are needed, so that a step for which a guard fails costs little.

    First what guards stand on; then those that stand on reductions, and what must not run in vain; last what no guard
    stands on: the step is decided.
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
        after = op.reduces or any(cell in late for cell in op.reads) or (op.refuses and gated)
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


def replay_of(
    request: Request, recorded: Recording, stored: Links, calls: Callable[[], list[Call]], written: list[int] | None,
    parts: list[Part],
) -> Replay | str:  # fmt: skip
    """How to run a recorded step again, or why that cannot be."""
    assert recorded.inputs is not None
    ledger = recorded.inputs.ledger
    changes = state_changes(recorded.lazy, recorded.new, stored, ledger)
    made = [] if ledger.broken else calls()
    return ledger.broken or Replay(request, recorded, changes, made, written, parts)


MOST_REPLAYS = 24  # that are kept of one chain
MOST_PATIENCE = 1024  # recordings between two that are with numbers, where those come to nothing


class Replays:
    """The steps that can be run again.

    Where steps do not come back, their numbers are recorded for nothing: after each that never ran again, the next has
    them only after twice as many recordings.
    """

    def __init__(self) -> None:
        self._replays: dict[tuple[Any, ...], list[Replay]] = {}
        self._recent: dict[Replay, None] = {}  # in the order they were gone, the latest last
        # the last two; and what was gone after any two, when last they were: a window is the same many steps long
        self._before: tuple[Replay | None, Replay | None] = (None, None)
        self._after: dict[tuple[Replay | None, Replay | None], Replay] = {}
        self._failures, self._wait = 0, 0
        self._code: tuple[chain, str] | None = None  # the chain, and which link of it runs code of a user's

    def forget(self) -> None:
        """State or weights are not where they were."""
        if self._recent and not any(replay.ran for replay in self._recent):
            self.failed()
        self._replays.clear()
        self._recent.clear()
        self._after.clear()
        self._before = (None, None)

    def find(self, request: Request) -> tuple[Replay, list[Any]] | None:
        """The replay of a step, and its numbers; None where none that is kept is its own."""
        kind = request.kind
        known = self._replays.get(kind) if self._replays else None
        if known is None:
            return None
        memo: dict[Any, Any] = {}
        likely = self._after.get(self._before)
        if likely is not None and likely.kind == kind:
            values = likely.values(request, memo)
            if values is not None:
                return likely, values
        for replay in known:
            values = None if replay is likely else replay.values(request, memo)
            if values is not None:
                return replay, values
        return None

    def replayed(self, replay: Replay) -> None:
        """A step was run again by this one."""
        self._failures, replay.ran = 0, True
        self._follow(replay)

    def _follow(self, replay: Replay) -> None:
        earlier, latest = self._before
        self._after[self._before] = replay
        if replay is not latest:
            self._recent.pop(replay, None)
            self._recent[replay] = None
        if replay is not latest or replay is not earlier:
            self._before = (latest, replay)

    def why_not(self, request: Request) -> str:
        """Why the numbers of a step that is about to be recorded are not; "" if they are."""
        if self._code is None or self._code[0] is not request.tx:
            self._code = (request.tx, users_code(request.tx))
        why = self._code[1] or unrepeatable(request.step)
        if not why and self._wait:
            self._wait -= 1
            return "steps of kinds that did not come back"
        return why

    def add(self, replay: Replay) -> None:
        """Keep a replay, in place of the one that was not used for longest."""
        self._replays.setdefault(replay.kind, []).insert(0, replay)
        self._follow(replay)
        if len(self._recent) > MOST_REPLAYS:
            oldest = next(iter(self._recent))
            del self._recent[oldest]
            self._after = {before: replay for before, replay in self._after.items() if oldest not in (*before, replay)}
            self._replays[oldest.kind].remove(oldest)
            if not self._replays[oldest.kind]:
                del self._replays[oldest.kind]
            if not oldest.ran:
                self.failed()

    def failed(self) -> None:
        """Numbers were recorded for nothing."""
        self._failures += 1
        self._wait = min(2**self._failures, MOST_PATIENCE)


def users_code(tx: chain) -> str:
    """Which link runs code of a user's, which may do more than mathematics at every step; "" if none does."""
    for address, link, _ in walk(tx, None):
        if type(link).__module__.partition(".")[0] != "gradchain":
            return f"{address} is a link of yours, which always is asked; what it records runs in kernels"
        if link.calls_back:
            return f"{address} calls code of yours, which runs at every step"
    return ""


def unrepeatable(step: Step) -> str:
    """Why an update of this kind is recorded each time; "" if it may be run again."""
    return "" if step.evaluate is None else "a closure was evaluated"
