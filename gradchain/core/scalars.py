"""Numbers a rule computes with: host floats, 0-d tensors, and one number per parameter; and counts.

A rule never asks which it holds: `minimum`, `maximum`, `where` and `sqrt` take any of them, and Tensors too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from gradchain.core.index import Index

# A float to its reader; in fact a float, an int, a 0-d tensor or Scalars. Any, so that rules read as arithmetic.
Scalar: TypeAlias = Any

R = TypeVar("R")


def divide(a: Any, b: Any) -> Any:
    """`a / b` with a tensor's answer to zero: inf or nan, where Python would raise."""
    if isinstance(b, (int, float)) and b == 0 and isinstance(a, (int, float)):
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


class Operand(Generic[R]):
    """The operators shared by everything elementwise: each is one call of `_binary`, with the operand's side.

    R is what they return.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # elementwise things have no truth, hence no equality to hash by

    def _binary(self, op: str, a: Any, b: Any) -> R:
        raise NotImplementedError

    def __add__(self, other: Any) -> R:
        return self._binary("add", self, other)

    def __radd__(self, other: Any) -> R:
        return self._binary("add", other, self)

    def __sub__(self, other: Any) -> R:
        return self._binary("sub", self, other)

    def __rsub__(self, other: Any) -> R:
        return self._binary("sub", other, self)

    def __mul__(self, other: Any) -> R:
        return self._binary("mul", self, other)

    def __rmul__(self, other: Any) -> R:
        return self._binary("mul", other, self)

    def __truediv__(self, other: Any) -> R:
        return self._binary("div", self, other)

    def __rtruediv__(self, other: Any) -> R:
        return self._binary("div", other, self)

    def __pow__(self, other: Any) -> R:
        return self._binary("pow", self, other)

    def __rpow__(self, other: Any) -> R:
        return self._binary("pow", other, self)

    def __lt__(self, other: Any) -> R:
        return self._binary("lt", self, other)

    def __le__(self, other: Any) -> R:
        return self._binary("le", self, other)

    def __gt__(self, other: Any) -> R:
        return self._binary("gt", self, other)

    def __ge__(self, other: Any) -> R:
        return self._binary("ge", self, other)


_HOST: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": divide,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
}


class Scalars(Operand[Any], Mapping[str, Any]):
    """One number per parameter, with the arithmetic of a number. Entries meet by name; absent stays absent."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Scalars({self._values})"

    def __bool__(self) -> bool:
        raise TypeError(
            "Scalars: numbers per parameter have no single truth value. In place of if use gch.where(condition, a, b)."
        )

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __neg__(self) -> Scalars:
        return Scalars({n: -v for n, v in self.items()})

    def map(self, fn: Callable[..., Any], *others: Any) -> Scalars:
        """`fn` of each entry, and of the same entry of every other Scalars (a plain number serves all)."""
        names: Iterable[str] = self
        for other in others:
            if isinstance(other, Scalars):
                names = [n for n in names if n in other._values]
        return Scalars(
            {n: fn(self._values[n], *(o._values[n] if isinstance(o, Scalars) else o for o in others)) for n in names}
        )

    def overlay(self, other: Mapping[str, Any]) -> Scalars:
        """These entries, replaced by those of `other` where it has them."""
        return Scalars({**self._values, **other})

    def select(self, names: Iterable[str]) -> Scalars:
        """The entries of these names."""
        return Scalars({n: self._values[n] for n in names if n in self._values})

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        if isinstance(a, Count):
            a = a.value
        if isinstance(b, Count):
            b = b.value
        rule = _HOST[op]
        if isinstance(a, Scalars):
            return a.map(rule, b) if isinstance(b, (int, float, Tensor, Scalars)) else NotImplemented
        return b.map(lambda y, x: rule(x, y), a) if isinstance(a, (int, float, Tensor)) else NotImplemented


