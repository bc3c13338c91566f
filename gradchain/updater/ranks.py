"""What several ranks must do together: when gradients are reduced over them, and what is then a mean over them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from gradchain.core import _torch
from gradchain.updater.target import Target

LATE = (
    "this micro-batch would close the window, but it ran without synchronisation over ranks. Say it where the forward "
    "runs: with updater.context(last=True)."
)

AFTER_ITS_TURN = (
    "in_backward=True must have each gradient reduced over ranks before its parameter's turn, got a model under "
    "DistributedDataParallel, which reduces them after it. Bind without in_backward: DDP keeps room for all gradients "
    "anyway. fully_shard (FSDP2) reduces in time."
)


ANEW = (
    "when DistributedDataParallel was made, which leaves it out. Make that anew after unfreezing, and bind or rebind."
)


class Replicas:
    """The DDP modules that there are, and those that are made from now on, whoever makes them.

    What is bound may not show them: one may bind the module inside, or wrap it later. torch says of each module which
    other it is given to, and that is all that is asked as long as there is no DDP.
    """

    def __init__(self) -> None:
        modules: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # else there are none
            modules.update(found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel))
        self._modules = modules
        handle = register_module_module_registration_hook(_noting(modules))
        weakref.finalize(self, handle.remove).atexit = False

    def reduce(self, target: Target) -> bool:
        """Whether one of them reduces gradients of what is bound."""
        if not self._modules or not self._over(target):
            return False
        gc.collect()  # it may be there no more, but for a cycle
        return self._over(target)

    def _over(self, target: Target) -> bool:
        bound = set(map(id, target.last_seen))
        return any(id(p) in bound and p.requires_grad for module in self._modules for p in _torch.reduced_by(module))


def _noting(modules: weakref.WeakSet[DistributedDataParallel]) -> Callable[[nn.Module, str, Any], None]:
    def note(module: nn.Module, name: str, held: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            modules.add(module)

    return note


def check_reduced(target: Target, owner: str) -> frozenset[str]:
    """The parameters that DDP would not reduce, were they unfrozen: they were frozen when it was made.

    DDP says how many it reduces, not which. As many as are trained now are those; of fewer nobody knows, and of more
    some are each rank's own: a ValueError.
    """
    out: set[int] = set()
    for module in target.replicated:
        own = _torch.reduced_by(module)
        trained, count = sum(p.requires_grad for p in own), _torch.number_reduced_by(module)
        if trained > count and module.process_group.size() > 1:
            raise ValueError(
                f"{owner}: every gradient must be reduced over ranks, got {count} of {trained}: one was frozen {ANEW}"
            )
        out.update(id(p) for p in own if not p.requires_grad and trained == count)
    return frozenset(n for n, p in zip(target.index.names, target.last_seen, strict=True) if id(p) in out)


def check_received(names: Iterable[str], unreduced: frozenset[str]) -> None:
    """ValueError for a gradient that each rank has for itself."""
    name = next((name for name in names if name in unreduced), None)
    if name is not None:
        raise ValueError(f"update: the gradient of {name!r} must be reduced over ranks: it was frozen {ANEW}")


@contextmanager
def unsynchronised(target: Target) -> Iterator[None]:
    """A forward whose gradients DDP will not reduce over ranks."""
    with ExitStack() as stack:
        for module in target.replicated:
            stack.enter_context(module.no_sync())
        yield


def withheld(target: Target, withhold: bool) -> AbstractContextManager[None]:
    """A backward under which FSDP2 reduces gradients over ranks, or withholds that."""
    return _withheld(target, withhold) if target.sharded else _PLAINLY


_PLAINLY = nullcontext()


@contextmanager
def _withheld(target: Target, withhold: bool) -> Iterator[None]:
    synchronise(target, not withhold)
    try:
        yield
    finally:
        synchronise(target, True)


def synchronise(target: Target, yes: bool) -> None:
    """Have the coming backwards reduce gradients over ranks, or not, under FSDP2."""
    for module in target.sharded:
        module.set_requires_gradient_sync(yes, recurse=False)  # type: ignore[operator]  # an FSDPModule


def unreduced(target: Target) -> list[tuple[Any, str, Tensor]]:
    """What FSDP2 keeps of an open window, and where."""
    return [place for module in target.sharded for place in _torch.unreduced(module)]


def taken_unreduced(target: Target) -> None:
    """Take from FSDP2 what it keeps: else the next loss that reaches the model would reduce it."""
    for holder, attribute, _ in unreduced(target):
        setattr(holder, attribute, None)


def put_back_unreduced(target: Target, taken: list[tuple[Any, str, Tensor]]) -> None:
    """Give FSDP2 what was taken from it, and nothing else, so that it goes on summing."""
    taken_unreduced(target)
    for holder, attribute, tensor in taken:
        setattr(holder, attribute, tensor)


def over_ranks(target: Target, value: Any) -> Any:
    """The mean over ranks of a number or tensor, which stays as it is."""
    groups, device = target.ranks()
    is_tensor = isinstance(value, Tensor)
    mean = value.detach().clone() if is_tensor else torch.tensor(value, dtype=torch.float64, device=device)
    for group in groups:
        torch.distributed.all_reduce(mean, group=group)
        mean /= torch.distributed.get_world_size(group)
    return mean if is_tensor else mean.item()


def largest(target: Target, numbers: list[int]) -> list[int]:
    """The largest over ranks of each number."""
    groups, device = target.ranks()
    found = torch.tensor(numbers, dtype=torch.int64, device=device)
    for group in groups:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group)
    return found.tolist()
