"""The Tensors that compute at once: the law of the algebra, and the reference every executor is held to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.along import Dims, dims_of, reduced
from gradchain.core.index import Fact, Index
from gradchain.core.operations import OPERATIONS, divide
from gradchain.core.random import Draw
from gradchain.core.scalars import Count, Scalars, on_host
from gradchain.core.shapes import Shapes, check_kept_shapes, check_shapes
from gradchain.core.tensors import Tensors


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as rules see it; any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _complex(tensor: Tensor) -> Tensor:
    """Pairs of reals as a complex tensor; as they are where torch has no complex dtype of theirs (bfloat16, bool)."""
    if tensor.dtype in (torch.bfloat16, torch.bool) or tensor.shape[-1] != 2:  # norms along rows are no pairs
        return tensor
    return torch.view_as_complex(tensor if tensor.stride(-1) == 1 else tensor.contiguous())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor))


class EagerTensors(Tensors):
    """Tensors in memory. A scalar factor is carried and folded into the next sum; a product or root takes it first."""

    __slots__ = ("_compared", "_data", "_factor", "_product", "alike", "index", "odd")

    index: Index  # no property: it is read some ten times in a step

    def __init__(
        self, index: Index, data: list[Tensor], factor: Any = 1.0, compared: list[torch.dtype] | None = None
    ) -> None:
        self.index = index
        self._data = data
        self._factor = factor
        self._compared = compared  # of a mask, entry by entry: the compute dtype of what was compared
        self.alike: object = None  # the same object in all whose tensors were found to be like one another
        self.odd: tuple[object, Shapes | None] | None = None  # shapes that are not the weights', and who found them
        self._product: list[Tensor] | None = None  # of both, once something asked: reading changes no later result

    def __reduce__(self) -> tuple[Any, ...]:
        return EagerTensors, (self.index, self._data, self._factor, self._compared)  # guards are of this process

    @classmethod
    def about(cls, facts: Sequence[Fact]) -> EagerTensors:
        """The tensors the facts are about."""
        return cls(Index(facts), [_real(f.parameter) for f in facts])

    @classmethod
    def at(cls, index: Index, tensors: dict[str, Tensor]) -> EagerTensors:
        """Named tensors as entries of an Index that is already known; `tensors` may lack some of its names."""
        held = index if len(tensors) == len(index) else index.subset(tensors)
        return cls(held, [_real(tensors[n]) for n in held.names])

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, name: str) -> Tensor:
        value = self._values()[self.index.position[name]]
        return _complex(value) if name in self.index.complex and not value.is_complex() else value

    def listed(self, index: Index) -> list[Tensor | None]:
        """The entries in the order of `index`, None for one that is absent."""
        if index is self.index and not index.complex:
            return [*self._values()]
        return [self[name] if name in self.index else None for name in index.names]

    def _values(self) -> list[Tensor]:
        """The entries with the carried factor applied: in the compute dtype where there is one."""
        if not self._is_scaled():
            return self._data
        if self._product is None:
            columns = [_torch.widened(self._data), self._factor]
            self._product = _computed("mul", columns, len(self._data), [True, False])
        return self._product

    def _is_mask(self) -> bool:
        return not self._data or self._data[0].dtype is torch.bool  # without entries it is whatever is asked for

    def _dtypes(self) -> list[torch.dtype]:
        """The compute dtype of each entry; where a mask came without those of what was compared, its parameter's."""
        if not self._is_mask():
            return [v.dtype for v in _torch.widened(self._data)]
        if self._compared is None:
            self._compared = [_real(f.parameter.detach()).dtype for f in self.index.facts]
            self._compared = [torch.promote_types(d, torch.float32) for d in self._compared]
        return self._compared

    def _numbers(self) -> EagerTensors:
        """These entries, where they are a mask as 0 and 1."""
        if not self._is_mask():
            return self
        columns: list[Any] = [self._data, self._dtypes()]
        return EagerTensors(self.index, _torch.pointwise("number", columns, len(self._data)))

    def _is_scaled(self) -> bool:
        return isinstance(self._factor, Tensor) or self._factor != 1.0

    def _column(self, index: Index) -> list[Tensor]:
        """The values of `index`'s entries, in the compute dtype."""
        values = _torch.widened(self._values())
        return values if index is self.index else [values[self.index.position[n]] for n in index.names]

    def _raw(self, index: Index) -> list[Tensor]:
        data = _torch.widened(self._data)
        return data if index is self.index else [data[self.index.position[n]] for n in index.names]

    # elementwise

    def _apply(self, op: str, args: tuple[Any, ...]) -> Tensors:
        args = tuple(a.value if isinstance(a, Count) else a for a in args)
        for arg in args:
            if isinstance(arg, Tensors) and not isinstance(arg, EagerTensors):
                return arg._apply(op, args)  # it knows what to do with tensors in memory
        args = _as_numbers(op, args)
        folded = self._fold(op, args)
        if folded is not None:
            return folded
        index = common(args)
        columns: list[Any] = []
        for arg in args:
            if isinstance(arg, EagerTensors):
                columns.append(arg._column(index))
            else:
                columns.append(arg.listed(index.names) if isinstance(arg, Scalars) else arg)
        try:
            data = _computed(op, columns, len(index), [isinstance(a, Tensors) for a in args])
        except RuntimeError:
            of_tensors = [c for c, arg in zip(columns, args, strict=True) if isinstance(arg, Tensors)]
            check_shapes(op, index.names, [[t.shape for t in column] for column in of_tensors])
            raise
        mask = bool(data) and data[0].dtype is torch.bool
        return EagerTensors(index, data, compared=_compared(index, args) if mask else None)

    def _fold(self, op: str, args: tuple[Any, ...]) -> Tensors | None:
        """The result where the carried factor can go on or into a weighted sum; None where it must be applied."""
        if op == "mul" and (_is_number(args[0]) or _is_number(args[1])):
            tensors, number = args if _is_number(args[1]) else (args[1], args[0])
            return EagerTensors(tensors.index, tensors._data, tensors._factor * number)
        if op == "div" and _is_number(args[1]):
            return EagerTensors(args[0].index, args[0]._data, divide(args[0]._factor, args[1]))
        if op in ("add", "sub") and all(isinstance(a, EagerTensors) for a in args):
            a, b = args
            if a._is_scaled() or b._is_scaled():
                return _weighted_sum(a, b, -1.0 if op == "sub" else 1.0)
        if op == "lerp" and _is_number(args[2]) and args[1]._is_scaled():
            start, end, weight = args
            return (1 - weight) * start + weight * end  # type: ignore[no-any-return]
        return None

    # reductions

    def _norms(self, p: float) -> Scalars:
        norms = [_whole(v) for v in self._norm_list(p)]
        if self._is_scaled():
            factor = abs(self._factor)
            norms = [v * factor for v in norms]
        return Scalars(dict(zip(self, map(on_host, norms), strict=True)))

    def _norm_list(self, p: float) -> list[Tensor]:
        """The norms without the carried factor; those of sharded tensors are not reduced over ranks yet."""
        values = self._numbers()._data
        if not (self.index.complex and p != 2) and _by_lists(values):
            return _torch.norms(values, p)
        out = []
        for name, value in zip(self.index.names, values, strict=True):
            whole = _complex(value) if name in self.index.complex and p != 2 else value
            out.append(_vector_norm(whole, p))
        return out

    def norm(self, p: float = 2.0) -> Any:
        norms = self._norm_list(p)
        return on_host(_whole(_vector_norm(_stacked(norms), p)) * abs(self._factor)) if norms else 0.0

    def _sums(self) -> Scalars:
        return Scalars({n: on_host(v) for n, v in zip(self, self._sum_list(), strict=True)})

    def _sum_list(self) -> list[Tensor]:
        return [_whole(v.sum(dtype=_wide(v))) * self._factor for v in self._data]

    def _total(self) -> Any:
        sums = self._sum_list()
        return on_host(torch.stack([s.to(sums[0].device) for s in sums]).sum()) if sums else 0.0

    def _along(self, word: str, kind: str, dim: Dims) -> Tensors:
        made, values = [], _torch.widened(self._numbers()._values())
        for name, value in zip(self.index.names, values, strict=True):
            dims = dims_of(word, kind, self.index, name, value.shape, dim)
            made.append(_torch.along(partial(reduced, kind), value.to(_wide(value)), dims).to(value.dtype))
        return EagerTensors(self.index, made)

    def _shapes(self) -> list[torch.Size]:
        return [v.shape for v in self._data]

    def all_finite(self) -> bool:
        if isinstance(self._factor, float) and not math.isfinite(self._factor):
            return False
        values = self._values()
        if _by_lists(values):  # a largest magnitude is finite where all elements are
            return not values or bool(torch.isfinite(_stacked(_torch.norms(values, math.inf))).all())
        flags = [torch.isfinite(v).all() for v in values]
        return not flags or bool(_whole(_stacked(flags).all()))

    def _drawn(self, draw: Draw) -> Tensors:
        dtypes = (
            self._dtypes() if self._is_mask() else [torch.promote_types(v.dtype, torch.float32) for v in self._data]
        )
        rows = list(zip(self.index.facts, self._data, dtypes, strict=True))
        if not _torch.number_of_meshes(self._data):
            return EagerTensors(self.index, draw.of_all([(fact, t.shape, dtype, t.device) for fact, t, dtype in rows]))
        return EagerTensors(self.index, [_torch.in_shards(draw.of, fact, like, dtype) for fact, like, dtype in rows])

    def _lift(self, other: Tensors) -> Tensors:
        return other

    # whole tensors

    def map(
        self, fn: Callable[..., Any], *others: Any, batched: bool = False, results: int | None = None,
        gather: bool = False,
    ) -> Any:  # fmt: skip
        from gradchain.core.maps import Calls, gathered, mapped  # it makes EagerTensors

        of = partial(mapped, fn, batched, results, Calls(fn, batched))
        return gathered(of, self, *others) if gather else of(self, *others)

    def select(self, members: Iterable[str]) -> Tensors:
        index = self.index.subset(members)
        if index is self.index:
            return self
        at = [self.index.position[n] for n in index.names]
        compared = [self._dtypes()[i] for i in at] if self._is_mask() else None
        return EagerTensors(index, [self._data[i] for i in at], self._factor, compared)

    def overlay(self, other: Tensors) -> Tensors:
        if other.index is self.index or not len(self):
            return other
        if not isinstance(other, EagerTensors):
            return other._lift(self).overlay(other)
        index = self.index.union(other.index)
        masks = self._is_mask() and other._is_mask()
        under, over = (self, other) if masks else (self._numbers(), other._numbers())

        def laid(mine: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
            of = other.index
            return [theirs[of.position[n]] if n in of else mine[self.index.position[n]] for n in index.names]

        compared = laid(self._dtypes(), other._dtypes()) if masks else None
        return EagerTensors(index, laid(under._values(), over._values()), compared=compared)

    def zeros_like(self, dtype: torch.dtype | None = None) -> Tensors:
        data = self._numbers()._data
        return EagerTensors(self.index, [torch.zeros_like(v, dtype=_real_dtype(dtype)) for v in data])

    def to(self, dtype: torch.dtype) -> Tensors:
        return EagerTensors(self.index, [v.to(dtype) for v in self._values()])

    def clone(self) -> Tensors:
        return EagerTensors(self.index, [v.detach().clone() for v in self._values()], compared=self._compared)

    def addends(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Any]:
        """What `weights += self` writes to, adds, and multiplies that by: it has the very bits of `params + self`."""
        return [_real(w) for w in weights], _torch.widened(self._numbers()._data), self._factor

    def misfit(self, weights: list[Tensor]) -> str | None:
        """The first entry whose shape is not that of its weight."""
        rows = zip(self.index.names, self._data, weights, strict=True)
        return next((name for name, value, weight in rows if value.shape != _real(weight).shape), None)

    def stored_as(self, old: Tensors) -> Tensors:
        assert isinstance(old, EagerTensors)
        if not self.index.within(old.index):
            stray = [n for n in self.index.names if n not in old.index]
            raise ValueError(f"a state must keep its entries, got new ones: {stray[:3]}")
        before, mine = old._values(), self._values()
        position = self.index.position
        check_kept_shapes(self.index.names, self._shapes(), old)
        rows = zip(old.index.names, before, strict=True)
        kept = [mine[position[n]].to(b.dtype) if n in position else b for n, b in rows]
        return EagerTensors(old.index, _torch.laid_as(kept, before))


def _as_numbers(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands as an operation takes them: masks are numbers to all but the logic of masks."""
    masks = [isinstance(a, EagerTensors) and a._is_mask() for a in args]
    if OPERATIONS[op].logical or not any(masks):
        return args
    if op != "where":
        return tuple(a._numbers() if mask else a for a, mask in zip(args, masks, strict=True))
    condition, a, b = args
    if masks[0] and not isinstance(a, Tensors) and not isinstance(b, Tensors):
        a = 0.0 * condition._numbers() + a  # numbers alone say no dtype
    elif not (masks[1] and masks[2]):
        a, b = (v._numbers() if isinstance(v, EagerTensors) else v for v in (a, b))
    return condition, a, b


def _compared(index: Index, args: tuple[Any, ...]) -> list[torch.dtype]:
    """The compute dtypes of what was compared, entry by entry of `index`, or of the masks that were joined."""
    rows = []
    for arg in args:
        if isinstance(arg, EagerTensors):
            dtypes, position = arg._dtypes(), arg.index.position
            rows.append(dtypes if arg.index is index else [dtypes[position[n]] for n in index.names])
    return [functools.reduce(torch.promote_types, row) for row in zip(*rows, strict=True)]


def _computed(op: str, columns: list[Any], size: int, tensors: list[bool]) -> list[Tensor]:
    """One operation, with 0-d tensors among its scalars brought to the entries' devices and kept from widening them."""
    entries = [c for c, is_entry in zip(columns, tensors, strict=True) if is_entry]
    scalars = [c for c, is_entry in zip(columns, tensors, strict=True) if not is_entry and not _is_host(c)]
    if not scalars or not size:
        return _torch.pointwise(op, columns, size)
    first = entries[0]
    if any(v.device != first[0].device for v in first) or any(v.ndim == 0 for v in first):
        columns = [c if is_entry else _fitted(c, first) for c, is_entry in zip(columns, tensors, strict=True)]
    return _torch.pointwise(op, columns, size)


def _is_host(column: Any) -> bool:
    items = column if isinstance(column, list) else [column]
    return not any(isinstance(v, Tensor) for v in items)


def _fitted(column: Any, entries: list[Tensor]) -> Any:
    """A column of scalars, each on its entry's device and, where the entry is 0-d too, in its dtype."""
    items = column if isinstance(column, list) else [column] * len(entries)
    return [
        s
        if not isinstance(s, Tensor)
        else s.to(e.device, e.dtype if e.ndim == 0 and s.is_floating_point() else s.dtype)
        for s, e in zip(items, entries, strict=True)
    ]


def _real_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    return dtype.to_real() if dtype is not None else None


def common(args: Iterable[Any]) -> Index:
    """The entries that every Tensors and Scalars among `args` has."""
    index: Index | None = None
    scalars = []
    for arg in args:
        if isinstance(arg, Tensors):
            index = arg.index if index is None else index.subset(arg.index)
        elif isinstance(arg, Scalars):
            scalars.append(arg)
    assert index is not None
    for scalar in scalars:
        index = scalar.within(index)
    return index


def _weighted_sum(a: EagerTensors, b: EagerTensors, sign: float) -> Tensors:
    index = common((a, b))
    x, y = a._raw(index), b._raw(index)
    alpha = sign * b._factor
    if not a._is_scaled():
        return EagerTensors(index, _torch.add_scaled(x, y, alpha))
    if sign == 1.0 and not b._is_scaled():
        return EagerTensors(index, _torch.add_scaled(y, x, a._factor))
    return EagerTensors(index, _torch.add_scaled(a._column(index), y, alpha))


def _wide(value: Tensor) -> torch.dtype:
    # MPS has no float64; everywhere else long sums are exact enough only there.
    if value.device.type == "mps":
        return torch.complex64 if value.is_complex() else torch.float32
    return torch.complex128 if value.is_complex() else torch.float64


def _whole(value: Tensor) -> Tensor:
    """The whole value of a reduction over a sharded tensor (DTensor): a collective. Any other as it is."""
    return value.full_tensor() if _torch.is_dtensor(value) else value


def _stacked(values: list[Tensor]) -> Tensor:
    """0-d tensors as one tensor: still sharded where all are over the same ranks, which then talk once."""
    if _torch.number_of_meshes(values) > 1:
        values = [_whole(v) for v in values]
    return torch.stack([v.to(values[0].device) for v in values])


def _by_lists(values: list[Tensor]) -> bool:
    """Whether norms of all can be taken by few calls, in float64."""
    return _torch.in_lists(values) and all(v.is_floating_point() and v.device.type != "mps" for v in values)


def _vector_norm(value: Tensor, p: float) -> Tensor:
    if value.numel() == 0:
        return value.new_zeros((), dtype=torch.float32 if value.device.type == "mps" else torch.float64)
    if math.isinf(p) and _torch.is_dtensor(value):
        return _torch.sharded_max_norm(value, _wide(value))
    norm: Tensor = torch.linalg.vector_norm(value, p, dtype=_wide(value))
    return norm


def _flatten(tensors: EagerTensors) -> tuple[list[Any], Any]:
    return list(tensors._values()), tensors.index


def _unflatten(values: Iterable[Any], index: Index) -> EagerTensors:
    return EagerTensors(index, list(values))


_torch.register_pytree(EagerTensors, _flatten, _unflatten)
