"""Numbers a rule computes with: host floats, 0-d tensors, and one number per parameter; and counts.

A rule never asks which it holds: `minimum`, `maximum`, `where`, `sqrt` and the other functions here take any of them,
and Tensors too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from gradchain._numbers import as_number as as_number
from gradchain._numbers import whole_number as whole_number
from gradchain.core import _torch
from gradchain.core.index import Index
from gradchain.core.operations import OPERATIONS

# A float to its reader; in fact a float, an int, a 0-d tensor or Scalars. Any, so that rules read as arithmetic.
Scalar: TypeAlias = Any

R = TypeVar("R")


def on_host(value: Any) -> Any:
    """A number as Python has it, of numpy too; that in a tensor of one where reading it costs nothing, else 0-d.

    One on an accelerator stays there, for reading it would wait; so does one that a gradient or `torch.func` follows.
    Anything else as it is.
    """
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, Tensor):
        if value.ndim and value.numel() == 1:
            value = value.reshape(())
        followed = value.requires_grad or _torch.under_functorch()
        return value if value.ndim or value.device.type != "cpu" or followed else value.item()
    number = as_number(value)
    return value if number is None else number


class Operand(Generic[R]):
    """The operators shared by everything elementwise: each is one call of `_binary`, with the operand's side.

    R is what they return.
    """

    __slots__ = ()
    __array_ufunc__ = None  # numpy's numbers leave `x * operand` to the operand
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

    def __mod__(self, other: Any) -> R:
        return self._binary("remainder", self, other)

    def __rmod__(self, other: Any) -> R:
        return self._binary("remainder", other, self)

    def __lt__(self, other: Any) -> R:
        return self._binary("lt", self, other)

    def __le__(self, other: Any) -> R:
        return self._binary("le", self, other)

    def __gt__(self, other: Any) -> R:
        return self._binary("gt", self, other)

    def __ge__(self, other: Any) -> R:
        return self._binary("ge", self, other)


def as_operand(value: Any) -> Any:
    """A number of numpy's as Python has it; anything else as it is."""
    number = None if isinstance(value, (int, float, Tensor, Operand)) else as_number(value)
    return value if number is None else number


HOST: dict[str, Callable[..., Any]] = {name: o.host for name, o in OPERATIONS.items() if o.host is not None}
"""What each operation that numbers have is for numbers of the host."""

_COLUMNS = {name: o.column for name, o in OPERATIONS.items() if o.column is not None}