class Count(Operand[Any]):
    """How often each parameter was updated: an int while all agree, else one number per parameter.

    `count.tick(updates)` is the count after these updates: only entries that are present advance, as in torch.optim.
    """

    __slots__ = ("_counts", "_names", "_uniform")

    def __init__(self, names: Iterable[str], value: int | Mapping[str, int] = 0) -> None:
        self._names: tuple[str, ...] = names.names if isinstance(names, Index) else tuple(names)
        self._uniform: int | None = None
        self._counts: dict[str, int] | None = None
        if isinstance(value, int):
            self._uniform = value
            return
        counts = {n: value[n] for n in self._names}
        distinct = set(counts.values())
        if len(distinct) <= 1:
            self._uniform = distinct.pop() if distinct else 0
        else:
            self._counts = counts

    @property
    def value(self) -> Scalar:
        """The int all parameters agree on, or Scalars of ints."""
        return self._uniform if self._counts is None else Scalars(self._counts)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters counted."""
        return self._names

    def tick(self, updates: Mapping[str, Any]) -> Count:
        """The count after `updates`: one more for every entry that is present."""
        if len(updates) >= len(self._names) and self._counts is None:
            return Count(self._names, self.of(self._names[0]) + 1 if self._names else 0)
        return Count(self._names, {n: self.of(n) + (n in updates) for n in self._names})

    def of(self, name: str) -> int:
        """The count of one parameter."""
        if self._counts is None:
            assert self._uniform is not None
            return self._uniform
        return self._counts[name]

    def overlay(self, other: Count) -> Count:
        """This count, with the entries of `other` in place of its own where it has them."""
        if other._names == self._names:
            return other
        names = (*self._names, *(n for n in other._names if n not in set(self._names)))
        theirs = set(other._names)
        return Count(names, {n: other.of(n) if n in theirs else self.of(n) for n in names})

    def select(self, names: Iterable[str]) -> Count:
        """The counts of these parameters."""
        mine = set(self._names)
        kept = [n for n in names if n in mine]
        return Count(kept, {n: self.of(n) for n in kept})

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        if self._uniform is None:
            raise TypeError("Count: parameters were updated unequally often. Use gch.where(condition, a, b).")
        return self._uniform

    def __repr__(self) -> str:
        return f"Count({self.value})"

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        a = a.value if isinstance(a, Count) else a
        b = b.value if isinstance(b, Count) else b
        if isinstance(a, Operand) or isinstance(b, Operand):
            return getattr(operator, _DUNDER.get(op, op))(a, b)
        return _HOST[op](a, b)


_DUNDER = {"div": "truediv"}


def _dispatch(op: str, host: Callable[..., Any], device: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    args = tuple(a.value if isinstance(a, Count) else a for a in args)
    for arg in args:
        if isinstance(arg, Operand) and not isinstance(arg, Scalars):
            return arg._apply(op, args)  # type: ignore[attr-defined]  # a Tensors: the only other Operand
    names: list[str] | None = None
    for arg in args:
        if isinstance(arg, Scalars):
            names = [n for n in (arg if names is None else names) if n in arg]
    if names is not None:
        rows = {n: tuple(a[n] if isinstance(a, Scalars) else a for a in args) for n in names}
        return Scalars({n: _dispatch(op, host, device, row) for n, row in rows.items()})
    return device(*args) if any(isinstance(a, Tensor) for a in args) else host(*args)


def _device_where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(condition, a, b)


def _device_minimum(a: Any, b: Any) -> Tensor:
    # clamp takes the number as it is: making a tensor of it would wait for the device
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return torch.clamp(a, max=b) if isinstance(a, Tensor) else torch.clamp(b, max=a)


def _device_maximum(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return torch.clamp(a, min=b) if isinstance(a, Tensor) else torch.clamp(b, min=a)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers, 0-d tensors, Scalars or Tensors, elementwise; a NaN stays a NaN."""
    return _dispatch("minimum", _host_minimum, _device_minimum, (a, b))


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers, 0-d tensors, Scalars or Tensors, elementwise; a NaN stays a NaN."""
    return _dispatch("maximum", _host_maximum, _device_maximum, (a, b))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition` holds, else `b`; any of the three may be a number, 0-d tensor, Scalars or Tensors.

    Tensors are a condition where a comparison gave them.
    """
    if isinstance(condition, Operand) and not isinstance(condition, (Scalars, Count)) and not condition._is_mask():  # type: ignore[attr-defined]
        raise TypeError("where: the condition must be a mask, got Tensors of numbers. Compare them with a number.")
    return _dispatch("where", lambda c, a, b: a if c else b, _device_where, (condition, a, b))


def sqrt(a: Any) -> Any:
    """The square root of a number, 0-d tensor, Scalars or Tensors; of a negative number it is NaN."""
    return _dispatch("sqrt", lambda a: math.nan if a < 0 else math.sqrt(a), torch.sqrt, (a,))


def _host_minimum(a: float, b: float) -> float:
    return a if a != a or a < b else b


def _host_maximum(a: float, b: float) -> float:
    return a if a != a or a > b else b
