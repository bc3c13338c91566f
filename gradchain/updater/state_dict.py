"""States to and from plain dicts, checked whole before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradchain.core._torch import LOW, is_dtensor, shard
from gradchain.core.domain import Domain
from gradchain.core.eager import EagerTensors
from gradchain.core.hyper import is_number
from gradchain.core.index import Index
from gradchain.core.readable import as_name, is_readable, shown
from gradchain.core.roles import AverageState, WindowState
from gradchain.core.row_gradients import as_gradients, as_plain, from_plain
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
        moved: what changed its name, shape or link on the way, and what starts anew for it.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """The sentences for which a strict load is refused."""
        return [
            *(f"{line} is missing" for line in self.missing),
            *(f"{line} is unexpected" for line in self.unexpected),
            *self.mismatched,
        ]

    def __str__(self) -> str:
        lines = [*self.moved, *self.problems(), *self.differences, *self.overrides]
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


def to_dict(link: Transform, state: State, lent: bool = False) -> dict[str, dict[str, Any]]:
    """Address → field → plain data, copied; or with tensors as they lie in memory."""
    out = {a: plain_fields(s, lent) for a, s in states(link, state)}
    return {address: fields for address, fields in out.items() if fields}


def plain_fields(state: State, lent: bool = False) -> dict[str, Any]:
    """One link's own fields as plain data, copied or lent."""
    return {name: _plain(value, lent) for name, value in state.items()}


