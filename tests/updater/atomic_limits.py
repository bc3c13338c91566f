"""Steps for which there is no memory, or no thread. Run in a process of its own, whose address space it limits.

PYTHONPATH=tests python tests/updater/atomic_limits.py native threads
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import gradchain as gch

SIZE = 1 << 20
ROOMS = {"threads": [1 << 20] * 2, "memory": [i << 20 for i in range(0, 60, 4)]}


@contextmanager
def no_more_than(extra: int) -> Iterator[None]:
    """So many bytes of address space may be added to those in use."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def made(executors: str) -> tuple[dict[str, torch.nn.Parameter], gch.Updater]:
    """Three large weights and Adam, by these executors."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.nn.Parameter(torch.randn(SIZE, generator=generator)) for n in "abc"}
    updater = gch.chain(gch.clip_by_norm(1.0), gch.adam(0.01)).bind(weights)
    if executors == "reference":
        updater._bound.engine.executors = ()
    return weights, updater


def main(executors: str, what: str) -> None:
    """Steps under limits, beside ones without: each leaves all of it new or nothing."""
    if executors not in ("native", "reference"):
        os.environ["GRADCHAIN_EXECUTORS"] = executors
    torch.set_num_threads(1)
    grads = {n: torch.full((SIZE,), 0.1 * (i + 1)) for i, n in enumerate("abc")}
    (ours, a), (theirs, b) = made(executors), made(executors)
    for updater in (a, b, a, b):
        updater.step(grads)
    if what == "threads":
        torch.set_num_threads(2)
    failures = 0
    for extra in ROOMS[what]:
        failed = ""
        with no_more_than(extra):
            try:
                a.step(grads)
            except (MemoryError, RuntimeError) as error:
                failed = f"{type(error).__name__}: {error}"
        assert not (failed and what == "threads"), failed
        failures += bool(failed)
        if a.num_updates == b.num_updates:
            assert failed
            compare(a, b, ours, theirs)
            a.step(grads)
        b.step(grads)
        compare(a, b, ours, theirs)
    print(f"{failures} of {len(ROOMS[what])} failed, all equal")


def compare(a: gch.Updater, b: gch.Updater, ours: Any, theirs: Any) -> None:
    """The same weights, moments and clocks."""
    held, other = (u._bound.state.links["scale_by_adam"] for u in (a, b))
    assert a.clocks == b.clocks
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert all(torch.equal(held.mu[n], other.mu[n]) and torch.equal(held.nu[n], other.nu[n]) for n in ours)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
