"""What the ranks of a run say to each other around a checkpoint; one process alone is its own first rank.

A process group is theirs where they talk while the run goes on; None is the default one, in which the run talks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def several() -> bool:
    """Whether there may be others to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """Which process this is."""
    return torch.distributed.get_rank() if several() else 0


def many() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if several() else 1


def gathered(value: Any, group: Any = None) -> list[Any]:
    """What each rank has, in order."""
    if not several():
        return [value]
    found: list[Any] = [None] * many()
    torch.distributed.all_gather_object(found, value, group)
    return found


def of_first(value: T, group: Any = None) -> T:
    """What the first rank has."""
    if not several():
        return value
    said: list[Any] = [value]
    torch.distributed.broadcast_object_list(said, src=0, group=group)
    return said[0]  # type: ignore[no-any-return]


def largest(numbers: list[int]) -> list[int]:
    """The largest over ranks of each number."""
    if not several():
        return numbers
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(numbers, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found.tolist()


def by_first(owner: str, act: Callable[[], T], group: Any = None) -> T | None:
    """Have the first rank act. All ranks call it, wait for it and raise where it fails; the first has what it gave."""
    if not several():
        return act()
    error: Exception | None = None
    given: T | None = None
    if rank() == 0:
        try:
            given = act()
        except Exception as failed:
            error = failed
    said = of_first("" if error is None else f"{type(error).__name__}: {error}", group)
    if error is not None:
        raise error
    if said:
        raise RuntimeError(f"{owner}: the first rank failed, and with it all. {said}")
    return given


def by_all(owner: str, act: Callable[[], T], group: Any = None) -> T:
    """Have every rank act. Where one fails all raise: it what it met, the others that it did."""
    if not several():
        return act()
    error: Exception | None = None
    try:
        given = act()
    except Exception as failed:
        error = failed
    said = gathered("" if error is None else f"{type(error).__name__}: {error}", group)
    if error is not None:
        raise error
    for number, line in enumerate(said):
        if line:
            raise RuntimeError(f"{owner}: rank {number} failed, and with it all. {line}")
    return given
