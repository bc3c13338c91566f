"""Where the bound parameters lie in memory, and whether each element there is one parameter's alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradchain.core import _torch
from gradchain.core.readable import reach

REBIND = "Carry the state over with updater.rebind(model)."
PLAIN = (Tensor, nn.Parameter)


class Memory:
    """What the parameters were at bind, and where they lay when last looked at."""

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self._names = names
        self._born = [(t.shape, t.is_complex(), t.device) for t in tensors]
        self._lie: object = None
        self._pointers: list[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy lies elsewhere, and the guard of these tensors is not copied
        return {"_names": self._names, "_born": self._born, "_lie": None, "_pointers": None}

    def lie(self, tensors: list[Tensor]) -> object:
        """What is the same object for as long as these tensors lie where they did, and as they did.

        Raises:
            RuntimeError: they lie elsewhere, and no update can be right there. In a sentence.
        """
        if self._pointers is None or not self._still(tensors):
            problem = self.problem(tensors)
            if problem is not None:
                raise RuntimeError(problem)
            self._pointers, self._lie = _pointers(tensors), object()
            self._alike, self._metadata = _torch.guard(tensors), list(map(_metadata, tensors))
        return self._lie

    def _still(self, tensors: list[Tensor]) -> bool:
        if _pointers(tensors) != self._pointers:
            return False
        return (self._alike is not None and self._alike(*tensors)) or list(map(_metadata, tensors)) == self._metadata

    def problem(self, tensors: Sequence[Tensor]) -> str | None:
        """Why these tensors cannot be the bound parameters, in a sentence with its cure; None if they can."""
        for name, (shape, complex_, device), tensor in zip(self._names, self._born, tensors, strict=True):
            found = (
                _changed(name, shape, complex_, device, tensor)
                or memory_for(repr(name), tensor)
                or _covered(name, tensor)
            )
            if found is not None:
                return found
        pair = overlap(tensors)
        if pair is None:
            return None
        first, second = (self._names[i] for i in pair)
        return (
            f"{second!r} must have memory of its own, got elements that are {first!r} too: a step would write them "
            "twice. Make them one Parameter under two names, or copy one: parameter.data = parameter.data.clone()."
        )


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.stride(), tensor.dtype, tensor.shape, tensor.device


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return list(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # some subclasses have no memory that could be asked for
        return [t.data_ptr() if type(t) in PLAIN else 0 for t in tensors]


def _changed(name: str, shape: torch.Size, was_complex: bool, device: torch.device, now: Tensor) -> str | None:
    """What makes a tensor another parameter than it was at bind."""
    if now.shape != shape or now.is_complex() != was_complex:
        was, what = ("complex", "real") if was_complex else ("real", "complex")
        kinds = ("", "") if now.is_complex() == was_complex else (f" of {was} numbers", f" of {what} numbers")
        return (
            f"{name!r} was a parameter of shape {tuple(shape)}{kinds[0]} and now is a tensor of shape "
            f"{tuple(now.shape)}{kinds[1]}. {REBIND} Say how its slots change: remap={{{name!r}: lambda slot: …}}."
        )
    if now.device == device:
        return None
    if now.is_meta:
        return without_values(name, device)
    return f"{name!r} was on {device} and now is on {now.device}. {REBIND}"


def without_values(name: str, device: torch.device) -> str:
    """What to say of a parameter that was moved to meta."""
    return (
        f"{name!r} was on {device} and now is on meta, where it has no values. Bring the model back: "
        f"model.to_empty(device={str(device)!r}), and load its weights."
    )


def memory_for(what: str, tensor: Tensor) -> str | None:
    """What keeps a tensor's elements from being read: a storage that ends before they do."""
    if type(tensor) not in PLAIN or tensor.is_meta or tensor.numel() == 0 or tensor.layout != torch.strided:
        return None
    size, needed = tensor.element_size(), tensor.storage_offset() + reach(tensor)
    there = tensor.untyped_storage().nbytes()
    if there < needed * size:
        return (
            f"{what} must have memory for its elements, got a storage of {there} bytes where shape "
            f"{tuple(tensor.shape)} needs {needed * size}. Resize the storage back first."
        )
    return None