def _plain(value: Any, lent: bool) -> Any:
    if isinstance(value, Slots):
        return dict(value.copied())
    if isinstance(value, (Tensors, Scalars)):
        return {name: _plain(v, lent) for name, v in value.items()}
    if isinstance(value, Count):
        held = value.value
        return dict(held) if isinstance(held, Scalars) else held
    if isinstance(value, Tensor):
        if lent and _fills_its_memory(value):
            return value.detach()
        return value.detach().clone() if value.layout is torch.strided else as_plain(value)
    return value


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether a file of it has nothing else: torch writes all that a view looks into."""
    here = shard(tensor)
    if type(here) is not Tensor or here.layout is not torch.strided or here.is_meta:
        return False
    return here.untyped_storage().nbytes() == here.numel() * here.element_size()


def from_dict(
    link: Transform,
    state: State,
    saved: Mapping[str, Any],
    index: Index,
    report: LoadReport,
    buffers: Mapping[str, Tensor] | None = None,
) -> State:
    """`state` with what `saved` has; every mismatch goes into the report and leaves that field as it was.

    Args:
        link: whose state it is.
        state: what it is now.
        saved: what it is to become, as plain data.
        index: the parameters.
        report: what does not fit is added here.
        buffers: those of the model, of which an average may be.
    """
    facts = {f.name: f.parameter for f in index.facts}
    new: dict[str, State] = {}
    current_states = dict(states(link, state))
    report.unexpected += [as_name(address) for address in saved if address not in current_states]
    for address, current in current_states.items():
        fields = dict(current.items())
        if fields and address not in saved:
            report.missing.append(address)
            continue
        found = saved.get(address, {})
        if not isinstance(found, Mapping):
            report.mismatched.append(f"{address}: expected its fields, found {type(found).__name__}")
            continue
        report.unexpected += [f"{address}.{as_name(name)}" for name in found if name not in fields]
        changes, before = {}, len(report.problems())
        for name, value in fields.items():
            if name not in found and name in current.added:
                changes[name] = getattr(type(current), name)
            elif name not in found:
                report.missing.append(f"{address}.{name}")
            else:
                whole = _Whole.of(current, name, facts, buffers) if name in current.whole else None
                reader = _Reader(f"{address}.{name}", index, facts, report, current.domains[name], whole)
                changes[name] = reader.read(value, found[name])
        new[address] = current.replace(**changes)
        fits = len(report.problems()) == before
        problem = new[address].problem()
        if fits and problem is not None:
            report.mismatched.append(f"{address}: {problem}")
        if problem is not None or (not fits and isinstance(current, WindowState)):
            new[address] = current  # some fields of one and some of the other are neither
    return rebuilt(link, state, new)


@dataclass
class _Whole:
    """What the entries of a field may be that come and go.

    Attributes:
        places: name → a tensor that an entry of this name must be like.
        closed: whether there can be no others.
        copies: whether entries are kept in the dtypes of those.
    """

    places: Mapping[str, Tensor]
    closed: bool = False
    copies: bool = False

    @classmethod
    def of(
        cls, state: State, name: str, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None
    ) -> _Whole:
        """That of one field: a window is of parameters, what an average has beside the weights is of buffers."""
        if isinstance(state, AverageState) and name == "buffers":
            return cls(buffers or {}, buffers is not None, True)
        return cls(parameters, isinstance(state, WindowState) and name == "window")

    def fits(self, name: str, tensor: Tensor) -> bool:
        """Whether an entry may be this tensor."""
        if not is_readable(tensor):
            return False
        if name not in self.places:
            return not self.closed
        place = self.places[name]
        if tensor.shape != place.shape or not _can_lie(tensor, place):
            return False
        if self.copies and tensor.dtype not in (place.dtype, torch.float32 if place.dtype in LOW else place.dtype):
            return False
        return (tensor.is_complex(), tensor.is_floating_point()) == (place.is_complex(), place.is_floating_point())


@dataclass
class _Reader:
    """Reads one field of one link's state."""

    address: str
    index: Index
    facts: Mapping[str, Tensor]
    report: LoadReport
    domain: Domain
    whole: _Whole | None

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
        rows: dict[str, Tensor] = {}
        if self.whole is not None and isinstance(saved, Mapping):
            found = {n: from_plain(v, self.whole.places[n]) for n, v in saved.items() if n in self.whole.places}
            rows = {name: made for name, made in found.items() if made is not None}
            saved = {**saved, **rows}
        if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
            self._mismatch("a tensor per parameter", type(saved).__name__)
            return current
        if self.whole is not None:
            return self._whole(current, saved, self.whole, rows)
        self.report.missing += [f"{self.address}[{n}]" for n in current if n not in saved]
        self.report.unexpected += [f"{self.address}[{as_name(n)}]" for n in saved if n not in current]
        out = {}
        for name, old in current.items():
            new = saved.get(name, old)
            if new.dtype in LOW and old.dtype is torch.float32 and is_readable(new):
                new = new.float()  # as earlier versions kept it: nothing is rounded
            if not _is_like(new, old) or not _can_lie(new, old):
                self._mismatch(f"{kind_of(old)} for {name!r}", kind_of(new))
                new = old
            out[name] = _laid(new, old) if new is not old and self._inside(name, new) else old
        return EagerTensors.at(current.index, out)

    def _inside(self, name: str, tensor: Tensor) -> bool:
        found = self.domain.offender(tensor)
        if found is not None:
            self._mismatch(f"{self.domain.rule} for {name!r}", repr(found))
        return found is None

    def _whole(
        self, current: Tensors, saved: Mapping[str, Tensor], whole: _Whole, rows: Mapping[str, Tensor]
    ) -> Tensors:
        """Entries that come and go, as an open window; of those that are sparse it is known that they fit."""
        for name, tensor in saved.items():
            if name not in rows and not whole.fits(name, tensor):
                place = whole.places.get(name)
                self._mismatch(
                    f"{'no tensor' if place is None else kind_of(place)} for {as_name(name)!r}", kind_of(tensor)
                )
                return current
            if not self._inside(name, tensor):
                return current
        facts = self.facts
        moved = {n: _laid(t, facts[n]) if n in facts else t.detach().clone() for n, t in saved.items()}
        if all(n in facts for n in moved):
            return as_gradients(self.index, {n: moved[n] for n in self.index.names if n in moved})
        return EagerTensors.at(Index.of(moved), moved)

    def _count(self, current: Count, saved: Any) -> Count:
        if not isinstance(saved, Mapping) and COUNT.holds(saved):
            return Count(current.names, int(saved))
        if isinstance(saved, Mapping) and set(saved) == set(current.names) and all(map(COUNT.holds, saved.values())):
            return Count(current.names, {name: int(count) for name, count in saved.items()})
        self._mismatch(f"{COUNT.rule}, or one per parameter", shown(saved))
        return current

    def _scalars(self, current: Scalars, saved: Any) -> Scalars:
        if not isinstance(saved, Mapping) or set(saved) != set(current):
            self._mismatch("a number per parameter", shown(saved))
            return current
        return Scalars({name: self._number(value, saved[name]) for name, value in current.items()})

    def _slots(self, current: Slots, saved: Any) -> Slots:
        """What an optimizer from elsewhere kept: where it is known already, tensors must have its shapes."""
        slots = saved if isinstance(saved, Mapping) else {}
        if set(slots) != set(current) or not all(isinstance(v, dict) and is_plain(v) for v in slots.values()):
            self._mismatch("a dict per parameter", repr(sorted(map(as_name, slots)))[:60])
            return current
        for name, slot in slots.items():
            if not all(map(is_readable, _tensors_in(slot))):
                self._mismatch(f"tensors in memory for {name!r}", "one that is not")
                return current
            for key in slot.keys() & current[name].keys():
                old, new = current[name][key], slot[key]
                if not _may_follow(old, new):
                    self._mismatch(f"{_told(old)} for {name!r} {key!r}", _told(new))
                    return current
        return Slots({name: _on(self.facts[name].device, slot) for name, slot in slots.items()}).copied()

    def _number(self, current: Any, saved: Any) -> Any:
        if self.domain.is_any:
            right, rule = _is_number_like(current, saved), f"a number like {shown(current)}"
        else:
            right, rule = self.domain.holds(saved), self.domain.rule
        if right:
            return saved.detach().clone() if isinstance(saved, Tensor) else saved
        self._mismatch(rule, shown(saved))
        return current


