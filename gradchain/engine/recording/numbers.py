"""Numbers that lie on the device: what is done to them is recorded, and done inside the kernels that read them.

A norm on a device is known to the host only after waiting for it. So a reduction there gives no float but a number
that remembers where it lies, and `max_norm / (norm + eps)` costs no launch and no wait: kernels compute it as they
begin. Where torch itself needs the value (a state's field, `float(norm)`, a function of torch's), it is computed then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core.index import Index
from gradchain.core.operations import OPERATIONS
from gradchain.core.scalars import Count, Operand, Scalars, sqrt
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import REDUCTIONS, Unrecorded

# What numbers know, as 0-d tensors: what the table has of numbers of the host too.
RULES: dict[str, Callable[..., Any]] = {name: o.truth for name, o in OPERATIONS.items() if o.host is not None}


class Ledger:
    """What was done in one step to numbers on a device.

    Attributes:
        ops: one tuple per number: the operation, then its operands. ("n", i) is number i; ("s", slot) and ("d", slot)
            are numbers of the tape, of the host and of the device; ("e", slot) and ("r", slot) numbers per parameter.
        scalars: the tape's numbers, by slot.
        entries: the tape's numbers per parameter, by slot.
        device: where the numbers lie.
        closed: whether nothing may ask for a value: in a step that is captured.
    """

    def __init__(self, scalars: list[Any], entries: list[Any], device: torch.device) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.scalars, self.entries, self.device = scalars, entries, device
        self.closed = False
        self._computed: dict[tuple[str, int], Tensor] = {}
        self._names: list[tuple[str, ...] | None] = []

    def operand(self, value: Any) -> tuple[str, int]:
        """How an operation refers to `value`."""
        if isinstance(value, (Number, Each)) and value.ledger is self:
            return value.operand
        if isinstance(value, Number):  # of another step
            value = value.tensor()
        elif isinstance(value, Each):
            value = DeviceRows(value.names, value.tensor())
        elif isinstance(value, Scalars) and value.column is None and any(isinstance(v, Number) for v in value.values()):
            value = DeviceRows(tuple(value), torch.stack([self._wide(v) for v in value.values()]))
        if isinstance(value, (Scalars, DeviceRows)):
            self.entries.append(value)
            return ("e" if isinstance(value, Scalars) else "r", len(self.entries) - 1)
        self.scalars.append(value)
        return ("d" if isinstance(value, Tensor) else "s", len(self.scalars) - 1)

    def whole(self, value: Tensor) -> Number:
        """A 0-d tensor of the device as a number."""
        return Number(self, self.operand(value))

    def each(self, names: tuple[str, ...], values: Tensor) -> Each:
        """A tensor of one number per parameter."""
        return Each(self, self.operand(DeviceRows(names, values)), names)

    def apply(self, op: str, args: Sequence[Any]) -> Any:
        """One operation on numbers, at least one of them on the device."""
        args = [a.value if isinstance(a, Count) else a for a in args]
        for arg in args:
            if isinstance(arg, Tensors):
                return arg._apply(op, tuple(args))
        names: tuple[str, ...] | None = None
        for arg in args:
            if isinstance(arg, Scalars):
                names = tuple(n for n in (arg if names is None else names) if n in arg)
        self.ops.append((op, *map(self.operand, args)))
        self._names.append(names)
        made = ("n", len(self.ops) - 1)
        return Number(self, made) if names is None else Each(self, made, names)

    # by torch, where a number leaves the kernels

    def tensor(self, operand: tuple[str, int], names: tuple[str, ...] | None) -> Tensor:
        """The value of an operand as float64 on the device: 0-d, or one per name."""
        kind, at = operand
        self._refuse_if_closed()
        if kind == "n":
            if operand not in self._computed:
                op, *given = self.ops[at]
                self._computed[operand] = RULES[op](*(self._value(o, self._names[at]) for o in given))
            made, held = self._computed[operand], self._names[at]
            return made if held is None or names == held else _picked(made, held, names)
        return self._value(operand, names)  # type: ignore[no-any-return]  # a number of the host is no Number

    def finite(self, reduced: Callable[[str], DeviceReduced]) -> bool:
        """Whether what is reduced is finite, as the host has to know: one number is read from the device."""
        self._refuse_if_closed()
        # where the sum of squares is finite all elements are; a clip that follows reads the same sum
        return bool(torch.isfinite(reduced("sum2").total())) or not reduced("bad").total().item()

    def open(self) -> None:
        """What was recorded may be read from here on."""
        self.closed = False

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise Unrecorded("a link waits for the value of a number on the device")

    def _value(self, operand: tuple[str, int], names: tuple[str, ...] | None) -> Any:
        kind, at = operand
        if kind == "n":
            return self.tensor(operand, names)
        value = self.scalars[at] if kind in "sd" else self.entries[at]
        if kind == "r":
            return _picked(value.values, value.names, names)
        if kind == "e":
            return torch.stack([self._wide(value[n]) for n in names or ()])
        return value.to(torch.float64) if kind == "d" else value

    def _wide(self, value: Any) -> Tensor:
        value = value.tensor() if isinstance(value, Number) else value
        if isinstance(value, Tensor):
            return value.to(torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)  # unlike a tensor made of it, never waits


def _picked(values: Tensor, held: tuple[str, ...], names: tuple[str, ...] | None) -> Tensor:
    if names is None or names == held:
        return values
    position = {n: i for i, n in enumerate(held)}
    return torch.stack([values[position[n]] for n in names])  # an index would have to be sent, and waited for


class DeviceRows:
    """One float64 per parameter, in one tensor."""

    __slots__ = ("_each", "names", "values")

    def __init__(self, names: tuple[str, ...], values: Tensor) -> None:
        self.names, self.values = names, values
        self._each: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._each is None:
            self._each = dict(zip(self.names, self.values.unbind(), strict=True))
        return self._each[name]

    @property
    def column(self) -> None:
        """They lie in no memory of the host's."""

    def listed(self, names: Iterable[str]) -> list[Tensor]:
        """The numbers of these names, in their order."""
        return [self[name] for name in names]


