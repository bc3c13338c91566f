"""One step of a chain: recorded, found or planned, and run in place."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec

import torch

from gradchain.core.chain import chain
from gradchain.core.context import Context, Run
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.blocks import Blocks
from gradchain.engine.executor import Column, Executor, NoKernel, Runner
from gradchain.engine.layout import Layout
from gradchain.engine.lower import Lowering, Program
from gradchain.engine.native import Native
from gradchain.engine.patterns import Patterns
from gradchain.engine.record import Lazy, Reduced, Tape, Unrecorded
from gradchain.engine.windows import Windows

MOST_PLANS = 64

P = ParamSpec("P")

_DEFAULT: tuple[Executor, ...] = (Native(), Patterns(), Blocks())


@dataclasses.dataclass
class Part:
    """The program of one class of parameters.

    Attributes:
        names: the class.
        program: what it computes, over the nodes and slots of a tape of this structure.
        runner: the program made ready by an executor.
        executor: that executor's name.
        refused: why executors that come before it could not.
        dtypes: of the program's columns.
    """

    names: tuple[str, ...]
    program: Program
    runner: Runner
    executor: str
    refused: dict[str, str]
    dtypes: tuple[torch.dtype, ...]

    @property
    def bytes_read(self) -> int:
        """Per element."""
        return sum(self.dtypes[i].itemsize for i in self.program.loads())

    @property
    def bytes_written(self) -> int:
        """Per element."""
        return sum(self.dtypes[column].itemsize for column, _ in self.program.stores)


@dataclasses.dataclass
class Plan:
    """The programs for one structure of a step. Holds the indices its key refers to by identity."""

    parts: list[Part]
    indices: tuple[Index, ...]


def _none_where_it_cannot(
    step: Callable[Concatenate[Engine, P], tuple[bool, Links]],
) -> Callable[Concatenate[Engine, P], tuple[bool, Links] | None]:
    """The step, which gives None and keeps the reason where a chain cannot be recorded or no executor can run it."""

    @functools.wraps(step)
    def tried(self: Engine, /, *args: P.args, **kwargs: P.kwargs) -> tuple[bool, Links] | None:
        try:
            return step(self, *args, **kwargs)
        except (Unrecorded, NoKernel) as reason:
            self.reason = str(reason)
            return None

    return tried


class Engine:
    """Runs a chain on one set of parameters, keeping the plans it made."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self.executors: tuple[Executor, ...] = _DEFAULT
        self._plans: dict[Any, Plan] = {}
        self._columns: dict[Any, tuple[EagerTensors, Column]] = {}
        self._state_dtypes: tuple[Any, ...] = ()
        self._state: Links | None = None
        self._windows = Windows()
        self._lent = False
        self.last: list[Part] = []  # what the last step ran, in order
        self._warned = False
        self.reason = ""  # why the last step ran by the reference; "" if it did not

    @_none_where_it_cannot
    def step(
        self,
        tx: chain,
        received: Tensors,
        state: Links,
        params: EagerTensors,
        run: Run,
        context: Callable[[Run], Context],
        lent: bool,
    ) -> tuple[bool, Links]:
        """Run the chain and write what it says. Returns whether it was applied and the new state; None if it cannot.

        Args:
            tx: the chain.
            received: the gradients.
            state: the chain's state; its tensors are written.
            params: the weights; they are written.
            run: what is known of this update; what links leave behind is put into it.
            context: makes the context of a run.
            lent: whether the gradients stay the user's.
        """
        assert isinstance(received, EagerTensors)
        self._lent, self.last = lent, []
        if not self.executors:  # else a step that writes nothing would still be recorded
            raise Unrecorded("no executor may run it")
        layout = self._laid_out(params)
        if state is not self._state:  # it came from elsewhere: a load, a reset, a step by the reference
            self._columns.clear()
            self._windows.clear()
            taken = set(layout.pointers)  # memory that something else writes, or that is written for another field
            state = _mapped(state, lambda tensors: layout.state(tensors, taken))
            self._state_dtypes = tuple(_dtypes(state))
        tape = Tape(self._reduce, self._compute, layout.state)
        grads = layout.gradients(received)
        weights = tape.leaf("param", params)
        trial = copy.copy(run)
        trial.records, trial.used = {}, {}
        trial.evaluate = None if run.evaluate is None else _evaluating(tape, run.evaluate)
        ctx = context(trial)
        trial.params = weights
        lazy = _mapped(state, lambda tensors: tape.leaf("state", tensors))
        out, new = tx.update(tape.leaf("grad", grads), lazy, ctx)
        roots = _roots(tape, lazy, new)
        if out is not None:
            target = tape.leaf("extra", out.tensors if isinstance(out, Weights) else weights + out)
            roots.append((weights.node, target.node))
        self._windows.begin()
        settled = self._restored(state, new, tape, received, roots, out is None)
        key = (tuple(tape.ops), tuple(roots), tuple(map(id, tape.indices)))
        parts = self._planned(tape, key, lambda: self._stores(tape, roots, range(len(tape.ops))))
        for part in parts:  # from here on nothing may fail: it writes
            self._run(part, tape)
        self._windows.settle()
        if out is not None:
            written, position = target.index, params.index.position
            whole = written is params.index
            torch.autograd.graph.increment_version(
                params._data if whole else [params._data[position[n]] for n in written]
            )
        for name in ("records", "used", "held", "detail", "loss", "scaled"):
            setattr(run, name, getattr(trial, name))
        self.reason, self._state = "", settled
        return out is not None, settled

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, ()  # plans hold addresses: a copy makes its own

    @property
    def num_plans(self) -> int:
        """How many structures of a step, or of a part of one, are planned."""
        return len(self._plans)

    # storage

    def _laid_out(self, params: EagerTensors) -> Layout:
        if self._layout is None or not self._layout.still(params):
            self._layout = Layout(params)
            self._plans.clear()
            self._columns.clear()
            self._windows.clear()
            self._state = None  # it has to follow the weights' new strides
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
        key = (*key, self._state_dtypes, *_extra_dtypes(tape))
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

    def _run(self, part: Part, tape: Tape) -> Any:
        program = part.program
        self.last.append(part)
        columns = [self._column(tape, leaf, part.names) for leaf in program.columns]
        scalars = [tape.scalars[slot] for slot in program.scalars]
        entries = [tape.entries[slot][n] for n in part.names for slot in program.entries] if program.entries else []
        return part.runner.run(columns, scalars, entries)

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced:
        """Reduce a node now, over every entry it has."""
        index, reach = tape.indices[node], tape.reach(node)
        parts = self._planned(
            tape, (kind, node, *_structure(tape, reach)), lambda: self._reductions(tape, node, kind, reach)
        )
        if len(parts) == 1 and parts[0].names == index.names:
            return Reduced(index.names, self._run(parts[0], tape))
        rows = [0.0] * len(index)
        for part in parts:
            for name, value in zip(part.names, self._run(part, tape), strict=True):
                rows[index.position[name]] = value
        return Reduced(index.names, rows)

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
        key = ("compute", node, target, *_structure(tape, reach))
        for part in self._planned(tape, key, lambda: self._stores(tape, [(target, node)], [*reach, target])):
            self._run(part, tape)
        return out

    def _restored(
        self, state: Any, new: Any, tape: Tape, received: EagerTensors, roots: list[tuple[int, int]], held: bool
    ) -> Any:
        """`new` with tensors in place of nodes: those of `state`, or others for what is replaced as a whole.

        They will hold the new values once the roots are written.
        """
        changes: dict[str, Any] = {}
        for name, value in new.items():
            if isinstance(value, Lazy):
                before = getattr(state, name)
                changes[name] = before if name not in new.whole else self._whole(value, before, received, roots, held)
        links = getattr(new, "links", None)
        if links is not None:
            changes["links"] = {
                n: self._restored(state.links[n], inner, tape, received, roots, held) for n, inner in links.items()
            }
        return new.replace(**changes) if changes else new

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


