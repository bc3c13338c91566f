"""Numbers that lie on the device: what is done to them is recorded, and done inside the kernels that read them.

A norm on a device is known to the host only after waiting for it. So a reduction there gives no float but a number
that remembers where it lies, and `max_norm / (norm + eps)` costs no launch and no wait: kernels compute it as they
begin. Where torch itself needs the value (a state's field, `float(norm)`, a function of torch's), it is computed then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.operations import OPERATIONS
from gradchain.core.scalars import ANY, Count, Scalars, sqrt, where
from gradchain.core.tensors import Tensors
from gradchain.engine.operations import REDUCTIONS, Unrecorded
from gradchain.engine.recording.numbers import Each, Ledger, Number, names_in

# What numbers know, as 0-d tensors: what the table has of numbers of the host too. A choice of two of those is float64.
RULES: dict[str, Callable[..., Any]] = {name: o.truth for name, o in OPERATIONS.items() if o.host is not None}
RULES["where"] = where


class DeviceLedger(Ledger):
    """What was done in one step to numbers on a device.

    Attributes:
        ops: one tuple per number: the operation, then its operands. ("n", i) is number i; ("s", cell) and ("d", cell)
            are numbers of the tape, of the host and of the device; ("e", cell) and ("r", cell) numbers per parameter.
        scalars: the tape's numbers, by cell.
        entries: the tape's numbers per parameter, by cell.
        device: where the numbers lie.
        closed: whether nothing may ask for a value: in a step that is captured.
    """

    def __init__(self, scalars: list[Any], entries: list[Any], device: torch.device, closed: bool = False) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.scalars, self.entries, self.device = scalars, entries, device
        self.closed = closed
        self._computed: dict[tuple[str, int], Tensor] = {}
        self._names: list[tuple[str, ...] | None] = []

    def operand(self, value: Any) -> tuple[str, int]:
        """How an operation on the tape refers to `value`. Unrecorded where that lies elsewhere."""
        held = [value] if type(value) is not Scalars else () if value.column else value.values()
        for number in held:
            if isinstance(number, Tensor) and (number.requires_grad or number.device != self.device):
                raise Unrecorded("a scalar lives on another device, or requires a gradient")
        return self._operand(value)

    def _operand(self, value: Any) -> tuple[str, int]:
        if isinstance(value, (Number, Each)) and value.ledger is self:
            at: tuple[str, int] = value.at
            return at
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
        return Number(self, self._operand(value))

    def each(self, names: tuple[str, ...], values: Tensor) -> Each:
        """A tensor of one number per parameter."""
        return Each(self, self._operand(DeviceRows(names, values)), names)

    def apply(self, op: str, args: Sequence[Any]) -> Any:
        """One operation on numbers, at least one of them on the device."""
        args = [a.value if isinstance(a, Count) else a for a in args]
        for arg in args:
            if isinstance(arg, Tensors):
                return arg._apply(op, tuple(args))
        if op == "neg":
            op, args = "mul", [*args, -1.0]
        op = "remainder" if op == "mod" else op
        if op not in RULES:  # no kernel has it
            return ANY[op](*(a.item() if isinstance(a, Number) else a for a in args))
        names = names_in(args)
        self.ops.append((op, *map(self._operand, args)))
        self._names.append(names)
        made = ("n", len(self.ops) - 1)
        return Number(self, made) if names is None else Each(self, made, names)

    # by torch, where a number leaves the kernels

    def tensor(self, number: Number | Each) -> Tensor:
        """The value as float64 on the device: 0-d, or one per parameter."""
        return self._tensor(number.at, number.names if isinstance(number, Each) else None)

    def item(self, number: Number) -> Any:
        """The value on the host, which waits for the device."""
        return self.tensor(number).item()

    def truth(self, number: Number) -> bool:
        """Whether it holds; the host waits for the device."""
        return bool(self.item(number))

    def named(self, each: Each) -> dict[str, Any]:
        """Numbers per parameter as 0-d tensors, by name."""
        return dict(zip(each.names, self.tensor(each).unbind(), strict=True))

    def alike(self, each: Each) -> bool:
        """Whether numbers per parameter are all the same; the host waits for the device."""
        values = self.tensor(each)
        return bool((values == values[:1]).all())

    def largest(self, each: Each) -> Any:
        """The largest of numbers per parameter, by one launch."""
        return self.whole(self.tensor(each).amax()) if each.names else 0.0

    def behind(self, cell: int, value: Any) -> Any:
        """What the tape has: kernels compute with numbers of the device as they come."""
        return value

    def without_ledger(self, value: Any) -> Any:
        """A number as a tensor of the device, for a state."""
        if isinstance(value, Number):
            return value.tensor()
        return Scalars(dict(value)) if isinstance(value, Each) else value

    @property
    def structure(self) -> tuple[Any, ...]:
        """What was done to numbers, inside the kernels."""
        return (("numbers", *self.ops),)

    def _tensor(self, operand: tuple[str, int], names: tuple[str, ...] | None) -> Tensor:
        kind, at = operand
        self.refuse_if_closed()
        if kind == "n":
            if operand not in self._computed:
                op, *given = self.ops[at]
                self._computed[operand] = RULES[op](*(self._value(o, self._names[at]) for o in given))
            made, held = self._computed[operand], self._names[at]
            return made if held is None or names == held else _picked(made, held, names)
        return self._value(operand, names)  # type: ignore[no-any-return]  # a number of the host is no Number

    def open(self) -> None:
        """What was recorded may be read from here on."""
        self.closed = False

    def in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn` of tensors in memory: such, or a tuple of such."""
        self._refuse_tensors()
        return fn(*args)

    def measure(self, fn: Callable[..., Any], tensors: EagerTensors) -> Any:
        """`fn` of tensors in memory, as torch gives it."""
        self._refuse_tensors()
        return fn(tensors)

    def escapes(self, what: str) -> None:
        """A link has what lies outside the kernels."""
        self._refuse_tensors()

    def load(self, tensors: EagerTensors, fitted: EagerTensors, fit: Callable[[EagerTensors], EagerTensors]) -> None:
        """Tensors from memory came onto the tape."""

    def _refuse_tensors(self) -> None:
        if self.closed:
            raise Unrecorded("a link asks for whole tensors, which are computed outside its kernels")

    def refuse_if_closed(self) -> None:
        """Unrecorded where nothing may ask for a value."""
        if self.closed:
            raise Unrecorded("a link waits for the value of a number on the device")

    def _value(self, operand: tuple[str, int], names: tuple[str, ...] | None) -> Any:
        kind, at = operand
        if kind == "n":
            return self._tensor(operand, names)
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


