"""One step of a chain: recorded, found or planned, and run in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.maps import Calls
from gradchain.core.row_gradients import RowGradients
from gradchain.core.shapes import Shapes
from gradchain.core.state import Links
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.captured import Captured
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import Executor
from gradchain.engine.executors.devices import adapted, chosen, numbers_on, variable
from gradchain.engine.meetings import Meetings
from gradchain.engine.operations import Unrecorded
from gradchain.engine.outcome import Outcome, none_where_it_cannot
from gradchain.engine.planning.buffers import Buffers, fresh, window_of
from gradchain.engine.planning.layout import Layout
from gradchain.engine.planning.plan import Part, arithmetic, structure
from gradchain.engine.planning.rows import Column
from gradchain.engine.plans import Plans
from gradchain.engine.recording.device import DeviceLedger, DeviceReduced, over_classes
from gradchain.engine.recording.host import HostLedger
from gradchain.engine.recording.leaves import dtypes, mapped, restored, roots_of, same_memory
from gradchain.engine.recording.numbers import Ledger
from gradchain.engine.recording.reduced import Reduced
from gradchain.engine.recording.tape import Lazy, Tape
from gradchain.engine.replay import (
    Recording,
    Replay,
    ReplayInputs,
    Replays,
    Request,
    replay_of,
)
from gradchain.engine.replay_data import Call, replayed_computation, replayed_reduction, rows_of_classes
from gradchain.engine.sparse_rows import SparseRows

MOST_SETS = 8  # of parameters with sparse gradients that plans are kept for
MOST_REASONS = 16  # that are counted, why steps did not run again


class Engine:
    """Runs a chain on one set of parameters, keeping the plans it made."""

    def __init__(self, rows: SparseRows | None = None) -> None:
        self._rows = rows  # of what a step is, where some gradients are sparse
        self.tape: Callable[..., Tape] = Tape if rows is None else rows.tape
        self.layout: Callable[[EagerTensors], Layout] = Layout if rows is None else rows.layout
        self._of_rows: dict[frozenset[str], Engine] = {}  # by which gradients are sparse: what runs such steps
        self._layout: Layout | None = None
        self.executors: tuple[Executor, ...] = chosen(torch.device("cpu"))
        self._adapted: tuple[Any, ...] = ()  # the executors that are for the layout's weights, by what the variable was
        self.captured: Captured | None = None  # what a step goes into that is captured, or comes from
        self._plans = Plans() if rows is None else rows.plans()
        self._columns: dict[Any, tuple[EagerTensors, Column]] = {}
        self._state: Links | None = None
        self._buffers = Buffers()
        self._lent = False
        self._replays = Replays()
        self._meetings = Meetings()
        self._inputs: ReplayInputs | None = None  # while a step is recorded with its numbers
        self._num_replayed = 0
        self.num_counted = 0  # micro-batches for which nothing had to run
        self.not_replayed: Counter[str] = Counter()  # how many were not, by the reason
        self.last: list[Part] = []  # what the last step ran, in order
        self.ran: list[Part] = []  # what the last step ran that ran anything
        self.maps: list[Calls | str] = []  # how maps called their functions in the last step
        self.ran_maps: list[Calls | str] = []  # and in the last that ran anything
        self.reason = ""  # why the last step ran by the reference; "" if it did not

    @none_where_it_cannot
    def step(self, tx: chain, step: Step, received: Tensors, state: Links, params: EagerTensors, lent: bool) -> Outcome:
        """What the chain makes of an update. Nothing is written before its commit fires; None if it cannot run here.

        Args:
            tx: the chain.
            step: the facts of the update.
            received: the gradients.
            state: the chain's state; its tensors are written.
            params: the weights; they are written.
            lent: whether the gradients stay the user's.
        """
        assert isinstance(received, EagerTensors)
        if step.over_ranks is not None:
            self._meetings.begin()
        return self._step(tx, step, received, state, params, lent)

    def _step(
        self, tx: chain, step: Step, received: EagerTensors, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome:
        """The same. Unrecorded or NoKernel where it cannot run here."""
        if step.over_ranks is not None:
            step = step._replace(over_ranks=partial(self._mean, step.over_ranks))
        self._lent, self.last = lent, []
        if self.captured is not None:
            self.captured.begin(received, step, lent)
        layout = self._layout_of(params)
        if state is not self._state and not same_memory(state, self._state):
            # it came from elsewhere: a load, a reset, a step by the reference
            self._columns.clear()
            self._replays.forget()
            self._buffers.clear()
            written = set(layout.pointers)  # memory that something else writes, or that is written for another field
            state = mapped(state, lambda tensors: layout.state(tensors, written))
            self._plans.state_dtypes = tuple(dtypes(state))
        request = Request(tx, step, received, layout.gradients(received), state, params, lent)
        again = self._replayed(request)
        return again if again is not None else self._recorded(request)

    def step_of_rows(
        self, tx: chain, step: Step, received: RowGradients, state: Links, params: EagerTensors, lent: bool
    ) -> Outcome | None:
        """A step in which some gradients are sparse; see `step`.

        Which they are decides the plans: each such set has an engine of its own, and this one tells what that did.
        """
        if self.captured is not None:
            raise self.captured.refusal("a gradient is sparse, and how many rows it has differs from step to step")
        names = frozenset(received.sparse)
        inner = self._of_rows.get(names)
        if inner is None:
            if len(self._of_rows) >= MOST_SETS:
                self._num_replayed += self._of_rows.pop(next(iter(self._of_rows))).num_replayed
            inner = self._of_rows[names] = Engine(SparseRows(names))
            inner.not_replayed = self.not_replayed
        assert inner._rows is not None
        inner.executors = self.executors
        outcome = inner.step(tx, step, inner._rows.take(received), state, params, lent)
        self.last, self.reason = inner.last, inner.reason
        if outcome is not None:
            outcome.commit.after(partial(self._tell, inner))
        return outcome

    def _tell(self, inner: Engine) -> None:
        """A step was written by an engine of rows: what is told of it."""
        self.last, self.ran, self.reason = inner.last, inner.ran, inner.reason

    def _replayed(self, request: Request) -> Outcome | None:
        """What the step comes to, if it can be replayed: then the links need not run."""
        found = self._replays.find(request)
        if found is None:
            return None
        (replay, values), commit = found, Commit()
        self._buffers.begin()
        state, notes = replay.prepared(values, request, commit)
        self.last, self.maps = replay.parts, replay.maps
        commit.after(partial(self._finish_replay, replay, state, request.params._data))
        return Outcome(replay.applies, state, notes, commit)

    def _finish_replay(self, replay: Replay, state: Links, weights: list[torch.Tensor]) -> None:
        """A step that ran again was written."""
        if replay.applies:
            written = replay.written
            _torch.increment_version(weights if written is None else [weights[i] for i in written])
        self._buffers.settle(state)
        self._replays.replayed(replay)
        self._finish(state, "")

    def count_only(self, before: Links, state: Links) -> None:
        """A micro-batch was added to the open window, for which there was nothing to run."""
        self.num_counted += 1
        self.last = []
        if before is self._state:
            self._state = state
            self._buffers.settle(state)

    def forget(self) -> None:
        """A step did not come to its end: what it has left in plans, columns and replays is not to be trusted."""
        self._layout = None
        for inner in self._of_rows.values():
            inner.forget()

    def _finish(self, state: Links, why: str) -> None:
        """The step was written: the next one begins at its state. `why` it was recorded, or "" where it ran again."""
        self.reason, self._state = "", state
        if self.last:
            self.ran, self.ran_maps = self.last, self.maps
        if why:
            self.count(why)
        else:
            self._num_replayed += 1

    def count(self, why: str) -> None:
        """One more step that did not run again."""
        known = why in self.not_replayed or len(self.not_replayed) < MOST_REASONS
        self.not_replayed[why if known else "other reasons"] += 1

    def _recorded(self, request: Request) -> Outcome:
        """The step on a tape; with its numbers, if it may be one that will be run again."""
        why = self._why_without_numbers(request)
        if not why:
            try:
                return self._prepared(request, self._record(request, with_numbers=True))
            except Exception as error:  # whatever it is, it shows again without the numbers
                self._replays.failed()
                why = f"recording its numbers failed: {type(error).__name__}: {error}"
            finally:
                self._inputs = None
        return self._prepared(request, self._record(request), why)

    def _why_without_numbers(self, request: Request) -> str:
        """Why the coming step is recorded without its numbers; "" if they are recorded too."""
        if self.captured is not None:
            return "it goes into a graph"
        if numbers_on(self.executors) is not None:
            return "its numbers lie on a device"
        return self._replays.why_not(request)

    def _ledger(self, request: Request, with_numbers: bool) -> Callable[[list[Any], list[Any]], Ledger] | None:
        """What makes the ledger of a step's numbers; None where they are plain."""
        device = numbers_on(self.executors)
        if device is not None:
            return partial(DeviceLedger, device=device, closed=self.captured is not None)
        return partial(HostLedger, step=request.step) if with_numbers else None

    def _record(self, request: Request, with_numbers: bool = False) -> Recording:
        assert self._layout is not None
        params, step = request.params, request.step
        self.last = []  # a recording that failed may have reduced
        self._meetings.anew()
        ledger = self._ledger(request, with_numbers)
        tape = self.tape(self._reduce, self._compute, self._layout, self._fresh, self._settle, ledger)
        self.maps = tape.maps
        inputs = self._inputs = ReplayInputs.of(tape.ledger, request) if isinstance(tape.ledger, HostLedger) else None
        weights = tape.leaf("param", params)
        step = step._replace(params=weights)
        if step.evaluate is not None:
            step = step._replace(evaluate=_evaluating(tape, step.evaluate))
        if self.captured is not None:
            step = step._replace(buffers=_no_buffers)
        lazy = mapped(request.state, lambda tensors: tape.leaf("state", tensors))
        if inputs is not None:
            step, lazy = inputs.facts(step), inputs.state(lazy)
        notes = Notes(step)
        out, new = request.tx.update(tape.leaf("grad", request.grads), lazy, Context.of(step, notes))
        roots = roots_of(tape, lazy, new)
        written: Index | None = None
        own = out if isinstance(out, Weights) and out.write is not None else None
        if own is not None:
            if self.captured is not None:
                raise Unrecorded("a link writes the weights in place, by code that is no kernel")
            written = own.index
        elif out is not None:
            made = tape.leaf("extra", out.tensors if isinstance(out, Weights) else out)
            if tape.is_odd(made.node):
                raise Unrecorded("updates have other shapes than the weights")
            target = tape.leaf("extra", made if isinstance(out, Weights) else weights + made)
            roots.append((weights.node, target.node))
            written = target.index
        return Recording(request.tx, tape, step, notes, lazy, new, roots, written, inputs, own)

    def _prepared(self, request: Request, recorded: Recording, why: str = "") -> Outcome:
        """The kernels of a recorded step, ready to run: what it comes to. `why` its numbers were not recorded."""
        tape, roots, written, commit = recorded.tape, recorded.roots, recorded.written, Commit()
        self._buffers.begin()
        stored: Links = restored(
            request.state,
            recorded.new,
            tape.ledger,
            lambda value, before: self._whole(value, before, request.received, roots, written is None),
        )
        own = recorded.own
        late = [] if own is None else tape.following(own.tensors, roots)
        parts = self._write(tape, [root for root in roots if root not in late] if late else roots, commit)
        if own is not None and own.write is not None:
            commit.once(own.write(tape.spared(request.lent)))
            self._write(tape, late, commit)
        if self.captured is not None:
            commit.add(self.captured.complete())
        commit.after(partial(self._buffers.settle, stored))
        where: list[int] | None = None
        if written is not None:
            data, position = request.params._data, request.params.index.position
            where = None if written is request.params.index else [position[n] for n in written]
            commit.after(partial(_torch.increment_version, data if where is None else [data[i] for i in where]))
        if isinstance(tape.ledger, DeviceLedger):
            commit.after(tape.ledger.open)  # what was recorded may be read from here on
        if recorded.inputs is not None:
            why = self._keep_replay(request, recorded, stored, parts, where, commit)
        commit.after(partial(self._finish, stored, why))
        return Outcome(written is not None, stored, recorded.notes, commit)

    def _keep_replay(
        self, request: Request, recorded: Recording, stored: Links, parts: list[Part], where: list[int] | None,
        commit: Commit,
    ) -> str:  # fmt: skip
        """Keep a step that was recorded with its numbers, if those are all there is. Why it was recorded."""
        tape, notes, ledger = recorded.tape, recorded.notes, recorded.tape.ledger
        assert ledger is not None
        plain = [{n: ledger.without_ledger(v) for n, v in noted.items()} for noted in (notes.records, notes.used)]
        calls = partial(self._calls, parts, tape)
        replay = replay_of(request, recorded, stored, calls, where, list(self.last))
        notes.records, notes.used = plain
        if isinstance(replay, str):
            self._replays.failed()
            return replay
        commit.after(partial(self._replays.add, replay))
        return "the first of their kind"

    def _calls(self, parts: list[Part], tape: Tape) -> list[Call]:
        """Parts as they can be run again."""
        ledger, lent, column = tape.ledger, self._lent, self._column
        assert isinstance(ledger, HostLedger)
        return [Call.of(part, tape, ledger, lent, partial(column, tape, names=part.names)) for part in parts]

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, ()  # plans hold addresses: a copy makes its own

    @property
    def num_replayed(self) -> int:
        """How many steps were run again from their numbers."""
        return self._num_replayed + sum(inner.num_replayed for inner in self._of_rows.values())

    @property
    def num_plans(self) -> int:
        """How many structures of a step, or of a part of one, are planned."""
        return len(self._plans) + sum(inner.num_plans for inner in self._of_rows.values())

    # storage

    def _layout_of(self, params: EagerTensors) -> Layout:
        layout, adapted_to = self._layout, (self.executors, variable())
        if layout is not None and adapted_to == self._adapted and layout.still(params):
            return layout
        executors = adapted(self.executors, params._data[0].device if params._data else torch.device("cpu"))
        if executors is not self.executors:
            self.executors, self._layout = executors, None  # what is planned is for the others
        self._adapted = (executors, adapted_to[1])
        if self._layout is None or not self._layout.still(params):
            self._layout = self.layout(params)
            self._plans.begin(self._layout, self.executors)
            self._columns.clear()
            self._buffers.clear()
            self._state = None  # it has to follow the weights' new strides
            self._replays.forget()
        return self._layout

    def _column(self, tape: Tape, leaf: int, names: tuple[str, ...]) -> Column:
        """A leaf's tensors, row by row. Those of weights and state stay; those of gradients are new each step."""
        tensors, kind = tape.leaves[leaf], tape.ops[leaf][1]
        kept: dict[Any, Any] = tape.columns if kind in ("grad", "extra") else self._columns
        key = (kind if kind == "param" else id(tensors), names)
        found = kept.get(key)
        if found is None:
            data, position = tensors._data, tensors.index.position
            rows = data if names == tensors.index.names else [data[position[n]] for n in names]
            found = kept[key] = (tensors, Column(rows, self._lent or kind == "extra", kept is self._columns))
        column: Column = found[1]
        return column

    # parts

    def _mean(self, over_ranks: Callable[[Any], Any], value: Any) -> Any:
        """The mean of a number over ranks, for which they meet once."""
        number = self._meetings.next("mean")

        def meet(mine: Any) -> Any:
            return self._meetings.once(number, lambda: self._meetings.together(lambda: over_ranks(mine)))

        if self._inputs is None:
            return meet(value)
        ledger = self._inputs.ledger
        return ledger.handle(ledger.meets(meet, value))

    def _arguments(self, part: Part, tape: Tape) -> tuple[list[Column], list[Any], Sequence[Any]]:
        """What a part runs on: columns, numbers, and numbers per row."""
        program = part.program
        self.last.append(part)
        columns = [self._column(tape, leaf, part.names) for leaf in program.columns]
        scalars = [tape.scalars[cell] for cell in program.scalars]
        return columns, scalars, part.rows([tape.entries[cell] for cell in program.entries]) if program.entries else ()

    def _run(self, part: Part, tape: Tape) -> Any:
        """Run a part now: it reduces, or writes memory that nobody has seen."""
        arguments = self._arguments(part, tape)
        if self.captured is not None:
            return self.captured.run(part.runner, part.executor, *arguments)
        if isinstance(tape.ledger, DeviceLedger):
            return part.runner.launch(*arguments)  # type: ignore[attr-defined]  # see numbers_on
        return part.runner.run(*arguments)

    def _write(self, tape: Tape, roots: list[tuple[int, int]], commit: Commit) -> list[Part]:
        """Have each node written over its leaf when the step is. What does it."""
        self._settle(tape)
        key = (tuple(tape.ops), tuple(roots), tuple(map(id, tape.indices)), *arithmetic(tape))
        parts = self._plans.under(tape, key, lambda: self._plans.stores(tape, roots, range(len(tape.ops))))
        for part in parts:
            if self.captured is not None:
                self._run(part, tape)  # into the graph, or checked against it
            else:
                part.runner.write(commit, *self._arguments(part, tape))
        return parts

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced | DeviceReduced:
        """Reduce a node now, over every entry it has."""
        self._settle(tape)
        index, reach = tape.indices[node], tape.reach(node)
        parts = self._plans.under(
            tape, (kind, node, *structure(tape, reach)), lambda: self._plans.reductions(tape, node, kind, reach)
        )
        if isinstance(tape.ledger, DeviceLedger):
            reduced = over_classes([(part.names, self._run(part, tape)) for part in parts], kind, tape.ledger.device)
            return reduced if self.captured is None else self.captured.reduced(reduced)
        places = [None if part.names == index.names else [index.position[n] for n in part.names] for part in parts]
        rows: Any = rows_of_classes([self._run(part, tape) for part in parts], places, len(index))
        if self._inputs is not None:
            calls = self._calls(parts, tape)
            rows = replayed_reduction(self._inputs.ledger, self._inputs.memo, calls, places, len(index), rows)
        return Reduced(index.names, rows)

    def _fresh(self, tape: Tape, index: Index, shapes: Shapes | None, dtypes: list[torch.dtype]) -> EagerTensors:
        """Memory for entries that a kernel fills."""
        assert self._layout is not None
        made: EagerTensors = tape.in_memory(partial(fresh, index, self._layout, shapes, dtypes))
        return made

    def _compute(self, tape: Tape, node: int) -> EagerTensors:
        """A node's tensors in memory that is theirs, in the compute dtype."""
        self._settle(tape)
        reach = tape.reach(node)
        out = self._fresh(tape, tape.indices[node], tape.shapes[node], tape.dtypes(node))
        target = tape.leaf("extra", out, laid=True).node
        key = ("compute", node, target, *structure(tape, reach))
        parts = self._plans.under(tape, key, lambda: self._plans.stores(tape, [(target, node)], [*reach, target]))
        self._fill(tape, [out], parts)
        return out

    def _settle(self, tape: Tape) -> None:
        """Compute the reductions along dimensions that are pending, as many as can be in each pass."""
        while tape.pending:
            wanted = tape.one_pass()
            reach = sorted({i for one in wanted for i in tape.reach(one.node)})
            leaves = [one.leaf for one in wanted]
            key = ("along", *((one.kind, one.node, one.leaf) for one in wanted), *structure(tape, [*reach, *leaves]))
            parts = self._plans.under(tape, key, partial(self._plans.along, tape, wanted, reach))
            self._fill(tape, [tape.leaves[leaf] for leaf in leaves], parts)

    def _fill(self, tape: Tape, outs: list[EagerTensors], parts: list[Part]) -> None:
        """Run what fills tensors, now and whenever the step is run again."""
        for part in parts:
            self._run(part, tape)
        if isinstance(tape.ledger, HostLedger):
            replayed_computation(tape.ledger, outs, self._calls(parts, tape))

    def _whole(
        self, value: Lazy, before: Any, received: EagerTensors, roots: list[tuple[int, int]], held: bool
    ) -> EagerTensors:
        """The tensors of a field that is replaced as a whole."""
        tape, kind = value.tape, value.tape.ops[value.node]
        if self._rows is not None:
            self._rows.check_window(value.index)
        if not len(value) or kind == ("leaf", "grad"):
            # a window keeps the gradients themselves; where weights are written a kernel may overwrite those
            kept: EagerTensors = tape.in_memory(partial(window_of, value.index, not held and len(value) > 0), received)
            return kept
        if kind[0] == "leaf":
            return value.computed()
        assert self._layout is not None
        dtypes = tape.dtypes(value.node)
        place: EagerTensors = tape.in_memory(
            partial(self._buffers.place, self._layout, value.index, value.shapes, dtypes), before
        )
        roots.append((tape.leaf("extra", place, laid=True).node, value.node))
        return place


def _no_buffers() -> Any:
    raise Unrecorded("a link reads the model's buffers, which torch computes with outside its kernels")


def _evaluating(tape: Tape, evaluate: Callable[[Tensors, str], tuple[Any, Tensors]]) -> Any:
    """`evaluate` for links that run on a tape: it takes weights from memory, and gives gradients to the tape."""

    def on_tape(weights: Tensors, address: str) -> tuple[Any, Tensors]:
        loss, grads = evaluate(weights.computed() if isinstance(weights, Lazy) else weights, address)
        return loss, tape.leaf("extra", grads)

    return on_tape
