"""One step of a chain: recorded, found or planned, and run in place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec

import torch

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.state import Links
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.captured import Captured
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import Executor, NoKernel
from gradchain.engine.executors.devices import adapted, chosen, numbers_on
from gradchain.engine.operations import Unrecorded
from gradchain.engine.planning.buffers import Windows
from gradchain.engine.planning.layout import Layout
from gradchain.engine.planning.lower import Lowering, Program
from gradchain.engine.planning.plan import Part, Plan, arithmetic, difference, extra_dtypes, structure
from gradchain.engine.planning.rows import Column
from gradchain.engine.recording.leaves import dtypes, mapped, restored, roots_of
from gradchain.engine.recording.numbers import DeviceReduced, met
from gradchain.engine.recording.tape import Lazy, Reduced, Tape
from gradchain.engine.recording.trace import Trace
from gradchain.engine.replay import (
    Asked,
    Call,
    Given,
    Recorded,
    Reduction,
    Replays,
    can_trace,
    gathered,
    kept,
    ours,
    traced,
)

MOST_PLANS = 64

P = ParamSpec("P")


class Outcome(NamedTuple):
    """What a step comes to: whether weights are written, the new state, what links left, and what is to be written."""

    applied: bool
    state: Links
    notes: Notes
    commit: Commit


def _none_where_it_cannot(
    step: Callable[Concatenate[Engine, P], Outcome],
) -> Callable[Concatenate[Engine, P], Outcome | None]:
    """The step, which gives None and keeps the reason where a chain cannot be recorded or no executor can run it."""

    @functools.wraps(step)
    def tried(self: Engine, /, *args: P.args, **kwargs: P.kwargs) -> Outcome | None:
        try:
            return step(self, *args, **kwargs)
        except (Unrecorded, NoKernel) as reason:
            if self.captured is not None:
                raise self.captured.refusal(str(reason)) from None
            self.reason = str(reason)
            return None

    return tried


class Engine:
    """Runs a chain on one set of parameters, keeping the plans it made."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self.executors: tuple[Executor, ...] = chosen(torch.device("cpu"))
        self.captured: Captured | None = None  # what a step goes into that is captured, or comes from
        self._plans: dict[Any, Plan] = {}
        self._columns: dict[Any, tuple[EagerTensors, Column]] = {}
        self._state_dtypes: tuple[Any, ...] = ()
        self._state: Links | None = None
        self._windows = Windows()
        self._lent = False
        self._own: tuple[chain, bool] | None = None  # the chain, and whether its steps may be run without its links
        self._replays = Replays()
        self.num_replayed = 0  # steps that were run again from their numbers
        self.last: list[Part] = []  # what the last step ran, in order
        self._warned = False
        self.reason = ""  # why the last step ran by the reference; "" if it did not

    @_none_where_it_cannot
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
        self._lent, self.last = lent, []
        if self.captured is not None:
            self.captured.begin(received, step, lent)
        layout = self._laid_out(params)
        if state is not self._state:  # it came from elsewhere: a load, a reset, a step by the reference
            self._columns.clear()
            self._replays.forget()
            self._windows.clear()
            taken = set(layout.pointers)  # memory that something else writes, or that is written for another field
            state = mapped(state, lambda tensors: layout.state(tensors, taken))
            self._state_dtypes = tuple(dtypes(state))
        asked = Asked(tx, step, layout.gradients(received), state, params, lent)
        again = self._again(asked)
        if again is not None:
            return again
        recorded = self._recorded(asked)
        return self._prepared(recorded, received, state, params)

    def _again(self, asked: Asked) -> Outcome | None:
        """What the step comes to, if it is like one that was traced before: then the links need not run."""
        if not self._replays.any:
            return None
        commit = Commit()
        found = self._replays.again(asked, commit)
        if found is None:
            return None
        self.last, state, notes = found
        commit.after(partial(self._settle, state, again=True))
        return Outcome(True, state, notes, commit)

    def _settle(self, state: Links, again: bool = False) -> None:
        """The step was written: its state is where the next one begins."""
        self.reason, self._state = "", state
        self.num_replayed += again

    def _recorded(self, asked: Asked) -> Recorded:
        """The step on a tape; in a trace, if it may be one that will be run again."""
        if self._may_trace(asked.tx) and can_trace(asked.step):
            try:
                return self._record(asked, Trace(asked.step.clocks))
            except Exception:  # whatever it is, it shows again without the trace
                self._replays.keep(None)
        return self._record(asked, None)

    def _may_trace(self, tx: chain) -> bool:
        """Whether to trace the coming step: that is for links that are gradchain's own, and numbers of the host."""
        if self.captured is not None or numbers_on(self.executors) is not None:
            return False
        if self._own is None or self._own[0] is not tx:
            self._own = (tx, ours(tx))
        return self._own[1] and self._replays.wanted()

    def _record(self, asked: Asked, trace: Trace | None) -> Recorded:
        assert self._layout is not None
        params, step = asked.params, asked.step
        self.last = []  # a trace that failed may have reduced
        tape = Tape(self._reduce, self._compute, self._layout.state, trace, numbers_on(self.executors))
        if tape.numbers is not None:
            tape.numbers.closed = self.captured is not None
        weights = tape.leaf("param", params)
        step = step._replace(params=weights)
        if step.evaluate is not None:
            step = step._replace(evaluate=_evaluating(tape, step.evaluate))
        if self.captured is not None:
            step = step._replace(buffers=_no_buffers)
        lazy, given = mapped(asked.state, lambda tensors: tape.leaf("state", tensors)), Given()
        if trace is not None:
            trace.step = trace.step._replace(params=params)
            clocks: dict[str, Any] = {name: trace.number(value) for name, value in step.clocks.items()}
            step = step._replace(recorder=trace, clocks=clocks)
            lazy = traced(lazy, trace, given)
        notes = Notes(step)
        out, new = asked.tx.update(tape.leaf("grad", asked.grads), lazy, Context.of(step, notes))
        roots = roots_of(tape, lazy, new)
        written: Index | None = None
        if out is not None:
            target = tape.leaf("extra", out.tensors if isinstance(out, Weights) else weights + out)
            roots.append((weights.node, target.node))
            written = target.index
        return Recorded(asked.tx, tape, step, notes, lazy, given, new, roots, written)

    def _prepared(self, recorded: Recorded, received: EagerTensors, state: Links, params: EagerTensors) -> Outcome:
        """The kernels of a recorded step, ready to run: what it comes to."""
        tape, roots, written, commit = recorded.tape, recorded.roots, recorded.written, Commit()
        self._windows.begin()
        settled = restored(
            state,
            recorded.new,
            lambda value, before: self._whole(value, before, received, roots, written is None),
        )
        key = (tuple(tape.ops), tuple(roots), tuple(map(id, tape.indices)), *arithmetic(tape))
        parts = self._planned(tape, key, lambda: self._stores(tape, roots, range(len(tape.ops))))
        for part in parts:
            self._write(part, tape, commit)
        if self.captured is not None:
            commit.add(self.captured.complete())
        commit.after(self._windows.settle)
        where: list[int] | None = None
        if written is not None:
            data, position = params._data, params.index.position
            where = None if written is params.index else [position[n] for n in written]
            commit.add(partial(_torch.increment_version, data if where is None else [data[i] for i in where]))
        if tape.numbers is not None:
            commit.after(tape.numbers.open)  # what was recorded may be read from here on
        if tape.trace is not None:
            settled = self._kept(recorded, parts, where, settled)
        commit.after(partial(self._settle, settled))
        return Outcome(written is not None, settled, recorded.notes, commit)

    def _kept(self, recorded: Recorded, parts: list[Part], written: list[int] | None, settled: Links) -> Links:
        """The new state in plain numbers. Keeps a traced step for those to come, if its numbers are all there is."""
        settled, replay = kept(
            recorded, written, settled, self._lent, lambda: [self._call(p, recorded.tape) for p in parts]
        )
        if replay is not None:
            replay.parts = list(self.last)
        self._replays.keep(replay)
        return settled

    def _call(self, part: Part, tape: Tape) -> Call:
        """A part as it can be run again."""
        columns = [
            None if tape.ops[leaf][1] == "grad" else self._column(tape, leaf, part.names)
            for leaf in part.program.columns
        ]
        return Call.of(part, tape, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, ()  # plans hold addresses: a copy makes its own

    @property
    def num_plans(self) -> int:
        """How many structures of a step, or of a part of one, are planned."""
        return len(self._plans)

    # storage

    def _laid_out(self, params: EagerTensors) -> Layout:
        executors = adapted(self.executors, params._data[0].device if params._data else torch.device("cpu"))
        if executors is not self.executors:
            self.executors, self._layout = executors, None  # what is planned is for the others
        if self._layout is None or not self._layout.still(params):
            self._layout = Layout(params)
            self._plans.clear()
            self._columns.clear()
            self._windows.clear()
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
            rows = data if len(names) == len(data) else [data[position[n]] for n in names]
            found = kept[key] = (tensors, Column(rows, self._lent, kept is self._columns))
        column: Column = found[1]
        return column

    # plans

    def _planned(self, tape: Tape, key: tuple[Any, ...], make: Callable[[], list[Part]]) -> list[Part]:
        """The programs under a key, made if it is new."""
        key = (*key, self._state_dtypes, *extra_dtypes(tape))
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= MOST_PLANS:
                self._warn_of_many(key)
                self._plans.pop(next(iter(self._plans)))
            found = self._plans[key] = Plan(make(), tuple(tape.indices))
        return found.parts

    def _warn_of_many(self, key: tuple[Any, ...]) -> None:
        """Say once what keeps the steps from sharing plans."""
        if not self._warned:
            self._warned = True
            alike = [k for k in self._plans if len(k) > 1 and type(k[0]) is type(key[0])]
            warnings.warn(
                f"gradchain: {MOST_PLANS} plans were made for one chain and yet another is needed: its steps differ in "
                f"structure, not in numbers only, and each new one is compiled. {difference(alike[-1:], key)}",
                stacklevel=2,
            )

    def _stores(self, tape: Tape, roots: list[tuple[int, int]], nodes: Iterable[int]) -> list[Part]:
        """Programs that write each node over its leaf, over the part of the tape that `nodes` are."""
        parts = []
        for names in self._classes(tape, nodes):
            lowering = Lowering(tape, names[0])
            for leaf, node in roots:
                if names[0] in tape.indices[node] and names[0] in tape.indices[leaf]:
                    lowering.store(leaf, node)
            if lowering.program.stores:
                parts.append(self._part(tape, names, lowering.program))
        return parts

    def _classes(self, tape: Tape, nodes: Iterable[int]) -> list[tuple[str, ...]]:
        """Parameters that see the same operations in the same dtypes."""
        assert self._layout is not None
        whole, nodes = self._layout.index, list(nodes)
        partial = list({id(tape.indices[i]): tape.indices[i] for i in nodes if tape.indices[i] is not whole}.values())
        leaves = [tape.leaves[i] for i in nodes if i in tape.leaves]
        groups: dict[Any, list[str]] = {}
        for name in whole.names:
            dtypes = tuple(t._data[t.index.position[name]].dtype for t in leaves if name in t.index)
            groups.setdefault((tuple(name in index for index in partial), dtypes), []).append(name)
        return [tuple(names) for names in groups.values()]

    def _part(self, tape: Tape, names: tuple[str, ...], program: Program) -> Part:
        assert self._layout is not None
        dtypes = []
        for leaf in program.columns:
            tensors = tape.leaves[leaf]
            dtypes.append(tensors._data[tensors.index.position[names[0]]].dtype)
        position = self._layout.index.position
        sizes = [self._layout.sizes[position[n]] for n in names]
        refused: dict[str, str] = {}
        for executor in self.executors:
            reason = executor.legal(program, dtypes)
            if reason is None:
                try:
                    return Part(
                        names, program, executor.ready(program, dtypes, sizes), executor.name, refused, tuple(dtypes)
                    )
                except NoKernel as failure:
                    reason = str(failure)
            refused[executor.name] = reason
        raise NoKernel("; ".join(f"{name}: {reason}" for name, reason in refused.items()))

    def _arguments(self, part: Part, tape: Tape) -> tuple[list[Column], list[Any], Sequence[Any]]:
        """What a part runs on: columns, numbers, and numbers per row."""
        program = part.program
        self.last.append(part)
        columns = [self._column(tape, leaf, part.names) for leaf in program.columns]
        scalars = [tape.scalars[slot] for slot in program.scalars]
        return columns, scalars, part.rows([tape.entries[slot] for slot in program.entries]) if program.entries else ()

    def _run(self, part: Part, tape: Tape) -> Any:
        """Run a part now: it reduces, or writes memory that nobody has seen."""
        arguments = self._arguments(part, tape)
        if self.captured is not None:
            return self.captured.run(part.runner, part.executor, *arguments)
        if tape.numbers is not None:
            return part.runner.launch(*arguments)  # type: ignore[attr-defined]  # see numbers_on
        return part.runner.run(*arguments)

    def _write(self, part: Part, tape: Tape, commit: Commit) -> None:
        """Have a part run when the step is written."""
        if self.captured is not None:
            self._run(part, tape)  # into the graph, or checked against it
        elif tape.numbers is not None:
            commit.add(partial(part.runner.launch, *self._arguments(part, tape)))  # type: ignore[attr-defined]
        else:
            commit.add(partial(part.runner.run, *self._arguments(part, tape)))

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced | DeviceReduced:
        """Reduce a node now, over every entry it has."""
        index, reach = tape.indices[node], tape.reach(node)
        parts = self._planned(
            tape, (kind, node, *structure(tape, reach)), lambda: self._reductions(tape, node, kind, reach)
        )
        if tape.numbers is not None:
            reduced = met([(part.names, self._run(part, tape)) for part in parts], kind, tape.numbers.device)
            return reduced if self.captured is None else self.captured.reduced(reduced)
        places = [None if part.names == index.names else [index.position[n] for n in part.names] for part in parts]
        rows = gathered([self._run(part, tape) for part in parts], places, len(index))
        trace = tape.trace
        if trace is None:
            return Reduced(index.names, rows)
        reduction = Reduction([self._call(part, tape) for part in parts], places, len(index))
        return Reduced.traced(index.names, rows, reduction.noted(trace, rows))

    def _reductions(self, tape: Tape, node: int, kind: str, reach: list[int]) -> list[Part]:
        parts = []
        for names in self._classes(tape, reach):
            if names[0] in tape.indices[node]:
                lowering = Lowering(tape, names[0])
                lowering.reduce(kind, node)
                parts.append(self._part(tape, names, lowering.program))
        return parts

    def _compute(self, tape: Tape, node: int) -> EagerTensors:
        """A node's tensors in memory that is theirs, in the compute dtype."""
        assert self._layout is not None
        index, position, reach = tape.indices[node], self._layout.index.position, tape.reach(node)
        weights = [self._layout.tensors[position[name]] for name in index.names]
        dtypes = tape.dtypes(node)
        out = EagerTensors(index, [torch.empty_like(w, dtype=d) for w, d in zip(weights, dtypes, strict=True)])
        target = tape.leaf("extra", out).node
        key = ("compute", node, target, *structure(tape, reach))
        for part in self._planned(tape, key, lambda: self._stores(tape, [(target, node)], [*reach, target])):
            self._run(part, tape)
        return out

    def _whole(
        self, value: Lazy, before: Any, received: EagerTensors, roots: list[tuple[int, int]], held: bool
    ) -> EagerTensors:
        """The tensors of a field that is replaced as a whole."""
        tape, kind = value.tape, value.tape.ops[value.node]
        if not len(value) or kind == ("leaf", "grad"):
            kept = received.select(value.index)
            # a window keeps the gradients themselves; where weights are written a kernel may overwrite those
            return kept if held or not len(value) else kept.clone()  # type: ignore[return-value]
        if kind[0] == "leaf":
            return value.computed()
        assert self._layout is not None
        dtypes = tape.dtypes(value.node)
        place = self._windows.place(self._layout, value.index, dtypes, before)
        roots.append((tape.leaf("extra", place).node, value.node))
        return place


def _no_buffers() -> Any:
    raise Unrecorded("a link reads the model's buffers, which torch computes with outside its kernels")


def _evaluating(tape: Tape, evaluate: Callable[[Tensors, str], tuple[Any, Tensors]]) -> Any:
    """`evaluate` for links that run on a tape: it takes weights from memory, and gives gradients to the tape."""

    def on_tape(weights: Tensors, address: str) -> tuple[Any, Tensors]:
        loss, grads = evaluate(weights.computed() if isinstance(weights, Lazy) else weights, address)
        return loss, tape.leaf("extra", grads)

    return on_tape
