"""Tensors that record what is done to them: the unchanged code of the links, run once per step, leaves a tape.

Operations go to the tape, numbers to a list of scalars, so that the tape is the same at every step whatever the
schedules say. The tape is the key of the plan; a known key needs no lowering and no compiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import BOOLEAN, Unrecorded
from gradchain.engine.recording.numbers import DeviceReduced, DeviceRows, Ledger
from gradchain.engine.recording.trace import Trace, Traced, plain

_NUMBERS = (float, int)


class Reduced:
    """What a reduction gave: one number per entry, in the order of `names`."""

    __slots__ = ("_rows", "_total", "names", "trace")

    def __init__(self, names: tuple[str, ...], rows: list[float]) -> None:
        self.names, self._rows = names, rows
        self._total: Any = None
        self.trace: Trace | None = None

    @classmethod
    def traced(cls, names: tuple[str, ...], rows: list[float], total: Traced) -> Reduced:
        """The same in a trace, which knows how to come by the total, and only by that."""
        reduced = cls(names, rows)
        reduced._total, reduced.trace = total, total.trace
        return reduced

    @property
    def rows(self) -> list[float]:
        """The numbers."""
        if self.trace is not None:
            self.trace.breaks("numbers per parameter were read")
        return self._rows

    @property
    def total(self) -> Any:
        """Their sum, rounded once; infinite or NaN as a plain sum would be."""
        if self._total is None:
            self._total = total(self._rows)
        return self._total

    def is_finite(self) -> bool:
        """Whether all of them are finite numbers."""
        if self.trace is None:
            return math.isfinite(self.total) or all(map(math.isfinite, self._rows))
        return bool(self.trace.applied(math.isfinite, self.total)) or all(map(math.isfinite, self.rows))

    def scalars(self, of: Callable[[float], float]) -> Scalars:
        """A function of each number, by name."""
        return Scalars(dict(zip(self.names, map(of, self.rows), strict=True)))


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
            ("s", slot), of one number per parameter ("e", slot); of those on a device ("d", slot) and ("r", slot), of
            a number made of those ("n", i).
        scalars: the numbers, by slot.
        entries: one number per parameter, by slot.
        numbers: what was done to numbers on the device; None where reductions give their numbers to the host.
        indices: which entries each node has.
        leaves: node → the tensors it stands for.
        columns: addresses that hold for this step only.
        trace: where the numbers come from, for a step that shall be run again; or None.
        sources, entry_sources: slot of a scalar, or of numbers per parameter → its slot in the trace.
    """

    def __init__(
        self,
        reduce: Callable[[Tape, int, str], Any],
        compute: Callable[[Tape, int], EagerTensors],
        fit: Callable[[EagerTensors], EagerTensors],
        trace: Trace | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.trace = trace
        self.sources: dict[int, int] = {}
        self.entry_sources: dict[int, int] = {}
        self.ops: list[tuple[Any, ...]] = []
        self.indices: list[Index] = []
        self.scalars: list[Any] = []
        self.entries: list[Scalars | DeviceRows] = []
        self.numbers = None if device is None else Ledger(self.scalars, self.entries, device)
        self.leaves: dict[int, EagerTensors] = {}
        self.columns: dict[Any, Any] = {}
        self._leaf_of: dict[int, int] = {}
        self._alive: list[Tensors] = []
        self._reduce = reduce
        self._compute = compute
        self._fit = fit
        self._computed: dict[int, EagerTensors] = {}
        self._reduced: dict[tuple[int, str], Reduced | DeviceReduced] = {}

    def leaf(self, kind: str, tensors: Tensors) -> Lazy:
        """A recording twin of tensors in memory. `kind` says what they are: a gradient, a weight, a state's field."""
        if type(tensors) is Lazy:
            return tensors
        assert isinstance(tensors, EagerTensors)
        known = self._leaf_of.get(id(tensors))
        if known is None:
            known = self.node(("leaf", kind), tensors.index).node
            self.leaves[known] = self._fit(tensors) if kind == "extra" else tensors
            self._leaf_of[id(tensors)] = known
            self._alive.append(tensors)  # an id is only its own while the object lives
        return Lazy(self, known, tensors.index)

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
        if self.numbers is not None and kind not in _NUMBERS:
            return self._on_device(value, self.numbers)
        if kind is Traced and type(value.value) is Scalars:
            self.entry_sources[len(self.entries)] = value.slot
            value, kind = value.value, Scalars
        if kind is Scalars:
            self.entries.append(value)
            return ("e", len(self.entries) - 1)
        if isinstance(value, Tensor) and (value.requires_grad or value.device.type != "cpu"):
            raise Unrecorded("a scalar lives on another device, or requires a gradient")
        if kind is Traced:
            self.sources[len(self.scalars)] = value.slot
            value = value.value
        self.scalars.append(float(value))
        return ("s", len(self.scalars) - 1)

    @staticmethod
    def _on_device(value: Any, numbers: Ledger) -> tuple[str, int]:
        """How an operation refers to what may be a number on the device."""
        held = [value] if type(value) is not Scalars else () if value.column else value.values()
        for number in held:
            if isinstance(number, Tensor) and (number.requires_grad or number.device != numbers.device):
                raise Unrecorded("a scalar lives on another device, or requires a gradient")
        return numbers.operand(value)

    def reduced(self, node: int, kind: str) -> Any:
        """One number per entry of a node, computed now; asked twice, read once."""
        found = self._reduced.get((node, kind))
        if found is None:
            found = self._reduced[(node, kind)] = self._reduce(self, node, kind)
        return found

    def computed(self, node: int) -> EagerTensors:
        """The tensors of a node, in memory; asked twice, computed once."""
        if self.numbers is not None and self.numbers.closed:
            raise Unrecorded("a link asks for whole tensors, which are computed outside its kernels")
        found = self.leaves.get(node, self._computed.get(node))
        if found is None:
            op, *operands = self.ops[node]
            if self.is_mask(node):
                raise Unrecorded("the elements of a comparison are asked for")
            if op == "select":  # in the dtype it has, as by the reference
                found = self.computed(operands[0]).select(self.indices[node])  # type: ignore[assignment]
            elif op == "overlay":
                under, over = map(self.computed, operands)
                found = under.overlay(over)  # type: ignore[assignment]
            else:
                found = self._compute(self, node)
            self._computed[node] = found  # type: ignore[assignment]
        return found  # type: ignore[return-value]

    def number(self, slot: int) -> Any:
        """The scalar in a slot: a float, or in a trace what it follows from."""
        if slot in self.sources:
            assert self.trace is not None
            return Traced(self.trace, self.sources[slot])
        return self.scalars[slot]

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
        return self.tape.computed(self.node)

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
        for value in map(plain, values):
            if isinstance(value, Scalars):
                index = value.within(index)
        return tape.node((op, *(tape.operand(v, index) for v in values)), index)

    # reductions are computed at once: what comes after may depend on them

    def _norms(self, p: float) -> Scalars:
        powers = self._powers(p)
        if powers is None:
            norms: Scalars = self._whole_norm(p, "norms")
            return norms
        reduced, scale = powers
        if self.tape.numbers is not None:
            each: Scalars = reduced.norms(self.tape.numbers, p, scale)
            return each
        each = reduced.scalars(lambda v: scale * (v**0.5 if p == 2 else v))
        return each

    def _powers(self, p: float) -> tuple[Any, Any] | None:
        """The sums behind a norm and the factor in front of it; None for a norm that no kernel computes."""
        kind = {1.0: "sum1", 2.0: "sum2", float("inf"): "max"}.get(float(p))
        if kind is None or (self._index.complex and p != 2):
            return None
        node, factor = self.tape.peeled(self.node)
        return self.tape.reduced(node, kind), abs(factor)

    def _whole_norm(self, p: float, which: str) -> Any:
        """A norm that no kernel computes, by torch: of the tensors behind the scalar factor, where those are there."""
        node, factor = self.tape.peeled(self.node)
        return getattr(self.tape.computed(node), which)(p) * abs(factor)

    def norm(self, p: float = 2.0) -> Any:
        powers = self._powers(p)
        if powers is None:
            return self._whole_norm(p, "norm")
        reduced, scale = powers
        if self.tape.numbers is not None:
            return reduced.norm(self.tape.numbers, p, scale)
        if p == float("inf"):
            return scale * (math.nan if any(v != v for v in reduced.rows) else max(reduced.rows, default=0.0))
        return scale * (reduced.total**0.5 if p == 2 else reduced.total)

    def _sums(self) -> Scalars:
        node, factor = self.tape.peeled(self.node)
        reduced = self.tape.reduced(node, "sum")
        if self.tape.numbers is not None:
            return factor * self.tape.numbers.each(reduced.names, reduced.rows)  # type: ignore[no-any-return]
        return reduced.scalars(lambda v: factor * v)  # type: ignore[no-any-return]

    def sum(self) -> Any:
        if self.tape.numbers is not None:
            node, factor = self.tape.peeled(self.node)
            return factor * self.tape.numbers.whole(self.tape.reduced(node, "sum").total())
        return sum(self._sums().values())

    def all_finite(self) -> bool:
        node, factor = self.tape.peeled(self.node)
        if abs(factor) > 1.0:  # a product may overflow where its tensor is finite
            node = self.node
        # where the sum of squares is finite all elements are; a clip that follows reads the same sum
        if factor - factor != 0.0:
            return False
        if self.tape.numbers is not None:
            return self.tape.numbers.finite(lambda kind: self.tape.reduced(node, kind))
        if self.tape.reduced(node, "sum2").is_finite():
            return True
        return not any(self.tape.reduced(node, "bad").rows)

    # whole tensors

    def map(self, fn: Callable[..., Tensor], *others: Any) -> Tensors:
        whole = [o.computed() if type(o) is Lazy else o for o in others]
        return self.tape.leaf("extra", self.computed().map(fn, *whole))

    def select(self, members: Iterable[str]) -> Tensors:
        index = self._index.subset(members)
        return self if index is self._index else self.tape.node(("select", self.node), index)

    def overlay(self, other: Tensors) -> Tensors:
        lifted = self.tape.leaf("extra", other)
        if other.index is self._index or not len(self):
            return lifted
        if not lifted._index.within(self._index):
            return self.tape.leaf("extra", self.computed().overlay(lifted.computed()))
        return self.tape.node(("overlay", self.node, lifted.node), self._index)

    def zeros_like(self, dtype: torch.dtype | None = None) -> Tensors:
        return self.tape.node(("zero",), self._index)

    def to(self, dtype: torch.dtype) -> Tensors:
        if self.tape.is_mask(self.node) or set(self.tape.dtypes(self.node)) != {dtype}:
            return self.tape.leaf("extra", self.computed().to(dtype))
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