class Scalars(Operand[Any], Mapping[str, Any]):
    """One number per parameter, with the arithmetic of a number. Entries meet by name; absent stays absent."""

    # Numbers that a hyperparameter was given per parameter are one column over an Index: then a product costs no loop.
    # They are then looked up by name only where somebody asks. A column never changes once it is here.
    __slots__ = ("_column", "_index", "_values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] | None = dict(values)
        self._index: Index | None = None
        self._column: Tensor | None = None

    @classmethod
    def over(cls, index: Index, column: Tensor) -> Scalars:
        """The entries of an Index, from a float64 tensor in its order."""
        made = cls.__new__(cls)
        made._values, made._index, made._column = None, index, column
        return made

    @classmethod
    def of(cls, index: Index, value: float) -> Scalars:
        """One number for each entry of an Index."""
        return cls.over(index, torch.full((len(index),), value, dtype=torch.float64, device="cpu"))

    @property
    def _named(self) -> dict[str, Any]:
        if self._values is None:
            assert self._index is not None and self._column is not None
            self._values = dict(zip(self._index.names, self._column.tolist(), strict=True))
        return self._values

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named) if self._index is None else len(self._index)

    def __repr__(self) -> str:
        return f"Scalars({self._named})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Scalars, (self._named,)

    def __bool__(self) -> bool:
        raise TypeError(
            "Scalars: numbers per parameter have no single truth value. In place of if use gch.where(condition, a, b)."
        )

    def __eq__(self, other: object) -> Any:
        return self._binary("eq", self, other)

    def __neg__(self) -> Scalars:
        return self.map(operator.neg) if self._column is None else Scalars.over(self._index, -self._column)  # type: ignore[arg-type]  # both or none

    def map(self, fn: Callable[..., Any], *others: Any) -> Scalars:
        """`fn` of each entry, and of the same entry of every other Scalars (a plain number serves all)."""
        if self._column is not None and not any(isinstance(o, Scalars) for o in others):
            mapped = self._mapped_column(fn, others)
            if mapped is not None:
                return mapped
        mine, names = self._named, iter(self)
        rows = [o._named if isinstance(o, Scalars) else None for o in others]
        shared = [n for n in names if all(row is None or n in row for row in rows)]
        pairs = list(zip(rows, others, strict=True))
        return Scalars({n: fn(mine[n], *(o if row is None else row[n] for row, o in pairs)) for n in shared})

    def _mapped_column(self, fn: Callable[..., Any], others: tuple[Any, ...]) -> Scalars | None:
        """`fn` of each distinct number; None where it gives something else than floats."""
        assert self._column is not None and self._index is not None
        numbers = self._column.tolist()
        made = {number: fn(number, *others) for number in dict.fromkeys(numbers)}
        if any(type(result) is not float for result in made.values()):
            return None
        column = torch.tensor([made[number] for number in numbers], dtype=torch.float64, device="cpu")
        return Scalars.over(self._index, column)

    def overlay(self, other: Mapping[str, Any]) -> Scalars:
        """These entries, replaced by those of `other` where it has them."""
        if isinstance(other, Scalars) and tuple(other) == tuple(self):
            return other
        return Scalars({**self._named, **other})

    def select(self, names: Iterable[str]) -> Scalars:
        """The entries of these names."""
        names = tuple(names)
        if names == tuple(self):
            return self
        mine = self._named
        return Scalars({n: mine[n] for n in names if n in mine})

    def within(self, index: Index) -> Index:
        """Those entries of `index` that are here."""
        if index is self._index:
            return index
        mine = self._named
        return index if all(n in mine for n in index.names) else index.subset(mine)

    @property
    def column(self) -> tuple[Index, Tensor] | None:
        """The entries as a float64 tensor in the order of an Index, where they lie so."""
        return None if self._index is None or self._column is None else (self._index, self._column)

    def listed(self, names: Iterable[str]) -> list[Any]:
        """The entries of these names, which must be here, in their order."""
        return list(map(self._named.__getitem__, names))

    def alike(self) -> bool:
        """Whether all entries are one number; so are none at all."""
        return len(set(self._named.values())) <= 1

    def largest(self) -> Any:
        """The largest entry, none of which is negative; NaN where there is one, and 0 of none."""
        held = list(self._named.values())
        plain = all(isinstance(v, Tensor) and v.device.type != "cpu" and not v.requires_grad for v in held)
        if len(held) > 1 and plain and not _torch.under_functorch():
            return torch.stack(held).amax()  # where each comparison would be a launch
        out: Any = 0.0
        for number in held:
            out = maximum(out, number)
        return out

    def extremes(self) -> tuple[float, float]:
        """The least and the largest entry of a column that has any; NaN where there is one."""
        assert self._column is not None
        low, high = torch.aminmax(self._column)
        return low.item(), high.item()

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        if isinstance(a, Count):
            a = a.value
        if isinstance(b, Count):
            b = b.value
        of_columns = _COLUMNS.get(op)
        if of_columns is not None:
            x, y = _same_columns(a, b, self._index)
            if x is not None:
                assert self._index is not None
                return Scalars.over(self._index, of_columns(x, y))
        rule, a, b = HOST[op], as_operand(a), as_operand(b)
        if isinstance(a, Scalars):
            recorded = hasattr(b, "_apply")  # it knows what to do
            return a.map(rule, b) if isinstance(b, (int, float, Tensor, Scalars)) and not recorded else NotImplemented
        return b.map(lambda y, x: rule(x, y), a) if isinstance(a, (int, float, Tensor)) else NotImplemented


