"""Tensors that record what is done to them: the unchanged code of the links, run once per step, leaves a tape.

Operations go to the tape, numbers to a list of scalars, so that the tape is the same at every step whatever the
schedules say. The tape is the key of the plan; a known key needs no lowering and no compiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.maps import Calls, mapped
from gradchain.core.scalars import Count, Scalars
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import BOOLEAN, Unrecorded
from gradchain.engine.recording.device import DeviceReduced, DeviceRows
from gradchain.engine.recording.host import HostLedger
from gradchain.engine.recording.numbers import Ledger

_NUMBERS = (float, int)


class Reduced:
    """What a reduction gave the host: one number per entry, in the order of `names`. A ledger notes what is made of it.

    Attributes:
        names: the entries.
        rows: their numbers, in a list; in a ledger, the number that stands for the list.
    """

    __slots__ = ("_total", "names", "rows")

    def __init__(self, names: tuple[str, ...], rows: Any) -> None:
        self.names, self.rows = names, rows
        self._total: Any = None

    def total(self, ledger: HostLedger | None) -> Any:
        """Their sum, rounded once; infinite or NaN as a plain sum would be."""
        if self._total is None:
            self._total = _of(ledger, total, self.rows)
        return self._total

    def norm(self, ledger: HostLedger | None, p: float, scale: Any) -> Any:
        """The norm over all entries, which is `scale` times that of what was reduced."""
        if p == float("inf"):
            return scale * _of(ledger, _largest, self.rows)
        return scale * (self.total(ledger) ** 0.5 if p == 2 else self.total(ledger))

    def norms(self, ledger: HostLedger | None, p: float, scale: Any) -> Scalars:
        """The norm of each entry."""
        norms: Scalars = _of(ledger, partial(_norms, self.names, p), self.rows, scale)
        return norms

    def sum(self, ledger: HostLedger | None, factor: Any) -> Any:
        """The sum over all entries, each times `factor`."""
        return _of(ledger, _sum, self.rows, factor)

    def sums(self, ledger: HostLedger | None, factor: Any) -> Scalars:
        """The sum of each entry."""
        sums: Scalars = _of(ledger, partial(_norms, self.names, 1.0), self.rows, factor)
        return sums

    def is_finite(self, ledger: HostLedger | None) -> bool:
        """Whether all of them are finite numbers."""
        return bool(_of(ledger, math.isfinite, self.total(ledger))) or bool(_of(ledger, _all_finite, self.rows))

    def is_zero(self, ledger: HostLedger | None) -> bool:
        """Whether all of them are zero."""
        return not _of(ledger, any, self.rows)


def _of(ledger: HostLedger | None, fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args) if ledger is None else ledger.call(fn, *args)


def _largest(rows: list[float]) -> float:
    return math.nan if any(v != v for v in rows) else max(rows, default=0.0)


def _norms(names: tuple[str, ...], p: float, rows: list[float], scale: Any) -> Scalars:
    return Scalars({n: scale * (v**0.5 if p == 2 else v) for n, v in zip(names, rows, strict=True)})


def _sum(rows: list[float], factor: Any) -> Any:
    return sum(factor * v for v in rows)


def _all_finite(rows: list[float]) -> bool:
    return all(map(math.isfinite, rows))


def total(rows: list[float]) -> float:
    """A sum that is rounded once; infinite or NaN as a plain sum would be."""
    try:
        return math.fsum(rows)
    except (OverflowError, ValueError):
        return sum(rows)


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
        leaves: node → the tensors it stands for.
        columns: addresses that hold for this step only.
        maps: how functions of whole tensors were called.
    """

    def __init__(
        self,
        reduce: Callable[[Tape, int, str], Any],
        compute: Callable[[Tape, int], EagerTensors],
        fit: Callable[[EagerTensors], EagerTensors],
        ledger: Callable[[list[Any], list[Any]], Ledger] | None = None,
    ) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.indices: list[Index] = []
        self.scalars: list[Any] = []
        self.entries: list[Scalars | DeviceRows] = []
        self.ledger = None if ledger is None else ledger(self.scalars, self.entries)
        self.leaves: dict[int, EagerTensors] = {}
        self.columns: dict[Any, Any] = {}
        self.maps: list[Calls] = []
        self._leaf_of: dict[int, int] = {}
        self._alive: list[Tensors] = []
        self._reduce = reduce
        self._compute = compute
        self._fit = fit
        self._computed: dict[int, EagerTensors] = {}
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
            known = self.node(("leaf", kind), tensors.index).node
            extra = kind == "extra" and not laid
            self.leaves[known] = held = self._fit(tensors) if extra else tensors
            if extra and self.ledger is not None:
                self.ledger.load(tensors, held, self._fit)
            self._leaf_of[id(tensors)] = known
            self._alive.append(tensors)  # an id is only its own while the object lives
        return Lazy(self, known, tensors.index)

    def spared(self, lent: bool) -> set[int]:
        """The ids of the tensors that are somebody's: of all leaves but gradients, and of those where they are lent."""
        leaves = self.leaves.items()
        return {id(t) for node, tensors in leaves if lent or self.ops[node][1] != "grad" for t in tensors._data}

    def following(self, tensors: Tensors, roots: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the roots whose node is made of these tensors."""
        leaf = self._leaf_of.get(id(tensors))
        return [] if leaf is None else [root for root in roots if leaf in self.reach(root[1])]

    def node(self, op: tuple[Any, ...], index: Index) -> Lazy:
        """The result of one more operation."""
        self.ops.append(op)
        self.indices.append(index)
        return Lazy(self, len(self.ops) - 1, index)

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
        found = self.leaves.get(node, self._computed.get(node))
        if found is None:
            op, *operands = self.ops[node]
            if self.is_mask(node):
                raise Unrecorded("the elements of a comparison are asked for")
            if op == "select":  # in the dtype it has, as by the reference
                found = self.in_memory(partial(_selected, self.indices[node]), self.computed(operands[0]))
            elif op == "overlay":
                found = self.in_memory(_overlaid, *map(self.computed, operands))
            else:
                found = self._compute(self, node)
            self._computed[node] = found
        return found

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


class Lazy(Tensors):
    """A node of a tape, used like any Tensors."""

    __slots__ = ("_index", "node", "tape")

    def __init__(self, tape: Tape, node: int, index: Index) -> None:
        self.tape, self.node, self._index = tape, node, index

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
            elif kind_b is Lazy and a._index is b._index:
                op_node = (op, a.node, b.node)
            else:
                return super()._binary(op, a, b)
        elif kind_a is float or kind_a is int:
            tape.scalars.append(a)
            op_node = (op, ("s", len(tape.scalars) - 1), b.node)
        else:
            return super()._binary(op, a, b)
        tape.ops.append(op_node)
        tape.indices.append(index)
        return Lazy(tape, len(tape.ops) - 1, index)

    def _is_mask(self) -> bool:
        return self.tape.is_mask(self.node)

    def computed(self) -> EagerTensors:
        """These tensors in memory, for what no tape can hold."""
        if self.tape.ledger is not None:
            self.tape.ledger.escapes("whole tensors")
        return self.tape.computed(self.node)

    def listed(self, index: Index) -> list[Tensor | None]:
        return self.computed().listed(index)

    def _lift(self, other: Tensors) -> Tensors:
        return self.tape.leaf("extra", other)

    def __getitem__(self, name: str) -> Tensor:
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
        return tape.node((op, *(tape.operand(v, index) for v in values)), index)

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
        measured, tensors = partial(_measured, which, p), self.tape.computed(node)
        ledger = self.tape.ledger
        return (measured(tensors) if ledger is None else ledger.measure(measured, tensors)) * abs(factor)

    def norm(self, p: float = 2.0) -> Any:
        powers = self._powers(p)
        return self._whole(p, "norm") if powers is None else powers[0].norm(self.tape.ledger, p, powers[1])

    def _sums(self) -> Scalars:
        node, factor = self.tape.peeled(self.node)
        sums: Scalars = self.tape.reduced(node, "sum").sums(self.tape.ledger, factor)
        return sums

    def sum(self) -> Any:
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

    def map(self, fn: Callable[..., Any], *others: Any, batched: bool = False, results: int | None = None) -> Any:
        tape, calls = self.tape, Calls(fn, batched)
        others = tuple(o.value if isinstance(o, Count) else o for o in others)  # a number, which a ledger knows
        whole = [tape.computed(o.node) if type(o) is Lazy else o for o in others]
        made = tape.in_memory(partial(mapped, fn, batched, results, calls), tape.computed(self.node), *whole)
        tape.maps.append(calls)
        return tuple(map(tape.mapped, made)) if isinstance(made, tuple) else tape.mapped(made)

    def select(self, members: Iterable[str]) -> Tensors:
        index = self._index.subset(members)
        return self if index is self._index else self.tape.node(("select", self.node), index)

    def overlay(self, other: Tensors) -> Tensors:
        lifted = self.tape.leaf("extra", other)
        if other.index is self._index or not len(self):
            return lifted
        if not lifted._index.within(self._index):
            return self.tape.leaf(
                "extra", self.tape.in_memory(_overlaid, *map(self.tape.computed, (self.node, lifted.node)))
            )
        return self.tape.node(("overlay", self.node, lifted.node), self._index)

    def zeros_like(self, dtype: torch.dtype | None = None) -> Tensors:
        return self.tape.node(("zero",), self._index)

    def to(self, dtype: torch.dtype) -> Tensors:
        if self.tape.is_mask(self.node) or set(self.tape.dtypes(self.node)) != {dtype}:
            return self.tape.leaf("extra", self.tape.in_memory(partial(_rounded, dtype), self.tape.computed(self.node)))
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
        return self.tape.node(("store", self.node, old.node), old.index)


def _selected(index: Index, tensors: EagerTensors) -> Tensors:
    return tensors.select(index)


def _overlaid(under: EagerTensors, over: EagerTensors) -> Tensors:
    return under.overlay(over)


def _rounded(dtype: torch.dtype, tensors: EagerTensors) -> Tensors:
    return tensors.to(dtype)


def _measured(which: str, p: float, tensors: EagerTensors) -> Any:
    return getattr(tensors, which)(p)
