"""Which parameter lies where under the bound modules, and whether that is still so."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gradchain.core._torch import is_dtensor
from gradchain.updater.memory import PLAIN, REBIND, without_values


class Place(NamedTuple):
    """A parameter under one of its names: in which bound module (-1: it is a bare tensor), and what holds it there."""

    root: int
    path: str
    tensor: Tensor
    owner: nn.Module | None

    @property
    def key(self) -> tuple[int, str]:
        """What tells this place from all others: the modules of a list may have names in common."""
        return self.root, self.path


class Structure:
    """The places under some modules, as they were when walked.

    A module says in two dicts what it holds, whoever wrote it there. A look compares those dicts with copies of them,
    which C does and which stops at identity: it finds what torch's registration hooks are not told of.

    Attributes:
        modules: every module, wrappers too, once.
        places: every parameter under each of its names.
    """

    def __init__(self, roots: Iterable[tuple[str, nn.Module]]) -> None:
        found: dict[int, nn.Module] = {}
        self.places = [
            Place(i, path, tensor, owner)
            for i, (prefix, root) in enumerate(roots)
            for path, tensor, owner in _walked(root, prefix, found)
        ]
        self.modules = list(found.values())
        self._remember()

    def _remember(self) -> None:
        dicts: list[dict[str, Any]] = [d for m in self.modules for d in (m._parameters, m._modules)]
        self._empty, self._dicts = [d for d in dicts if not d], [d for d in dicts if d]
        self._copies = list(map(dict, self._dicts))
        # whether two tensors are equal is an error, but for tensors of one element, and talk among ranks if sharded
        apart = [
            (d, name, value)
            for d in self._dicts
            for name, value in d.items()
            if isinstance(value, Tensor) and (type(value) not in PLAIN or value.numel() == 1)
        ]
        self._apart = [d for d, _, _ in apart], [name for _, name, _ in apart], [value for _, _, value in apart]

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules, "places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.modules, self.places = state["modules"], state["places"]
        self._remember()  # the dicts are those of other modules now

    def still(self) -> bool:
        """Whether every module holds what it held when walked."""
        dicts, names, values = self._apart
        if any(self._empty) or not all(map(operator.is_, map(dict.get, dicts, names), values)):
            return False
        try:
            return self._dicts == self._copies
        except Exception:  # two tensors that are not one were asked whether they are equal
            return False

    def of(self, kind: type[nn.Module]) -> list[Any]:
        """The modules of a type."""
        return [m for m in self.modules if isinstance(m, kind)]

    def sharded(self) -> list[nn.Module]:
        """The modules that FSDP2 shards."""
        return [m for m in self.modules if is_fsdp2(m)]


def followed(numbers: Mapping[tuple[int, str], int], last: Sequence[Place], now: Sequence[Place]) -> list[Place]:
    """The places of the bound parameters as they are now, or RuntimeError where that is not for them to follow.

    A parameter is followed under its names: to another tensor that its module holds there now, and with its tensor to
    another module. Where a tensor is of another module, had another name, or is tied otherwise, only the user can say
    which state belongs to it.

    Args:
        numbers: which parameter each key was of at bind, tied ones too.
        last: the parameters when last looked at, each under its first name.
        now: every place there is; bare tensors are none, and stay what they are.
    """
    there = {place.key: place for place in now}
    before = {id(place.tensor): place for place in last}
    out = [place if place.owner is None else _current(place, there.get(place.key), before) for place in last]
    holders: dict[int, int] = {}
    for i, place in enumerate(out):
        first = holders.setdefault(id(place.tensor), i)
        if first != i:
            raise _mismatch(last[i], f"{last[first].path!r} too")
    for place in now:
        number = numbers.get(place.key)
        if number is None:
            if id(place.tensor) not in holders:
                raise RuntimeError(
                    f"{place.path!r} was nothing when the updater was bound, and now is a parameter of shape "
                    f"{tuple(place.tensor.shape)}. {REBIND}"
                )
        elif holders.get(id(place.tensor)) != number and not stands_in(place.tensor, out[number].tensor):
            raise _untied(place, out[number])
    return out


def _current(last: Place, now: Place | None, before: Mapping[int, Place]) -> Place:
    """Where a parameter is that was there when last looked at."""
    if now is None:
        raise _mismatch(last, "nothing")
    if stands_in(now.tensor, last.tensor):
        return last
    if now.tensor is last.tensor:
        return now
    if id(now.tensor) in before:
        raise _mismatch(last, f"what was {before[id(now.tensor)].path!r}")
    if now.owner is not last.owner:
        raise _mismatch(last, f"one of another module, {type(now.owner).__name__}")
    if now.tensor.is_meta and not last.tensor.is_meta:
        raise RuntimeError(without_values(last.path, last.tensor.device))  # it is untied too, which is no news
    if is_dtensor(now.tensor) != is_dtensor(last.tensor):
        raise _mismatch(last, f"a {type(now.tensor).__name__}")
    return now


def _untied(place: Place, first: Place) -> RuntimeError:
    """A parameter's second name has another tensor than its first."""
    shared = place.tensor.device == first.tensor.device and place.tensor.data_ptr() == first.tensor.data_ptr()
    cure = "Tie it again: give both names one Parameter."
    cure += "" if shared else f" Or train both. {REBIND}"
    return RuntimeError(f"{place.path!r} was tied to {first.path!r} and now is a tensor of its own. {cure}")


def _mismatch(last: Place, now: str) -> RuntimeError:
    shape = tuple(last.tensor.shape)
    return RuntimeError(f"{last.path!r} was a parameter of shape {shape} and now is {now}. {REBIND}")


def stands_in(now: Tensor, parameter: Tensor) -> bool:
    """Whether `now` is the whole weight that FSDP2 shows in place of a sharded one between forward and backward."""
    return is_dtensor(parameter) and not is_dtensor(now)


def _walked(module: nn.Module, prefix: str, found: dict[int, nn.Module]) -> Iterator[tuple[str, Tensor, nn.Module]]:
    for layer in _layers(module):
        module = found[id(layer)] = layer
    if _is("torch.distributed.fsdp", "FullyShardedDataParallel", module):
        raise TypeError("bind: FullyShardedDataParallel flattens its parameters. Use torch's fully_shard (FSDP2).")
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _walked(child, f"{prefix}{name}.", found)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """A module, the one it wraps, and so on: DDP, DataParallel, torch.compile and checkpoint, recognised by type."""
    while True:
        yield module
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif _is("torch._dynamo.eval_frame", "OptimizedModule", module):
            module = module._orig_mod  # type: ignore[assignment]
        elif _is("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", module):
            module = module._checkpoint_wrapped_module  # type: ignore[assignment]
        else:
            return


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers."""
    *_, inner = _layers(module)
    return inner


def _is(file: str, name: str, value: object) -> bool:
    """Whether `value` is of a type that may never have been imported: then it is not."""
    found = sys.modules.get(file)
    return found is not None and isinstance(value, getattr(found, name, ()))


def is_fsdp2(module: nn.Module) -> bool:
    """Whether FSDP2 shards the parameters of a module."""
    return _is("torch.distributed.fsdp", "FSDPModule", module)
