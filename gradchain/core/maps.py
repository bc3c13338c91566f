"""Functions of whole tensors: of one entry after another, or of equal entries in stacks.

Torch does many small products in one call much faster than in many calls, and large ones no faster; a stack that does
not fit the cache is slower than its entries. So how many are stacked is a rule of their size and their device, which
nothing measures: it is the same in every run and on every rank. Its numbers for the CPU are measured, by products of
64² (five times as fast), of 256² (a tenth, in stacks of eight) and of 512² (slower); for other devices they are chosen
so that thousands of small matrices are a few calls.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.eager import EagerTensors, common
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars
from gradchain.core.tensors import Tensors

ALONE = {"cpu": 2**19}
"""Bytes from which an entry is not stacked, where its largest tensor is larger than that; by type of device."""
STACK = {"cpu": 2**21}
"""Bytes of a stack at most."""
ALONE_ELSEWHERE, STACK_ELSEWHERE = 2**22, 2**26


READ = "entries were read as tensors: what a link makes of those torch computes, and no kernel"
"""What `explain()` says where a link looked into Tensors."""


class Calls:
    """How a map called its function when it last ran, for `explain()`.

    Attributes:
        name: the function's.
        batched: whether it is given stacks.
        sizes: (shape of an entry, how many were given at once) → how many such calls there were.
    """

    def __init__(self, fn: Callable[..., Any], batched: bool) -> None:
        inner: Any = fn
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.name: str = getattr(inner, "__name__", type(inner).__name__)
        self.batched = batched
        self.sizes: Counter[tuple[tuple[int, ...], int]] = Counter()

    def __str__(self) -> str:
        count = sum(size * calls for (_, size), calls in self.sizes.items())
        if not self.batched:
            return f"map {self.name}: {count} entries one by one"
        told = (_told(shape, size, calls) for (shape, size), calls in self.sizes.items())
        calls = sum(self.sizes.values())
        of = f"{calls} {'call' if calls == 1 else 'calls'}"
        return f"map {self.name}: {count} {'entry' if count == 1 else 'entries'} in {of}: {', '.join(told)}"


def _told(shape: tuple[int, ...], size: int, calls: int) -> str:
    of = "×".join(map(str, shape)) or "one element"
    return f"{calls} of {size} × ({of})"


def mapped(
    fn: Callable[..., Any], batched: bool, results: int | None, calls: Calls, tensors: EagerTensors, *others: Any
) -> Any:
    """`fn` of each entry of tensors in memory: Tensors, or a tuple of them where `fn` returns tuples."""
    operands = [tensors, *(o.value if isinstance(o, Count) else o for o in others)]
    index = common([o for o in operands if isinstance(o, (Tensors, Scalars))])
    calls.sizes.clear()
    made = _of_stacks(fn, index, operands, calls) if batched else _of_entries(fn, index, operands, calls)
    if not made and results is None:
        return EagerTensors(index, [])
    many = _number_of_results(index, made, results)
    columns = [_column(index, tensors, [row[k] for row in made]) for k in range(abs(many))]
    return columns[0] if many < 0 else tuple(columns)


def gathered(fn: Callable[..., Any], *operands: Any) -> Any:
    """`fn` of operands whose tensors are whole on every rank; each rank keeps its part of what it gives.

    What has the shape of the entry it is of lies over the ranks as that does; of other shapes every rank has all.
    """
    made = fn(*(_whole(o) if isinstance(o, EagerTensors) else o for o in operands))
    like = dict(zip(operands[0].index.names, operands[0]._data, strict=True))
    return tuple(_parted(m, like) for m in made) if isinstance(made, tuple) else _parted(made, like)


def _whole(tensors: EagerTensors) -> EagerTensors:
    values = tensors._values()
    if not any(map(_torch.is_dtensor, values)):
        return tensors
    compared = tensors._compared if tensors._is_mask() else None
    return EagerTensors(tensors.index, list(map(_torch.whole, values)), compared=compared)


def _parted(tensors: EagerTensors, like: dict[str, Tensor]) -> EagerTensors:
    rows = zip(tensors.index.names, tensors._values(), strict=True)
    data = [_torch.parted(value, like[name]) for name, value in rows]
    return EagerTensors(tensors.index, data, compared=tensors._compared)


def _of_entries(fn: Callable[..., Any], index: Index, operands: Sequence[Any], calls: Calls) -> list[Any]:
    """What `fn` returns of each entry."""
    made = []
    for name in index.names:
        row = _row(operands, name)
        calls.sizes[(tuple(row[0].shape), 1)] += 1
        made.append(_checked(_called(fn, name, row), name, row[0]))
    return made


def _called(fn: Callable[..., Any], name: str, row: Sequence[Any]) -> Any:
    try:
        return fn(*row)
    except NotImplementedError as error:  # torch has no rule for it where tensors are spread over ranks
        if not _torch.is_dtensor(row[0]):
            raise
        raise NotImplementedError(
            f"Tensors.map: fn must compute with tensors that are spread over ranks, as {name!r} is, got: {error}. "
            "map(fn, gather=True) gives it whole ones."
        ) from error


def _row(operands: Sequence[Any], name: str) -> list[Any]:
    """One entry of each operand, its tensors in one dtype as in other arithmetic: a slot may be wider, or narrower.

    A model that was moved to another dtype has slots of the one before, and torch multiplies no matrices of two.
    """
    row = [_entry(operand, name) for operand in operands]
    numbers = [k for k, o in enumerate(operands) if isinstance(o, Tensors) and row[k].dtype is not torch.bool]
    kinds = {row[k].dtype.to_real() for k in numbers}
    if len(kinds) > 1:
        wide = functools.reduce(torch.promote_types, kinds)
        for k in numbers:
            row[k] = row[k].to(wide.to_complex() if row[k].is_complex() else wide)
    return row


def _entry(operand: Any, name: str) -> Any:
    """One entry of an operand, a tensor in the compute dtype; a number is the same for every entry."""
    if isinstance(operand, Tensors):
        value = _torch.widened([operand[name]])[0]
        real = not value.is_complex() and value.dtype is not torch.bool
        pairs = name in operand.index.complex and real and value.shape[-1] == 2
        return torch.view_as_complex(value.contiguous()) if pairs else value
    return operand[name] if isinstance(operand, Scalars) else operand


# stacks


def _of_stacks(fn: Callable[..., Any], index: Index, operands: Sequence[Any], calls: Calls) -> list[Any]:
    """The same, where `fn` is called with stacks of them."""
    many = [isinstance(operand, Tensors) for operand in operands]
    rows = [_row(operands, name) for name in index.names]
    made: list[Any] = [None] * len(rows)
    for places in stacks([[v for v, is_many in zip(row, many, strict=True) if is_many] for row in rows]):
        first = rows[places[0]][0]
        given = [_stacked(operand, [rows[p][k] for p in places], first) for k, operand in enumerate(operands)]
        calls.sizes[(tuple(first.shape), len(places))] += 1
        name = index.names[places[0]]
        out = _checked(_called(fn, name, given), name, first, len(places))
        for position, row in zip(places, _rows_of(out, first.dtype), strict=True):
            made[position] = row
    return made


def stacks(rows: Sequence[Sequence[Tensor]]) -> Iterator[list[int]]:
    """Which rows are given together: those of equal shapes, dtypes and devices, as many as the rule says."""
    groups: dict[Any, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(tuple((t.shape, t.dtype, t.device) for t in row), []).append(position)
    for places in groups.values():
        size = stack_size(rows[places[0]])
        yield from (places[i : i + size] for i in range(0, len(places), size))


def stack_size(row: Sequence[Tensor]) -> int:
    """How many of such rows one stack has at most: a rule of the bytes of the largest tensor, and of its device."""
    kind = row[0].device.type
    each = max(t.numel() * t.element_size() for t in row)
    if each > ALONE.get(kind, ALONE_ELSEWHERE) or any(_torch.is_dtensor(t) for t in row):
        return 1
    return max(1, STACK.get(kind, STACK_ELSEWHERE) // max(each, 1))


def _stacked(operand: Any, values: list[Any], first: Tensor) -> Any:
    """One operand of a stack; numbers per parameter as a tensor that broadcasts against what has entries' shape."""
    if isinstance(operand, Tensors):
        return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
    if not isinstance(operand, Scalars):
        return operand
    dtype = torch.float32 if first.dtype is torch.bool else first.dtype.to_real()
    if any(isinstance(v, Tensor) for v in values):
        column = torch.stack([torch.as_tensor(v, dtype=dtype, device=first.device) for v in values])
    else:
        column = torch.tensor(values, dtype=dtype, device=first.device)
    return column.view(-1, *[1] * first.ndim)


