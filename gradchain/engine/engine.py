"""One step of a chain: recorded, found or planned, and run in place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradchain.core.chain import chain
from gradchain.core.context import Context, Run
from gradchain.core.eager import EagerTensors
from gradchain.core.state import Links, State
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights
from gradchain.engine.build import NoKernel
from gradchain.engine.layout import Layout, addresses
from gradchain.engine.lower import Lowering, Program
from gradchain.engine.native import Items, Kernel
from gradchain.engine.record import Lazy, Reduced, Tape, Unrecorded

MOST_PLANS = 64


@dataclasses.dataclass
class Part:
    """The program of one class of parameters.

    Attributes:
        names: the class.
        kernel: its compiled program.
        items: its rows cut into items.
        program: what it computes, over the nodes and slots of a tape of this structure.
    """

    names: tuple[str, ...]
    kernel: Kernel
    items: Items
    program: Program


class Engine:
    """Runs a chain on one set of parameters, keeping the plans it made."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._plans: dict[Any, list[Part]] = {}
        self._kernels: dict[Any, Kernel] = {}
        self._columns: dict[tuple[int, tuple[str, ...]], tuple[EagerTensors, Any]] = {}
        self._state: Links | None = None
        self.reason = ""  # why the last step ran by the reference; "" if it did not

    def step(
        self, tx: chain, received: Tensors, state: Links, params: EagerTensors, run: Run, context: Callable[[Run], Context]
    ) -> tuple[bool, Links] | None:
        """Run the chain and write what it says. Returns whether it was applied and the new state; None if it cannot.

        Args:
            tx: the chain.
            received: the gradients.
            state: the chain's state; its tensors are written.
            params: the weights; they are written.
            run: what is known of this update; what links leave behind is put into it.
            context: makes the context of a run.
        """
        try:
            return self._step(tx, received, state, params, run, context)
        except (Unrecorded, NoKernel) as reason:
            self.reason = str(reason)
            return None

    def _step(
        self, tx: chain, received: Tensors, state: Links, params: EagerTensors, run: Run, context: Callable[[Run], Context]
    ) -> tuple[bool, Links]:
        assert isinstance(received, EagerTensors)
        layout = self._laid_out(params)
        if state is not self._state:  # it came from elsewhere: a load, a reset, a step by the reference
            self._columns.clear()
            state = _mapped(state, lambda tensors: layout.state(tensors))
        tape = Tape(self._reduce, self._compute)
        grads = layout.gradients(received)
        weights = tape.leaf("param", params)
        trial = copy.copy(run)
        trial.records, trial.used = {}, {}
        ctx = context(trial)
        trial.params = weights
        lazy = _mapped(state, lambda tensors: tape.leaf("state", tensors))
        out, new = tx.update(tape.leaf("grad", grads), lazy, ctx)
        roots = _roots(tape, lazy, new)
        if out is not None:
            target = tape.leaf("extra", out.tensors if isinstance(out, Weights) else weights + out)
            roots.append((weights.node, target.node))
        settled = _restored(state, new, tape, received)
        for part in self._planned(tape, roots):  # from here on nothing may fail: it writes
            self._run(part, tape)
        if out is not None:
            torch.autograd.graph.increment_version(layout.tensors)
        for name in ("records", "used", "held", "detail", "loss", "scaled"):
            setattr(run, name, getattr(trial, name))
        self.reason, self._state = "", settled
        return out is not None, settled

    # storage

    def _laid_out(self, params: EagerTensors) -> Layout:
        if self._layout is None or not self._layout.still(params):
            self._layout = Layout(params)
            self._plans.clear()
            self._columns.clear()
        return self._layout

    def _column(self, tape: Tape, leaf: int, names: tuple[str, ...]) -> Any:
        """The addresses of a leaf's entries. Those of weights and state stay; those of gradients are new each step."""
        tensors, kind = tape.leaves[leaf], tape.ops[leaf][1]
        kept: dict[Any, Any] = tape.columns if kind in ("grad", "extra") else self._columns
        key = (kind if kind == "param" else id(tensors), names)
        found = kept.get(key)
        if found is None:
            data, position = tensors._data, tensors.index.position
            rows = data if len(names) == len(data) else [data[position[n]] for n in names]
            found = kept[key] = (tensors, addresses(rows))
        return found[1]

    # plans

    def _planned(self, tape: Tape, roots: list[tuple[int, int]]) -> list[Part]:
        key = (tuple(tape.ops), tuple(roots), tuple(map(id, tape.indices)), self._state_dtypes(tape))
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.pop(next(iter(self._plans)))
            found = self._plans[key] = self._made(tape, roots, range(len(tape.ops)))
        return found

    def _state_dtypes(self, tape: Tape) -> tuple[Any, ...]:
        return tuple(
            tensors._data[0].dtype if tensors._data else None
            for leaf, tensors in tape.leaves.items()
            if tape.ops[leaf][1] == "state"
        )

    def _made(self, tape: Tape, roots: list[tuple[int, int]], nodes: Any) -> list[Part]:
        parts = []
        for names in self._classes(tape, nodes):
            lowering = Lowering(tape, names[0])
            for leaf, node in roots:
                if names[0] in tape.indices[node] and names[0] in tape.indices[leaf]:
                    lowering.store(leaf, node)
            if lowering.program.stores:
                parts.append(self._part(tape, names, lowering.program))
        return parts

    def _classes(self, tape: Tape, nodes: Any) -> list[tuple[str, ...]]:
        """Parameters that see the same operations in the same dtypes."""
        assert self._layout is not None
        whole = self._layout.index
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
        key = repr((program.instructions, program.stores, program.reduce, len(program.scalars), len(program.entries), dtypes))
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = Kernel(program, dtypes)
        position = self._layout.index.position
        items = Items([self._layout.sizes[position[n]] for n in names])
        return Part(names, kernel, items, program)

    def _run(self, part: Part, tape: Tape) -> Any:
        program = part.program
        columns = [self._column(tape, leaf, part.names) for leaf in program.columns]
        scalars = [tape.scalars[slot] for slot in program.scalars]
        entries = [tape.entries[slot][n] for n in part.names for slot in program.entries] if program.entries else []
        return part.kernel.run(part.items, columns, scalars, entries)

    def _reduce(self, tape: Tape, node: int, kind: str) -> Reduced:
        """Reduce a node now, over every entry it has."""
        reach = _reachable(tape, node)
        key = (kind, tuple((i, tape.ops[i], id(tape.indices[i])) for i in reach))
        parts = self._plans.get(key)
        index = tape.indices[node]
        if parts is None:
            parts = []
            for names in self._classes(tape, reach):
                if names[0] not in index:
                    continue
                lowering = Lowering(tape, names[0])
                lowering.reduce(kind, node)
                parts.append(self._part(tape, names, lowering.program))
            self._plans[key] = parts
        if len(parts) == 1 and parts[0].items.count == len(index) and parts[0].names == index.names:
            return Reduced(index.names, list(self._run(parts[0], tape)))
        rows = [0.0] * len(index)
        for part in parts:
            partial = self._run(part, tape)
            at = [index.position[n] for n in part.names]
            for row, value in zip(part.items.row_of, partial, strict=True):
                i = at[row]
                rows[i] = (max(rows[i], value) if value == value else value) if kind == "max" else rows[i] + value
        return Reduced(index.names, rows)


    def _compute(self, tape: Tape, node: int) -> EagerTensors:
        """A node's tensors in memory that is theirs, in the compute dtype."""
        assert self._layout is not None
        index, layout = tape.indices[node], self._layout
        reach = _reachable(tape, node)
        position = layout.index.position
        made = []
        for name in index.names:
            weight = layout.tensors[position[name]]
            made.append(torch.empty_like(weight, dtype=torch.float32 if weight.element_size() == 2 else weight.dtype))
        out = EagerTensors(index, made)
        target = tape.leaf("extra", out)
        key = ("compute", node, tuple((i, tape.ops[i], id(tape.indices[i])) for i in reach))
        parts = self._plans.get(key)
        if parts is None:
            parts = self._plans[key] = self._made(tape, [(target.node, node)], [*reach, target.node])
        for part in parts:
            self._run(part, tape)
        return out


def _reachable(tape: Tape, node: int) -> list[int]:
    seen, todo = set(), [node]
    while todo:
        now = todo.pop()
        if now not in seen:
            seen.add(now)
            todo += [o for o in tape.ops[now][1:] if isinstance(o, int)]
    return sorted(seen)


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


def _restored(state: Any, new: Any, tape: Tape, received: EagerTensors) -> Any:
    """`new` with the tensors of `state`, which now hold the new values, in place of nodes."""
    changes: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Lazy):
            if name in new.whole:
                of_gradients = not len(value) or tape.ops[value.node] == ("leaf", "grad")
                changes[name] = received.select(value.index) if of_gradients else value.computed()
            else:
                changes[name] = getattr(state, name)
    links = getattr(new, "links", None)
    if links is not None:
        changes["links"] = {n: _restored(state.links[n], inner, tape, received) for n, inner in links.items()}
    return new.replace(**changes) if changes else new