def difference(before: list[tuple[Any, ...]], key: tuple[Any, ...]) -> str:
    """What is another thing in this key than in the one before."""
    if not before:
        return "This one is the first of its kind."
    old, new = before[0], key
    old_ops, new_ops = (
        k[0] if isinstance(k[0], tuple) else tuple(n[1] for n in k[2:] if isinstance(n, tuple)) for k in (old, new)
    )
    for i, (a, b) in enumerate(zip(old_ops, new_ops, strict=False)):
        if a != b:
            return f"The last two differ in operation {i}: {a[0]!r} before, {b[0]!r} now."
    if len(old_ops) != len(new_ops):
        return f"The last two have {len(old_ops)} and {len(new_ops)} operations."
    return "The last two have the same operations over other parameters: see which have a gradient or pass a mask."


def _evaluating(tape: Tape, evaluate: Callable[[Tensors, str], tuple[Any, Tensors]]) -> Any:
    """`evaluate` for links that run on a tape: it takes weights from memory, and gives gradients to the tape."""

    def on_tape(weights: Tensors, address: str) -> tuple[Any, Tensors]:
        loss, grads = evaluate(weights.computed() if isinstance(weights, Lazy) else weights, address)
        return loss, tape.leaf("extra", grads)

    return on_tape


def _structure(tape: Tape, nodes: Iterable[int]) -> tuple[Any, ...]:
    """What some nodes of a tape are, apart from the numbers in it."""
    return tuple((i, tape.ops[i], id(tape.indices[i])) for i in nodes)


def _dtypes(state: State) -> Iterator[torch.dtype]:
    """The dtypes of everything in a state that is per parameter."""
    for name, value in state.items():
        if isinstance(value, EagerTensors) and name not in state.whole:
            yield from (t.dtype for t in value._data)
    for inner in getattr(state, "links", {}).values():
        yield from _dtypes(inner)


def _extra_dtypes(tape: Tape) -> Iterator[torch.dtype]:
    """The dtypes of tensors that links brought onto the tape."""
    for leaf, tensors in tape.leaves.items():
        if tape.ops[leaf][1] == "extra":
            yield from (t.dtype for t in tensors._data)


def _mapped(state: State, change: Callable[[Tensors], Tensors]) -> Any:
    """`state` with every Tensors of parameters changed; those that come and go are left as they are."""
    changes: dict[str, Any] = {
        name: change(value) for name, value in state.items() if isinstance(value, Tensors) and name not in state.whole
    }
    links = getattr(state, "links", None)
    if links is not None:
        changes["links"] = {name: _mapped(inner, change) for name, inner in links.items()}
    return state.replace(**changes) if changes else state


def _roots(tape: Tape, old: Any, new: Any) -> list[tuple[int, int]]:
    """(leaf, node): what is written over which field of the state."""
    roots = []
    for name, before in old.items():
        after = getattr(new, name)
        if not isinstance(before, Lazy) or after is before:
            continue
        after = tape.leaf("extra", after)
        if after.node != before.node:
            roots.append((before.node, after.node))
    for name, inner in getattr(old, "links", {}).items():
        roots += _roots(tape, inner, new.links[name])
    return roots
