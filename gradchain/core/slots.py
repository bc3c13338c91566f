"""Slots: what other people's code remembers of each parameter, under names of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.scalars import Scalars

Slot = dict[Any, Any]


class Slots(Scalars):
    """One dict of plain values per parameter: tensors of any shape, numbers, words, and dicts and lists of those.

    A State's fields have names that its link knows. An optimizer from elsewhere names its own, makes them when it first
    steps, and may keep tensors that look like no parameter: they lie here. An empty dict is a parameter that it has not
    met. Entries are never written to; `copied` gives what may be.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Slots, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Slots:
        return self.copied()

    def select(self, names: Iterable[str]) -> Slots:
        """The entries of these names."""
        return Slots({n: self[n] for n in names if n in self})

    def overlay(self, other: Mapping[str, Any]) -> Slots:
        """These entries, replaced by those of `other` where it has them; `other` itself where it has them all."""
        if isinstance(other, Slots) and other.keys() == self.keys():
            return other
        return Slots({**self, **other})

    def copied(self) -> Slots:
        """The same, in memory of its own."""
        return Slots({name: copied(slot) for name, slot in self.items()})


class LiveSlots(Slots):
    """What somebody else's code keeps and writes to, step by step: read where it is asked for.

    Args:
        names: the parameters.
        read: name → what is kept of it now.
    """

    __slots__ = ("_names", "_read")

    def __init__(self, names: Iterable[str], read: Callable[[str], Slot]) -> None:
        super().__init__({})
        self._names, self._read = tuple(names), read

    @property
    def _named(self) -> dict[str, Any]:
        return {name: self._read(name) for name in self._names}

    def __getitem__(self, name: str) -> Slot:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def copied(value: Any) -> Any:
    """A plain value in memory of its own. TypeError for one that no checkpoint can hold."""
    if isinstance(value, Tensor):
        return _torch.cloned(value)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return value
    raise TypeError(f"holds a {type(value).__name__}, which no checkpoint can")


def is_plain(value: Any) -> bool:
    """Whether `copied` takes it."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, complex, str, torch.dtype))


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, tensors by their elements."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def mapped(value: Any, fn: Any) -> Any:
    """A plain value with `fn` of every tensor in place of it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: mapped(inner, fn) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(inner, fn) for inner in value)
    return value


_torch.register_pytree(Slots, lambda s: (list(s.values()), tuple(s)), lambda v, n: Slots(dict(zip(n, v, strict=True))))