def over_classes(parts: Sequence[tuple[tuple[str, ...], Tensor]], kind: str, device: torch.device) -> DeviceReduced:
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

    def met(self, names: tuple[str, ...], meet: Callable[[Tensor], Tensor]) -> DeviceReduced:
        """The same of whole tensors, of which this rank has parts: `meet` takes numbers in the order of `names`."""
        return DeviceReduced(names, [meet(_picked(self.rows, self.names, names))], self.kind, self._device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    # what links ask of it

    def norm(self, ledger: DeviceLedger, p: float, scale: Any) -> Any:
        """The norm over all entries, which is `scale` times that of what was reduced."""
        total = ledger.whole(self.total())
        return scale * (sqrt(total) if p == 2 else total)

    def norms(self, ledger: DeviceLedger, p: float, scale: Any) -> Scalars:
        """The norm of each entry."""
        each = ledger.each(self.names, self.rows)
        return scale * (sqrt(each) if p == 2 else each)  # type: ignore[no-any-return]

    def sum(self, ledger: DeviceLedger, factor: Any) -> Any:
        """The sum over all entries."""
        return factor * ledger.whole(self.total())

    def sums(self, ledger: DeviceLedger, factor: Any) -> Scalars:
        """The sum of each entry."""
        return factor * ledger.each(self.names, self.rows)  # type: ignore[no-any-return]

    def is_finite(self, ledger: DeviceLedger) -> bool:
        """Whether all are finite, as the host has to know: one number is read from the device."""
        ledger.refuse_if_closed()
        return bool(torch.isfinite(self.total()))

    def is_zero(self, ledger: DeviceLedger) -> bool:
        """Whether all are zero."""
        ledger.refuse_if_closed()
        return not self.total().item()