def _rows_of(out: Any, dtype: torch.dtype) -> Iterable[Any]:
    """What was returned of a stack, entry by entry; in their dtype already, which is one call for all of them."""
    if isinstance(out, Tensor):
        return _like(out, dtype).unbind()
    return list(zip(*(_like(tensor, dtype).unbind() for tensor in out), strict=True))


def _like(made: Tensor, dtype: torch.dtype) -> Tensor:
    return made.to(dtype) if made.is_floating_point() and dtype.is_floating_point else made


# what a function may return


def _checked(out: Any, name: str, entry: Tensor, stack: int | None = None) -> Any:
    """What `fn` returned, if that is a tensor or a tuple of them, with the dimension of the stack where it got one."""
    if not isinstance(out, (Tensor, tuple)) or (isinstance(out, tuple) and not out):
        cures = {type(None): " Does it lack a return?", list: " Several tensors are a tuple."}
        got = "an empty tuple" if out == () else type(out).__name__
        raise TypeError(
            f"Tensors.map: fn must return a tensor or a tuple of tensors, got {got} for {name!r}."
            + cures.get(type(out), "")
        )
    for value in out if isinstance(out, tuple) else (out,):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"Tensors.map: fn must return a tensor or a tuple of tensors, got a tuple with {type(value).__name__} "
                f"for {name!r}."
            )
        if stack is not None and (not value.ndim or value.shape[0] != stack):
            raise ValueError(
                f"Tensors.map: fn must keep the first dimension, that of the stack, which is {stack}, got shape "
                f"{tuple(value.shape)} of entries as {name!r}. With batched=True fn is given (stack, *shape)."
            )
        if value.is_complex() and not entry.is_complex():
            raise ValueError(
                f"Tensors.map: fn must return real tensors where the parameter is real, got {value.dtype} for {name!r}."
            )
        if value.device != entry.device:
            raise ValueError(
                f"Tensors.map: fn must return tensors on the device of the entry, {entry.device}, got {value.device} "
                f"for {name!r}."
            )
    return out