COUNT = Domain(int, "integer [0, inf)")


def _is_number_like(current: Any, saved: Any) -> bool:
    """Whether a field of which nothing is said may become this: None may become anything, and anything None."""
    if current is None or saved is None:
        return saved is None or isinstance(saved, (bool, str)) or Domain().holds(saved)
    kind = next((kind for kind in (bool, str) if isinstance(current, kind)), None)
    return Domain(kind).holds(saved)


def _may_follow(old: Any, new: Any) -> bool:
    """Whether a slot of another library may have become this: a tensor or a number stays what it is."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape == new.shape and (
            old.dtype == new.dtype or (not new.ndim and old.is_floating_point() == new.is_floating_point())
        )
    return old is None or new is None or (is_number(old) and is_number(new)) or type(old) is type(new)


def _told(value: Any) -> str:
    return kind_of(value) if isinstance(value, Tensor) else shown(value)


def _tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _on(device: torch.device, slot: Any) -> Any:
    """A slot on a device; a count stays where it is, as under torch.optim."""
    return mapped(slot, lambda tensor: tensor.to(device) if tensor.ndim else tensor)


def kind_of(tensor: Tensor) -> str:
    """What a tensor is, as a sentence has it."""
    if not is_readable(tensor):
        strided = tensor.layout is torch.strided and not tensor.is_nested
        return "a tensor without values" if tensor.is_meta or strided else f"a tensor in {tensor.layout}"
    return f"shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}{_shards(tensor)}"


def _is_like(tensor: Tensor, place: Tensor) -> bool:
    """Whether a tensor has values, and as many and of the dtype that another has."""
    return is_readable(tensor) and tensor.shape == place.shape and tensor.dtype == place.dtype


def _shards(tensor: Tensor) -> str:
    if not is_dtensor(tensor):
        return ""
    return f", as {tensor.placements} over {tensor.device_mesh.size()} ranks"


def _can_lie(tensor: Tensor, place: Tensor) -> bool:
    """Whether `tensor` can take the place of another without ranks talking: whole, or in just its shards."""
    return not is_dtensor(tensor) or _shards(tensor) == _shards(place)


def _laid(tensor: Tensor, place: Tensor) -> Tensor:
    """A copy of `tensor` on the device of `place`, and in its shards."""
    if not is_dtensor(place) or is_dtensor(tensor):
        return tensor.detach().to(place.device).clone()
    return as_laid(tensor, place)


def as_laid(tensor: Tensor, place: Tensor) -> Tensor:
    """What can be copied over `place`: of a whole tensor, where that is sharded, the same in its shards."""
    if not is_dtensor(place) or is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # only where there are DTensors: importing it takes time

    moved = tensor.detach().to(place.device)
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
    if not tensor.numel():
        return 0
    flat = tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    # integer sums wrap the same way in any order; the second tells permutations of pairs apart
    return _sum(flat) ^ (_sum(flat[::2]) << 1)


def _sum(flat: Tensor) -> int:
    """In pieces: torch makes integers of eight bytes of all that it sums."""
    return int(torch.stack([piece.sum(dtype=torch.int64) for piece in torch.split(flat, _PIECE)]).sum())


_PIECE = 1 << 20  # elements