def _same_columns(a: Any, b: Any, index: Index | None) -> tuple[Any, Any]:
    """Each as a column over `index` or a host number; None for both where they are not."""
    out: list[Any] = []
    for value in (a, b):
        if type(value) is Scalars and value._index is index and value._column is not None:
            out.append(value._column)
        elif type(value) is float or type(value) is int:
            out.append(value)
        else:
            return None, None
    return out[0], out[1]


class Count(Operand[Any]):
    """How often each parameter was updated: an int while all agree, else one number per parameter.

    `count.tick(updates)` is the count after these updates: only entries that are present advance, as in torch.optim.
    """

    __slots__ = ("_counts", "_names", "_uniform")

    def __init__(self, names: Iterable[str], value: int | Mapping[str, int] = 0) -> None:
        self._names: tuple[str, ...] = names.names if isinstance(names, Index) else tuple(names)
        self._uniform: int | None = None
        self._counts: Scalars | None = None
        if type(value) is int or not isinstance(value, Mapping):
            self._uniform = value
            return
        counts = value if isinstance(value, Scalars) else Scalars({n: value[n] for n in self._names})
        if counts.alike():
            self._uniform = counts[self._names[0]] if self._names else 0
        else:
            self._counts = counts

    @property
    def value(self) -> Scalar:
        """The int all parameters agree on, or Scalars of ints."""
        return self._uniform if self._counts is None else self._counts

    @property
    def uniform(self) -> int | None:
        """The int all parameters agree on, or None."""
        return self._uniform

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters counted."""
        return self._names

    def tick(self, updates: Mapping[str, Any]) -> Count:
        """The count after `updates`: one more for every entry that is present."""
        if self._uniform is not None and len(updates) >= len(self._names):
            return Count(self._names, self._uniform + 1 if self._names else 0)
        return Count(self._names, self.value + Scalars({n: int(n in updates) for n in self._names}))

    def due(self, every: Scalar) -> Scalar:
        """Whether work is due that is done at the first update, and at every `every`-th from there.

        Ask a count that has ticked for this update: a truth while all agree, else one for each parameter.
        """
        return (self - 1) % every == 0

    def of(self, name: str) -> int:
        """The count of one parameter."""
        if self._counts is None:
            assert self._uniform is not None
            return self._uniform
        return self._counts[name]  # type: ignore[no-any-return]  # an int

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
        shared = [n for n in names if n in mine]
        return Count(shared, {n: self.of(n) for n in shared})

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

    def __neg__(self) -> Scalar:
        return -self.value

    def _binary(self, op: str, a: Any, b: Any) -> Any:
        a = a.value if isinstance(a, Count) else a
        b = b.value if isinstance(b, Count) else b
        if isinstance(a, Operand) or isinstance(b, Operand):
            return getattr(operator, _DUNDER.get(op, op))(a, b)
        return HOST[op](a, b)


_DUNDER = {"div": "truediv", "remainder": "mod"}


def _dispatch(op: str, args: tuple[Any, ...]) -> Any:
    args = tuple(a.value if isinstance(a, Count) else a for a in args)
    for arg in args:
        if isinstance(arg, Operand) and hasattr(arg, "_apply"):
            return arg._apply(op, args)  # Tensors, and numbers that are traced or recorded
    names: list[str] | None = None
    for arg in args:
        if isinstance(arg, Scalars):
            names = [n for n in (arg if names is None else names) if n in arg]
    if names is not None:
        rows = {n: tuple(a[n] if isinstance(a, Scalars) else a for a in args) for n in names}
        return Scalars({n: _dispatch(op, row) for n, row in rows.items()})
    deciding = args[:1] if op == "where" else args  # a truth of the host chooses between whatever is there
    return OPERATIONS[op].truth(*args) if any(isinstance(a, Tensor) for a in deciding) else HOST[op](*args)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers, 0-d tensors, Scalars or Tensors, elementwise; a NaN stays a NaN."""
    return HOST["minimum"](a, b) if type(a) is float and type(b) is float else _dispatch("minimum", (a, b))


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers, 0-d tensors, Scalars or Tensors, elementwise; a NaN stays a NaN."""
    return HOST["maximum"](a, b) if type(a) is float and type(b) is float else _dispatch("maximum", (a, b))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition` holds, else `b`; any of the three may be a number, 0-d tensor, Scalars or Tensors.

    Tensors are a condition where a comparison gave them.
    """
    if isinstance(condition, Operand) and not isinstance(condition, (Scalars, Count)) and not condition._is_mask():  # type: ignore[attr-defined]
        raise TypeError("where: the condition must be a mask, got Tensors of numbers. Compare them with a number.")
    return _dispatch("where", (condition, a, b))