def _number_of_results(index: Index, made: list[Any], results: int | None) -> int:
    """How many Tensors there are to be, negative where `fn` returns no tuples; each row becomes a tuple."""
    counts = [len(row) if isinstance(row, tuple) else -1 for row in made]
    wanted = results if results is not None else counts[0]
    for at, (name, count) in enumerate(zip(index.names, counts, strict=True)):
        if count != wanted:
            asked = f"{_many(wanted)}, as " + ("results says" if results is not None else f"for {index.names[0]!r}")
            raise ValueError(f"Tensors.map: fn must return {asked}, got {_many(count)} for {name!r}.")
        if count < 0:
            made[at] = (made[at],)
    return wanted


def _many(count: int) -> str:
    return "one tensor" if count < 0 else f"a tuple of {count}"


def _column(index: Index, tensors: EagerTensors, values: list[Tensor]) -> EagerTensors:
    """One result of all entries, in the compute dtype; a mask where all are truth values."""
    held, position = tensors._dtypes(), tensors.index.position
    dtypes = held if index is tensors.index else [held[position[n]] for n in index.names]
    mask = all(v.dtype is torch.bool for v in values)
    data = [_kept(v, n in index.complex, d, mask) for v, n, d in zip(values, index.names, dtypes, strict=True)]
    return EagerTensors(index, data, compared=dtypes if mask and data else None)


def _kept(value: Tensor, of_complex: bool, dtype: torch.dtype, mask: bool) -> Tensor:
    if mask:
        return torch.stack([value, value], -1) if of_complex else value  # it holds for both parts
    if not of_complex:
        return value.to(dtype)
    return torch.view_as_real(value.to(dtype.to_complex()).resolve_conj())
