"""Numbers that remember how they come about: they compute as numbers do, and a ledger notes what is done to them.

A rule is written for floats. Where a number is to be computed again, without the rule, or lies on a device, where the
host would have to wait for it, a rule gets one of these in its place: one number, or one per parameter. Whose it is,
the ledger says: that of the host, whose values are known, or that of a device.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.scalars import Operand, Scalars
from gradchain.core.tensors import Tensors


class Ledger(ABC):
    """What is done in one step to numbers."""

    @abstractmethod
    def apply(self, op: str, args: Sequence[Any]) -> Any:
        """One operation on numbers, at least one of them of this ledger."""

    @abstractmethod
    def operand(self, value: Any) -> tuple[str, int]:
        """How an operation on a tape refers to a number, or to numbers per parameter, that it reads."""

    @abstractmethod
    def tensor(self, number: Number | Each) -> Tensor:
        """The value as float64: 0-d, or one per parameter."""

    @abstractmethod
    def item(self, number: Number) -> Any:
        """The value as a number of Python's, which leaves the ledger."""

    @abstractmethod
    def truth(self, number: Number) -> bool:
        """Whether it holds, which leaves the ledger."""

    @abstractmethod
    def named(self, each: Each) -> dict[str, Any]:
        """Numbers per parameter, by name."""

    @abstractmethod
    def alike(self, each: Each) -> bool:
        """Whether numbers per parameter are all the same, which leaves the ledger."""

    @abstractmethod
    def largest(self, each: Each) -> Any:
        """The largest of numbers per parameter, none of which is negative."""

    @abstractmethod
    def behind(self, cell: int, value: Any) -> Any:
        """The number that the tape has in a cell, where it lies as `value`."""

    @abstractmethod
    def without_ledger(self, value: Any) -> Any:
        """What a state or a record keeps of a value: numbers without the ledger, anything else as it is."""

    @property
    def structure(self) -> tuple[Any, ...]:
        """What it says of the kernels that read its numbers, apart from the numbers."""
        return ()

    # tensors in memory

    @abstractmethod
    def in_memory(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn` of tensors in memory, and of numbers: tensors in memory, or a tuple of such."""

    @abstractmethod
    def measure(self, fn: Callable[..., Any], tensors: EagerTensors) -> Any:
        """`fn` of tensors in memory: a number, or numbers per parameter."""

    @abstractmethod
    def escapes(self, what: str) -> None:
        """A link has `what`, of which nobody knows what it makes."""

    @abstractmethod
    def load(self, tensors: EagerTensors, fitted: EagerTensors, fit: Callable[[EagerTensors], EagerTensors]) -> None:
        """Tensors from memory came onto the tape, laid out as their weights."""


class Number(Operand[Any]):
    """One number of a ledger, with the arithmetic of a float. What asks for more than arithmetic leaves the ledger."""

    __slots__ = ("at", "ledger")

    def __init__(self, ledger: Ledger, at: Any) -> None:
        self.ledger, self.at = ledger, at

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        other = b if a is self else a
        return self.ledger.apply(op, (a, b)) if isinstance(other, (int, float, Tensor, Operand)) else NotImplemented

    def _apply(self, op: str, args: tuple[Any, ...]) -> Any:
        return self.ledger.apply(op, args)

    def _is_mask(self) -> bool:
        return True  # one number is a condition for all

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __hash__(self) -> int:  # type: ignore[override]  # a key of a dict is a value
        return hash(self.item())

    def __neg__(self) -> Any:
        return self.ledger.apply("neg", (self,))

    def __abs__(self) -> Any:
        return self.ledger.apply("abs", (self,))

    def __mod__(self, other: Any) -> Any:  # Python's own, which raises at zero; Tensors have theirs
        return NotImplemented if isinstance(other, Tensors) else self._binary("mod", self, other)

    def __floordiv__(self, other: Any) -> Any:
        return self._binary("floordiv", self, other)

    def __rmod__(self, other: Any) -> Any:
        return self._binary("mod", other, self)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._binary("floordiv", other, self)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.item(), digits)

    def __trunc__(self) -> Any:
        return self.ledger.apply("trunc", (self,))

    def tensor(self) -> Tensor:
        """It as a 0-d tensor."""
        return self.ledger.tensor(self)

    def item(self) -> Any:
        """Its value on the host."""
        return self.ledger.item(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __bool__(self) -> bool:
        return self.ledger.truth(self)

    def __repr__(self) -> str:
        return repr(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(_tensor, args), **{n: _tensor(v) for n, v in (kwargs or {}).items()})


def _tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Number) else value


class Each(Scalars):
    """One number per parameter, of a ledger."""

    __slots__ = ("at", "ledger", "names")

    def __init__(self, ledger: Ledger, at: Any, names: tuple[str, ...]) -> None:
        self.ledger, self.at, self.names = ledger, at, names
        self._values, self._index, self._column = None, None, None

    @property
    def _named(self) -> dict[str, Any]:  # read by everything that is no arithmetic
        if self._values is None:
            self._values = self.ledger.named(self)
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
        return self.ledger.apply("neg", (self,))

    def alike(self) -> bool:
        return self.ledger.alike(self)

    def largest(self) -> Any:
        return self.ledger.largest(self)

    def tensor(self) -> Tensor:
        """They as one tensor."""
        return self.ledger.tensor(self)


def names_in(args: Sequence[Any]) -> tuple[str, ...] | None:
    """The parameters for which all numbers per parameter have one; None where each argument is one number."""
    names: tuple[str, ...] | None = None
    for arg in args:
        if isinstance(arg, Scalars):
            mine = arg.names if isinstance(arg, Each) else tuple(arg)
            if names is None:
                names = mine
            elif mine != names:
                held = frozenset(mine)
                names = tuple(n for n in names if n in held)
    return names
