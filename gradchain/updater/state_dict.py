"""States to and from plain dicts, checked whole before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradchain.core._torch import LOW, is_dtensor
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.scalars import Count, Scalars
from gradchain.core.slots import Slots, is_plain, mapped
from gradchain.core.state import S, State
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform


@dataclass
class LoadReport:
    """What loading a state found: empty lists where everything matched.

    Attributes:
        missing: what the checkpoint lacks; it stays as it was.
        unexpected: what the chain has no place for.
        mismatched: what has another shape, dtype or kind; it stays as it was.
        differences: hyperparameters that the code has otherwise than the checkpoint. The code's are used.
        overrides: the overrides that came back, and those that could not.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """The sentences for which a strict load is refused."""
        return [
            *(f"{line} is missing" for line in self.missing),
            *(f"{line} is unexpected" for line in self.unexpected),
            *self.mismatched,
        ]

    def __str__(self) -> str:
        lines = [*self.problems(), *self.differences, *self.overrides]
        return "\n".join(lines) or "everything matched"


def states(link: Transform, state: State, path: str = "") -> Iterator[tuple[str, State]]:
    """The state of every held link, by address, in chain order."""
    for name, part, _ in link.parts(None):
        address = f"{path}/{name}" if path else name
        inner = state.held()[name]
        yield address, inner
        yield from states(part, inner, address)


def rebuilt(link: Transform, state: S, new: Mapping[str, State], path: str = "") -> S:
    """`state` with the fields of each held link taken from `new`, by address."""
    links = {}
    for name, part, _ in link.parts(None):
        address = f"{path}/{name}" if path else name
        inner = rebuilt(part, state.held()[name], new, address)
        links[name] = inner.replace(**dict(new[address].items())) if address in new else inner
    return state.holding(links)


def to_dict(link: Transform, state: State) -> dict[str, dict[str, Any]]:
    """Address → field → plain data, copied."""
    out = {a: {name: _plain(value) for name, value in s.items()} for a, s in states(link, state)}
    return {address: fields for address, fields in out.items() if fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Slots):
        return dict(value.copied())
    if isinstance(value, (Tensors, Scalars)):
        return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in value.items()}
    if isinstance(value, Count):
        held = value.value
        return dict(held) if isinstance(held, Scalars) else held
    return value.detach().clone() if isinstance(value, Tensor) else value


def from_dict(link: Transform, state: State, saved: Mapping[str, Any], index: Index, report: LoadReport) -> State:
    """`state` with what `saved` has; every mismatch goes into the report and leaves that field as it was."""
    new: dict[str, State] = {}
    known = dict(states(link, state))
    report.unexpected += [address for address in saved if address not in known]
    for address, current in known.items():
        fields = dict(current.items())
        if fields and address not in saved:
            report.missing.append(address)
            continue
        given = saved.get(address, {})
        if not isinstance(given, Mapping):
            report.mismatched.append(f"{address}: expected its fields, found {type(given).__name__}")
            continue
        report.unexpected += [f"{address}.{name}" for name in given if name not in fields]
        changes = {}
        for name, value in fields.items():
            if name not in given and name in current.added:
                changes[name] = getattr(type(current), name)
            elif name not in given:
                report.missing.append(f"{address}.{name}")
            else:
                reader = _Reader(f"{address}.{name}", index, report, name in current.whole)
                changes[name] = reader.read(value, given[name])
        new[address] = current.replace(**changes)
    return rebuilt(link, state, new)