def sqrt(a: Any) -> Any:
    """The square root of a number, 0-d tensor, Scalars or Tensors; of a negative number it is NaN."""
    return _dispatch("sqrt", (a,))


def exp(a: Any) -> Any:
    """e to the power of a number, 0-d tensor, Scalars or Tensors; inf where that is too large."""
    return _dispatch("exp", (a,))


def expm1(a: Any) -> Any:
    """`exp(a) - 1` of a number, 0-d tensor, Scalars or Tensors; of a small one without losing its digits."""
    return _dispatch("expm1", (a,))


def log(a: Any) -> Any:
    """The natural logarithm of a number, 0-d tensor, Scalars or Tensors; of 0 it is -inf, of a negative number NaN."""
    return _dispatch("log", (a,))


def log1p(a: Any) -> Any:
    """`log(1 + a)` of a number, 0-d tensor, Scalars or Tensors; of a small one without losing its digits."""
    return _dispatch("log1p", (a,))


def tanh(a: Any) -> Any:
    """The hyperbolic tangent of a number, 0-d tensor, Scalars or Tensors."""
    return _dispatch("tanh", (a,))


def erf(a: Any) -> Any:
    """The error function of a number, 0-d tensor, Scalars or Tensors."""
    return _dispatch("erf", (a,))


def atan2(y: Any, x: Any) -> Any:
    """The angle of (x, y), -pi to pi; either may be a number, 0-d tensor, Scalars or Tensors. Of (0, 0) it is 0."""
    return _dispatch("atan2", (y, x))


def round(a: Any) -> Any:
    """The nearest integer to a number, 0-d tensor, Scalars or Tensors; the even one of two that are as near."""
    return _dispatch("round", (a,))


def floor(a: Any) -> Any:
    """The largest integer that is not above a number, 0-d tensor, Scalars or Tensors."""
    return _dispatch("floor", (a,))


def remainder(a: Any, b: Any) -> Any:
    """`a % b`, which has the sign of `b`; either may be a number, 0-d tensor, Scalars or Tensors. By 0 it is NaN."""
    return _dispatch("remainder", (a, b))


BESIDE: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "mod": operator.mod,
    "floordiv": operator.floordiv,
    "trunc": math.trunc,
    "binade": lambda a: math.ldexp(1.0, math.frexp(a)[1] - 1),
}
"""What Python does with numbers beside the operations."""


def binade(a: Scalar) -> Scalar:
    """The power of two at or below a number above 0."""
    return a._apply("binade", (a,)) if isinstance(a, Operand) else BESIDE["binade"](a)  # type: ignore[attr-defined]  # one of a ledger


ANY: dict[str, Callable[..., Any]] = {
    **HOST,
    **BESIDE,
    **{of.__name__: of for of in (minimum, maximum, where, sqrt, exp, expm1, log, log1p, tanh, erf)},
    **{of.__name__: of for of in (atan2, round, floor, remainder)},
}
"""What each operation is for numbers of any kind: of the host, 0-d tensors, and one per parameter."""