class Number(Operand[Any]):
    """One number on a device, with the arithmetic of a float. Reading it on the host waits for the device."""

    __slots__ = ("ledger", "operand")

    def __init__(self, ledger: Ledger, operand: tuple[str, int]) -> None:
        self.ledger, self.operand = ledger, operand

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        other = b if a is self else a
        known = isinstance(other, (int, float, Tensor, Scalars, Number, Tensors))
        return self.ledger.apply(op, (a, b)) if known else NotImplemented

    def _apply(self, op: str, args: tuple[Any, ...]) -> Any:
        return self.ledger.apply(op, args)

    def _is_mask(self) -> bool:
        return True  # one number is a condition for all

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __neg__(self) -> Any:
        return self * -1.0

    def __abs__(self) -> Any:
        return self.ledger.apply("abs", (self,))

    def tensor(self) -> Tensor:
        """It as a 0-d tensor, computed on the device."""
        return self.ledger.tensor(self.operand, None)

    def item(self) -> Any:
        """Its value on the host."""
        return self.tensor().item()

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __repr__(self) -> str:
        return repr(self.tensor())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(_tensor, args), **{n: _tensor(v) for n, v in (kwargs or {}).items()})


def _tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Number) else value


class Each(Scalars):
    """One number per parameter, on a device."""

    __slots__ = ("ledger", "names", "operand")

    def __init__(self, ledger: Ledger, operand: tuple[str, int], names: tuple[str, ...]) -> None:
        self.ledger, self.operand, self.names = ledger, operand, names
        self._values, self._index, self._column = None, None, None

    @property
    def _named(self) -> dict[str, Any]:  # read by everything that is not recorded
        if self._values is None:
            self._values = dict(zip(self.names, self.tensor().unbind(), strict=True))
        return self._values

    def within(self, index: Index) -> Index:
        mine = frozenset(self.names)  # no value is needed to know that
        return index if mine.issuperset(index.names) else index.subset(mine)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        return self.ledger.apply(op, (a, b))

    def _apply(self, op: str, args: tuple[Any, ...]) -> Any:
        return self.ledger.apply(op, args)

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __neg__(self) -> Any:
        return self * -1.0

    def tensor(self) -> Tensor:
        """They as one tensor, computed on the device."""
        return self.ledger.tensor(self.operand, self.names)


def met(parts: Sequence[tuple[tuple[str, ...], Tensor]], kind: str, device: torch.device) -> DeviceReduced:
    """What the classes of parameters gave, together."""
    return DeviceReduced(tuple(n for names, _ in parts for n in names), [rows for _, rows in parts], kind, device)


class DeviceReduced:
    """What a reduction gave, on the device: one float64 per entry, in the order of `names`."""

    __slots__ = ("_device", "_parts", "_rows", "_total", "kind", "names", "queue")

    def __init__(self, names: tuple[str, ...], parts: list[Tensor], kind: str, device: torch.device) -> None:
        self.names, self.kind = names, kind
        self.queue: Callable[[Callable[[], object]], object] = lambda launch: launch()  # launches what torch adds
        self._parts, self._device = parts, device
        self._rows: Tensor | None = parts[0] if len(parts) == 1 else None
        self._total: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """One number per entry."""
        if self._rows is None:
            rows = self._rows = self._empty(len(self.names))
            if self._parts:
                self.queue(lambda: torch.cat(self._parts, out=rows))
        return self._rows

    def total(self) -> Tensor:
        """All entries together, a 0-d tensor."""
        if self._total is None:
            rows, total = self.rows, self._empty()
            meet = getattr(torch, REDUCTIONS[self.kind].meet.torch) if len(self.names) else torch.sum
            self.queue(lambda: meet(rows, 0, out=total))
            self._total = total
        return self._total

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    def norm(self, ledger: Ledger, p: float, scale: float) -> Number:
        """The norm over all entries, which is `scale` times that of what was reduced."""
        total = ledger.whole(self.total())
        return scale * (sqrt(total) if p == 2 else total)  # type: ignore[no-any-return]

    def norms(self, ledger: Ledger, p: float, scale: float) -> Scalars:
        """The norm of each entry."""
        each = ledger.each(self.names, self.rows)
        return scale * (sqrt(each) if p == 2 else each)  # type: ignore[no-any-return]
