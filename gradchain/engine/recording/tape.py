"""Tensors that record what is done to them: the unchanged code of the links, run once per step, leaves a tape.

Operations go to the tape, numbers to a list of scalars, so that the tape is the same at every step whatever the
schedules say. The tape is the key of the plan; a known key needs no lowering and no compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from gradchain.core.along import Dims, dims_of, kept_shape
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.maps import READ, Calls, mapped
from gradchain.core.random import Draw
from gradchain.core.scalars import Count, Scalars
from gradchain.core.shapes import (
    Shapes,
    check_kept_shapes,
    met_shapes,
    narrowed_shapes,
    overlaid_shapes,
)
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import BOOLEAN, Unrecorded
from gradchain.engine.recording import beside
from gradchain.engine.recording.device import DeviceReduced, DeviceRows
from gradchain.engine.recording.draws import on_tape
from gradchain.engine.recording.laid import Laid, Pending
from gradchain.engine.recording.numbers import Ledger
from gradchain.engine.recording.reduced import Reduced

_NUMBERS = (float, int)


class Tape:
    """What was done in one step.

    Attributes:
        ops: one tuple per node: the operation, then its operands. An operand (node ids are ints) of a scalar is
            ("s", cell), of one number per parameter ("e", cell); of those on a device ("d", cell) and ("r", cell), of
            a number made of those ("n", i).
        scalars: the numbers, by cell.
        entries: one number per parameter, by cell.
        ledger: what is done to numbers, where they lie on a device or the step shall be run again; else None.
        indices: which entries each node has.
        shapes: their shapes; None where each has that of its weight.
        pending: reductions along dimensions that nobody has read yet, to be computed several in one pass.
        leaves: node → the tensors it stands for.
        columns: addresses that hold for this step only.
        maps: how functions of whole tensors were called, and whether entries were read.
    """

    def __init__(
        self,
        reduce: Callable[[Tape, int, str], Any],
        compute: Callable[[Tape, int], EagerTensors],
        layout: Laid,
        fresh: Callable[[Tape, Index, Shapes | None, list[torch.dtype]], EagerTensors],
        settle: Callable[[Tape], None],
        ledger: Callable[[list[Any], list[Any]], Ledger] | None = None,
    ) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.indices: list[Index] = []
        self.shapes: list[Shapes | None] = []
        self.pending: list[Pending] = []
        self.scalars: list[Any] = []
        self.entries: list[Scalars | DeviceRows] = []
        self.ledger = None if ledger is None else ledger(self.scalars, self.entries)
        self.leaves: dict[int, EagerTensors] = {}
        self.columns: dict[Any, Any] = {}
        self.maps: list[Calls | str] = []
        self._leaf_of: dict[int, int] = {}
        self._alive: list[Tensors] = []
        self._reduce = reduce
        self._compute = compute
        self._fit = partial(_fitted, layout)
        self.plain = layout.shapes  # of the weights, by an Index
        self._odd = layout.odd
        self._fresh = fresh
        self._settle = settle
        self._computed: dict[int, EagerTensors] = {}
        self._along: dict[Any, Lazy] = {}
        self._reduced: dict[tuple[int, str], Reduced | DeviceReduced] = {}

    def leaf(self, kind: str, tensors: Tensors, laid: bool = False) -> Lazy:
        """A recording twin of tensors in memory. `kind` says what they are: a gradient, a weight, a state's field.

        Extra ones, of which it is not known that they are `laid` out as the weights, are brought to be.
        """
        if type(tensors) is Lazy:
            return tensors
        assert isinstance(tensors, EagerTensors)
        known = self._leaf_of.get(id(tensors))
        if known is None:
            extra = kind == "extra" and not laid
            held = self._fit(tensors) if extra else tensors
            shapes = self._odd(held) if kind in ("state", "extra") else None
            op = ("leaf", kind) if shapes is None else ("leaf", kind, shapes)
            known = self.node(op, held.index, shapes).node
            self.leaves[known] = held
            if extra and self.ledger is not None:
                self.ledger.load(tensors, held, self._fit)
            self._leaf_of[id(tensors)] = known
            self._alive.append(tensors)  # an id is only its own while the object lives
        return Lazy(self, known, self.indices[known], self.shapes[known])

    def spared(self, lent: bool) -> set[int]:
        """The ids of the tensors that are somebody's: of all leaves but gradients, and of those where they are lent."""
        leaves = self.leaves.items()
        return {id(t) for node, tensors in leaves if lent or self.ops[node][1] != "grad" for t in tensors._data}

    def following(self, tensors: Tensors, roots: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the roots whose node is made of these tensors."""
        leaf = self._leaf_of.get(id(tensors))
        return [] if leaf is None else [root for root in roots if leaf in self.reach(root[1])]

    @property
    def weights(self) -> EagerTensors:
        """The weights, as which everything in memory is laid out."""
        return next(tensors for node, tensors in self.leaves.items() if self.ops[node] == ("leaf", "param"))

    def node(self, op: tuple[Any, ...], index: Index, shapes: Shapes | None = None) -> Lazy:
        """The result of one more operation."""
        self.ops.append(op)
        self.indices.append(index)
        self.shapes.append(shapes)
        return Lazy(self, len(self.ops) - 1, index, shapes)

    def along(self, of: Lazy, kind: str, dims: tuple[tuple[int, ...], ...]) -> Lazy:
        """A reduction along dimensions: memory for what it gives, which is computed before anybody reads it."""
        found = self._along.get((of.node, kind, dims))
        if found is None:
            shapes = tuple(map(kept_shape, of._shapes(), dims))
            out = self._fresh(self, of.index, shapes, self.dtypes(of.node))
            found = self._along[(of.node, kind, dims)] = self.leaf("extra", out, laid=True)
            self.pending.append(Pending(of.node, kind, dims, found.node))
        return found

    def one_pass(self) -> list[Pending]:
        """The pending reductions that one pass computes, the first of them among these: they pend no longer."""
        first = self.pending[0]
        chosen, later, awaited = [first], list[Pending](), {first.leaf}
        for one in self.pending[1:]:
            alike = (
                self.indices[one.node] is self.indices[first.node] and self.shapes[one.node] == self.shapes[first.node]
            )
            (chosen if alike and awaited.isdisjoint(self.reach(one.node)) else later).append(one)
            awaited.add(one.leaf)
        self.pending = later
        return chosen

    def small(self, of: Lazy) -> Lazy:
        """A node that others of larger shapes are about to meet: as a leaf, which one kernel reads and none writes."""
        op = self.ops[of.node]
        if op[0] == "zero" or op[:2] == ("leaf", "extra"):
            return of
        if self.is_mask(of.node):
            number = self.small(self.node(("number", of.node), of.index, of.shapes))
            return cast(Lazy, number > 0.5)
        if op[0] in ("leaf", "select", "overlay"):  # of a state that this step may write: what it was is read
            of = self.node(("mul", of.node, self.operand(1.0, of.index)), of.index, of.shapes)
        return self.leaf("extra", self.computed(of.node), laid=True)

    def operand(self, value: Any, index: Index) -> Any:
        """How an operation refers to `value`."""
        kind = type(value)
        if kind is Lazy:
            return value.node
        if self.ledger is not None and kind not in _NUMBERS:
            return self.ledger.operand(value)
        if kind is Scalars:
            self.entries.append(value)
            return ("e", len(self.entries) - 1)
        if isinstance(value, Tensor) and (value.requires_grad or value.device.type != "cpu"):
            raise Unrecorded("a scalar lives on another device, or requires a gradient")
        self.scalars.append(float(value))
        return ("s", len(self.scalars) - 1)

    def reduced(self, node: int, kind: str) -> Any:
        """One number per entry of a node, computed now; asked twice, read once."""
        found = self._reduced.get((node, kind))
        if found is None:
            found = self._reduced[(node, kind)] = self._reduce(self, node, kind)
        return found

    def computed(self, node: int) -> EagerTensors:
        """The tensors of a node, in memory; asked twice, computed once."""
        if self.pending:
            self._settle(self)
        found = self.leaves.get(node, self._computed.get(node))
        if found is None:
            op, *operands = self.ops[node]
            if self.is_mask(node):
                raise Unrecorded("the elements of a comparison are asked for")
            if op == "select":  # in the dtype it has, as by the reference
                found = self.in_memory(partial(beside.selected, self.indices[node]), self.computed(operands[0]))
            elif op == "overlay":
                found = self.in_memory(beside.overlaid, *map(self.computed, operands))
            else:
                found = self._compute(self, node)
            self._computed[node] = found
        return found

    def whole(self, node: int) -> EagerTensors:
        """The same, for what is no elementwise arithmetic: tensors that are whole."""
        return self.computed(node)

    def map(self, fn: Callable[..., Any], operands: Sequence[Any], gather: bool) -> Any:
        """`fn` of whole tensors, and of what else is among the operands. No tensor has to be gathered."""
        return self.in_memory(fn, *(self.computed(o.node) if type(o) is Lazy else o for o in operands))

    def whole_shapes(self, of: Lazy) -> Shapes:
        """The shapes of the entries of a node as rules know them."""
        return of._shapes()

    def drawn(self, like: Lazy, draw: Draw) -> Lazy:
        """Random numbers for the entries of a node."""
        return on_tape(like, draw)

    def is_odd(self, node: int) -> bool:
        """Whether entries of a node may have another shape than their weights."""
        return self.shapes[node] is not None

    def in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn` of tensors in memory, and of numbers: tensors in memory, or a tuple of such."""
        return fn(*args) if self.ledger is None else self.ledger.in_memory(fn, *args)

    def mapped(self, made: EagerTensors) -> Tensors:
        """What a map gave, as a node; kernels load no truth values, so those of a mask are compared again."""
        if not len(made) or not made._is_mask():
            return self.leaf("extra", made)
        return self.leaf("extra", self.in_memory(EagerTensors._numbers, made)) > 0.0

    def number(self, cell: int) -> Any:
        """The scalar in a cell: a float, or in a ledger the number it is."""
        return self.scalars[cell] if self.ledger is None else self.ledger.behind(cell, self.scalars[cell])

    def reach(self, node: int) -> list[int]:
        """A node and all that it is computed from, in order."""
        seen, todo = set(), [node]
        while todo:
            now = todo.pop()
            if now not in seen:
                seen.add(now)
                todo += [o for o in self.ops[now][1:] if isinstance(o, int)]
        return sorted(seen)

    def dtypes(self, node: int) -> list[torch.dtype]:
        """The dtype that each entry of a node is computed in: float32, or float64 where it reads any."""
        leaves = [self.leaves[i] for i in self.reach(node) if i in self.leaves]
        found = []
        for fact in self.indices[node].facts:
            read = [t._data[t.index.position[fact.name]].dtype for t in leaves if fact.name in t.index]
            wide = torch.float64 in read or (not read and torch.finfo(fact.parameter.dtype).bits > 32)
            found.append(torch.float64 if wide else torch.float32)
        return found

    def is_mask(self, node: int) -> bool:
        """Whether a node's elements are true or false."""
        op, *operands = self.ops[node]
        if op in ("select", "overlay", "where"):
            return all(isinstance(o, int) and self.is_mask(o) for o in operands[op == "where" :])
        return op in BOOLEAN

    def peeled(self, node: int) -> tuple[int, Any]:
        """A node without the scalar factors in front of it, and their product."""
        factor: Any = 1.0
        while self.ops[node][0] in ("mul", "div"):
            op, a, b = self.ops[node]
            if isinstance(a, int) and isinstance(b, tuple) and b[0] == "s":
                number = self.number(b[1])
                if op == "div" and number == 0.0:
                    break
                factor = factor * number if op == "mul" else factor / number
                node = a
            elif op == "mul" and isinstance(b, int) and isinstance(a, tuple) and a[0] == "s":
                factor = factor * self.number(a[1])
                node = b
            else:
                break
        return node, factor


def _fitted(layout: Laid, tensors: EagerTensors) -> EagerTensors:
    """Tensors laid out as the weights are, under the weights' own names, which are what a plan knows."""
    held = layout.state(tensors)
    home = layout.index.subset(held.index.names)
    if held.index is home or len(home) != len(held) or held.index.root is home.root:
        return held
    return held if held.index.complex != home.complex else EagerTensors.at(home, dict(held.items()))


class Lazy(Tensors):
    """A node of a tape, used like any Tensors."""

    __slots__ = ("_index", "node", "shapes", "tape")

    def __init__(self, tape: Tape, node: int, index: Index, shapes: Shapes | None = None) -> None:
        self.tape, self.node, self._index, self.shapes = tape, node, index, shapes

    @property
    def index(self) -> Index:
        return self._index

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        # the plain cases of _apply, without its generality: recording is paid at every step
        tape, index = self.tape, self._index
        kind_a, kind_b = type(a), type(b)
        if kind_a is Lazy:
            if kind_b is float or kind_b is int:
                tape.scalars.append(b)
                op_node = (op, a.node, ("s", len(tape.scalars) - 1))
            elif kind_b is Lazy and a._index is b._index and a.shapes is b.shapes:
                op_node = (op, a.node, b.node)
            else:
                return super()._binary(op, a, b)
        elif kind_a is float or kind_a is int:
            tape.scalars.append(a)
            op_node = (op, ("s", len(tape.scalars) - 1), b.node)
        else:
            return super()._binary(op, a, b)
        shapes = self.shapes
        tape.ops.append(op_node)
        tape.indices.append(index)
        tape.shapes.append(shapes)
        return Lazy(tape, len(tape.ops) - 1, index, shapes)

    def _is_mask(self) -> bool:
        return self.tape.is_mask(self.node)

    def computed(self) -> EagerTensors:
        """These tensors in memory, for what no tape can hold."""
        if self.tape.ledger is not None:
            self.tape.ledger.escapes("whole tensors")
        return self.tape.whole(self.node)

    def listed(self, index: Index) -> list[Tensor | None]:
        return self.computed().listed(index)

    def _lift(self, other: Tensors) -> Tensors:
        return self.tape.leaf("extra", other)

    def _drawn(self, draw: Draw) -> Tensors:
        return self.tape.drawn(self, draw)

    def __getitem__(self, name: str) -> Tensor:
        if READ not in self.tape.maps:
            self.tape.maps.append(READ)
        return self.computed()[name]

    def _apply(self, op: str, args: tuple[Any, ...]) -> Tensors:
        tape, index = self.tape, None
        values = []
        for arg in args:
            kind = type(arg)
            if kind is Lazy or (kind not in _NUMBERS and isinstance(arg, Tensors)):
                arg = tape.leaf("extra", arg)
                found = arg._index
                index = found if index is None or index is found else index.subset(found)
            elif kind is Count:
                arg = arg.value
            values.append(arg)
        assert index is not None
        for value in values:
            if isinstance(value, Scalars):
                index = value.within(index)
        shapes = None
        if any(type(v) is Lazy and v.shapes is not None for v in values):
            shapes = met_shapes(op, index, [v for v in values if type(v) is Lazy], tape.plain(index))
            values = [tape.small(v) if type(v) is Lazy and v.shapes_in(index) != shapes else v for v in values]
        return tape.node((op, *(tape.operand(v, index) for v in values)), index, shapes)

    def shapes_in(self, index: Index) -> Shapes | None:
        """The shapes of some of the entries; None where each has that of its weight."""
        if self.shapes is None:
            return None
        return narrowed_shapes(self._index, self.shapes, index, self.tape.plain(index))

    def _shapes(self) -> Shapes:
        return self.tape.plain(self._index) if self.shapes is None else self.shapes

    def _whole_shapes(self) -> Shapes:
        return self.tape.whole_shapes(self)

    def _along(self, word: str, kind: str, dim: Dims) -> Tensors:
        rows = zip(self._index.names, self._shapes(), strict=True)
        dims = tuple(dims_of(word, kind, self._index, name, shape, dim) for name, shape in rows)
        if self._is_mask():
            return self.tape.node(("number", self.node), self._index, self.shapes)._along(word, kind, dim)
        return self.tape.along(self, kind, dims)

    # reductions are computed at once: what comes after may depend on them

    def _norms(self, p: float) -> Scalars:
        powers = self._powers(p)
        norms: Scalars = self._whole(p, "norms") if powers is None else powers[0].norms(self.tape.ledger, p, powers[1])
        return norms

    def _powers(self, p: float) -> tuple[Any, Any] | None:
        """The sums behind a norm and the factor in front of it; None for a norm that no kernel computes."""
        kind = {1.0: "sum1", 2.0: "sum2", float("inf"): "max"}.get(float(p))
        if kind is None or (self._index.complex and p != 2):
            return None
        node, factor = self.tape.peeled(self.node)
        return self.tape.reduced(node, kind), abs(factor)

    def _whole(self, p: float, which: str) -> Any:
        """A norm that no kernel computes, by torch: of the tensors behind the scalar factor, where those are there."""
        node, factor = self.tape.peeled(self.node)
        measured, tensors = partial(beside.measured, which, p), self.tape.whole(node)
        ledger = self.tape.ledger
        return (measured(tensors) if ledger is None else ledger.measure(measured, tensors)) * abs(factor)

    def norm(self, p: float = 2.0) -> Any:
        powers = self._powers(p)
        return self._whole(p, "norm") if powers is None else powers[0].norm(self.tape.ledger, p, powers[1])

    def _sums(self) -> Scalars:
        node, factor = self.tape.peeled(self.node)
        sums: Scalars = self.tape.reduced(node, "sum").sums(self.tape.ledger, factor)
        return sums

    def _total(self) -> Any:
        node, factor = self.tape.peeled(self.node)
        return self.tape.reduced(node, "sum").sum(self.tape.ledger, factor)

    def all_finite(self) -> bool:
        node, factor = self.tape.peeled(self.node)
        if abs(factor) > 1.0:  # a product may overflow where its tensor is finite
            node = self.node
        # where the sum of squares is finite all elements are; a clip that follows reads the same sum
        if factor - factor != 0.0:
            return False
        ledger = self.tape.ledger
        if self.tape.reduced(node, "sum2").is_finite(ledger):
            return True
        return self.tape.reduced(node, "bad").is_zero(ledger)  # type: ignore[no-any-return]

    # whole tensors

    def map(
        self, fn: Callable[..., Any], *others: Any, batched: bool = False, results: int | None = None,
        gather: bool = False,
    ) -> Any:  # fmt: skip
        tape, calls = self.tape, Calls(fn, batched)
        others = tuple(o.value if isinstance(o, Count) else o for o in others)  # a number, which a ledger knows
        made = tape.map(partial(mapped, fn, batched, results, calls), (self, *others), gather)
        tape.maps.append(calls)
        return tuple(map(tape.mapped, made)) if isinstance(made, tuple) else tape.mapped(made)

    def select(self, members: Iterable[str]) -> Tensors:
        index = self._index.subset(members)
        if index is self._index:
            return self
        return self.tape.node(("select", self.node), index, self.shapes_in(index))

    def overlay(self, other: Tensors) -> Tensors:
        lifted = self.tape.leaf("extra", other)
        if other.index is self._index or not len(self):
            return lifted
        if not lifted._index.within(self._index):
            return self.tape.leaf(
                "extra", self.tape.in_memory(beside.overlaid, *map(self.tape.computed, (self.node, lifted.node)))
            )
        shapes = overlaid_shapes(self, lifted, self.tape.plain(self._index))
        return self.tape.node(("overlay", self.node, lifted.node), self._index, shapes)

    def zeros_like(self, dtype: torch.dtype | None = None) -> Tensors:
        op = ("zero",) if self.shapes is None else ("zero", self.shapes)
        return self.tape.node(op, self._index, self.shapes)

    def to(self, dtype: torch.dtype) -> Tensors:
        if self.tape.is_mask(self.node) or set(self.tape.dtypes(self.node)) != {dtype}:
            return self.tape.leaf(
                "extra", self.tape.in_memory(partial(beside.rounded, dtype), self.tape.computed(self.node))
            )
        leaf = self.tape.leaves.get(self.node)
        return self if leaf is None or all(t.dtype is dtype for t in leaf._data) else self * 1.0  # widened: no rounding

    def clone(self) -> Tensors:
        return self

    def stored_as(self, old: Tensors) -> Tensors:
        if not isinstance(old, Lazy):
            raise Unrecorded("a link makes state where there was none")
        if not self._index.within(old._index):
            stray = [n for n in self._index.names if n not in old._index]
            raise ValueError(f"a state must keep its entries, got new ones: {stray[:3]}")
        if self.shapes is not None or old.shapes is not None:
            check_kept_shapes(self._index.names, self._shapes(), old)
        return self.tape.node(("store", self.node, old.node), old.index, old.shapes)