@dataclass
class _Reader:
    """Reads one field of one link's state."""

    address: str
    index: Index
    report: LoadReport
    whole: bool

    def read(self, current: Any, saved: Any) -> Any:
        if isinstance(current, Tensors):
            return self._tensors(current, saved)
        if isinstance(current, Count):
            return self._count(current, saved)
        if isinstance(current, Slots):
            return self._slots(current, saved)
        if isinstance(current, Scalars):
            return self._scalars(current, saved)
        return self._number(current, saved)

    def _mismatch(self, expected: str, found: object) -> None:
        self.report.mismatched.append(f"{self.address}: expected {expected}, found {found}")

    def _tensors(self, current: Tensors, saved: Any) -> Tensors:
        if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
            self._mismatch("a tensor per parameter", type(saved).__name__)
            return current
        if self.whole:
            return self._whole(saved)
        self.report.missing += [f"{self.address}[{n}]" for n in current if n not in saved]
        self.report.unexpected += [f"{self.address}[{n}]" for n in saved if n not in current]
        out = {}
        for name, old in current.items():
            new = saved.get(name, old)
            if new.dtype in LOW and old.dtype is torch.float32:  # as earlier versions kept it: nothing is rounded
                new = new.float()
            if new.shape != old.shape or new.dtype != old.dtype or not _can_lie(new, old):
                self._mismatch(f"{_kind(old)} for {name!r}", _kind(new))
                new = old
            out[name] = _laid(new, old) if new is not old else old
        return EagerTensors.at(current.index, out)

    def _whole(self, saved: Mapping[str, Tensor]) -> Tensors:
        """Entries that come and go, as an open window: those of parameters must have their shapes."""
        facts = {f.name: f.parameter for f in self.index.facts}
        for name, tensor in saved.items():
            if name not in facts:
                continue
            if tensor.shape != facts[name].shape or not _can_lie(tensor, facts[name]):
                self._mismatch(f"shape {tuple(facts[name].shape)}{_shards(facts[name])} for {name!r}", _kind(tensor))
                return EagerTensors.at(self.index, {})
        moved = {n: _laid(t, facts[n]) if n in facts else t.clone() for n, t in saved.items()}
        if all(n in facts for n in moved):
            return EagerTensors.at(self.index, {n: moved[n] for n in self.index.names if n in moved})
        return EagerTensors.at(Index.of(moved), moved)

    def _count(self, current: Count, saved: Any) -> Count:
        if isinstance(saved, int) and not isinstance(saved, bool):
            return Count(current.names, saved)
        if isinstance(saved, Mapping) and set(saved) == set(current.names):
            return Count(current.names, dict(saved))
        self._mismatch("a count, or one per parameter", repr(saved)[:60])
        return current

    def _scalars(self, current: Scalars, saved: Any) -> Scalars:
        if not isinstance(saved, Mapping) or set(saved) != set(current):
            self._mismatch("a number per parameter", repr(saved)[:60])
            return current
        return Scalars({name: self._number(value, saved[name]) for name, value in current.items()})

    def _slots(self, current: Slots, saved: Any) -> Slots:
        """What an optimizer from elsewhere kept: where it is known already, tensors must have its shapes."""
        slots = saved if isinstance(saved, Mapping) else {}
        if set(slots) != set(current) or not all(isinstance(v, dict) and is_plain(v) for v in slots.values()):
            self._mismatch("a dict per parameter", repr(sorted(map(str, slots)))[:60])
            return current
        for name, slot in slots.items():
            for key in slot.keys() & current[name].keys():
                old, new = current[name][key], slot[key]
                if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape != new.shape:
                    self._mismatch(f"{_kind(old)} for {name!r} {key!r}", _kind(new))
                    return current
        devices = {f.name: f.parameter.device for f in self.index.facts}
        return Slots({name: _on(devices[name], slot) for name, slot in slots.items()}).copied()

    def _number(self, current: Any, saved: Any) -> Any:
        if isinstance(saved, Tensor) and saved.ndim == 0:
            return saved.clone()
        word = current is not None and isinstance(saved, str) != isinstance(current, str)  # None may become anything
        if saved is None or (isinstance(saved, (bool, int, float, str)) and not word):
            return saved
        self._mismatch(f"a number like {current!r}", type(saved).__name__)
        return current


def _on(device: torch.device, slot: Any) -> Any:
    """A slot on a device; a count stays where it is, as under torch.optim."""
    return mapped(slot, lambda tensor: tensor.to(device) if tensor.ndim else tensor)


def _kind(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}{_shards(tensor)}"


def _shards(tensor: Tensor) -> str:
    if not is_dtensor(tensor):
        return ""
    return f", as {tensor.placements} over {tensor.device_mesh.size()} ranks"


def _can_lie(tensor: Tensor, place: Tensor) -> bool:
    """Whether `tensor` can take the place of another without ranks talking: whole, or in just its shards."""
    return not is_dtensor(tensor) or _shards(tensor) == _shards(place)


def _laid(tensor: Tensor, place: Tensor) -> Tensor:
    """A copy of `tensor` on the device of `place`, and in its shards."""
    moved = tensor.to(place.device)
    if not is_dtensor(place) or is_dtensor(tensor):
        return moved.clone()
    from torch.distributed.tensor import distribute_tensor  # only where there are DTensors: importing it takes time

    return distribute_tensor(moved, place.device_mesh, place.placements, src_data_rank=None)


def fingerprint(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Name → a number that tells one parameter's bits from another's, whatever its device and the threads.

    A sharded parameter has none: it would differ from rank to rank.
    """
    return {name: _bits(parameter) for name, parameter in parameters.items() if not is_dtensor(parameter)}


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(parameter: Tensor) -> int:
    tensor = parameter.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()]) if tensor.numel() else tensor
    # integer sums wrap the same way in any order; the second tells permutations of pairs apart
    return int(flat.sum(dtype=torch.int64)) ^ (int(flat[::2].sum(dtype=torch.int64)) << 1) if tensor.numel() else 0