def without_repeats(tensor: Tensor, place: Tensor) -> Tensor:
    """`tensor` once in each direction in which `place`, as after `expand`, is one element many times; or as it is."""
    if place.layout is torch.strided and not place.is_nested:
        for dim, (size, stride) in enumerate(zip(place.shape, place.stride(), strict=True)):
            if size > 1 and stride == 0:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def fits_repeats(tensor: Tensor, place: Tensor) -> bool:
    """Whether all elements of `tensor` that `place` has in one element of memory are equal."""
    if without_repeats(place, place) is place:
        return True
    return torch.equal(without_repeats(tensor, place).expand_as(tensor), tensor)


def _covered(name: str, tensor: Tensor) -> str | None:
    """What keeps a tensor's elements from being written one by one: that two of them are one."""
    if type(tensor) in PLAIN and tensor.numel() and _covers_itself(tensor):
        return (
            f"{name!r} must have memory for each of its elements, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}. Give it some: parameter.data = parameter.data.clone()."
        )
    return None


def _covers_itself(tensor: Tensor) -> bool:
    """Whether two elements of a tensor are one in memory."""
    reach = 1
    steps = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    for step, size in steps:
        if step < reach:  # this dimension begins anew inside what smaller ones span
            break
        reach += step * (size - 1)
    else:
        return False
    if steps[0][0] == 0:
        return True
    where = torch.zeros((), dtype=torch.int64, device="cpu")
    for step, size in steps:
        where = where.unsqueeze(-1) + step * torch.arange(size, device="cpu")
    return len(set(where.flatten().tolist())) < tensor.numel()


class _Span(NamedTuple):
    """From where to where in memory a tensor lies, in bytes."""

    device: str
    begin: int
    end: int
    number: int
    tensor: Tensor


def overlap(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two tensors with an element of memory in common, by position; None if there are none.

    Views that lie between one another in one storage have none.
    """
    spans = [
        _Span(str(t.device), t.data_ptr(), t.data_ptr() + reach(t) * t.element_size(), i, t)
        for i, t in enumerate(tensors)
        if type(t) in PLAIN and not t.is_meta and t.numel()
    ]
    together: list[_Span] = []
    end = 0
    for span in sorted(spans, key=lambda span: span[:4]):
        if together and (span.device != together[0].device or span.begin >= end):
            found = _meeting(together)
            if found is not None:
                return found
            together = []
        end = max(end, span.end) if together else span.end
        together.append(span)
    return _meeting(together)


def _meeting(spans: list[_Span]) -> tuple[int, int] | None:
    """Two of these tensors that share an element, of which each begins inside the span of an earlier one."""
    if len(spans) < 2:
        return None
    for one, other in pairwise(spans):
        if other.begin < one.end and one.tensor.numel() == reach(one.tensor):  # it fills its span
            return _in_order(one, other)
    start, size = spans[0].begin, max(span.end for span in spans) - spans[0].begin
    steps = [s * p.tensor.element_size() for p in spans for s in p.tensor.stride()]
    unit = math.gcd(*steps, *(p.begin - start for p in spans), *(p.tensor.element_size() for p in spans))
    taken = torch.zeros(size // unit, dtype=torch.bool, device="cpu")
    cells = [_cells(taken, span, start, unit) for span in spans]
    for i, mine in enumerate(cells):
        if bool(mine.any()):
            return next(
                _in_order(p, spans[i]) for p, theirs in zip(spans, cells, strict=True) if _common(taken, theirs, mine)
            )
        mine.fill_(True)
    return None


def _cells(memory: Tensor, span: _Span, start: int, unit: int) -> Tensor:
    """The cells of `memory`, each of so many bytes from `start` on, in which a tensor lies."""
    size = span.tensor.element_size() // unit
    strides = [stride * size for stride in span.tensor.stride()]
    return memory.as_strided((*span.tensor.shape, size), (*strides, 1), (span.begin - start) // unit)


def _common(memory: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether two views of the same memory have an element in common."""
    memory.fill_(False)
    one.fill_(True)
    return bool(other.any())


def _in_order(one: _Span, other: _Span) -> tuple[int, int]:
    return min(one.number, other.number), max(one.number, other.number)
