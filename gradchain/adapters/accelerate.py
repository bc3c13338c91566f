"""For loops of Accelerate over `accelerator.prepare(…, updater.as_optimizer())`, which has no callbacks: three calls.

with averaged(optimizer):            # validation runs with the average weights
    validate(model)
close_windows(optimizer)             # the end of an epoch applies an open window of `accumulate`
log(accelerator, optimizer, step=n)  # learning rates and what links recorded go to the trackers
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradchain.adapters.swapping import Swapping, chains, numbers


@contextmanager
def averaged(*optimizers: Any) -> Iterator[None]:
    """The models with their average weights inside `with`, of chains that have `average_params`, and then their own.

    Args:
        *optimizers: what `prepare` returned for them.
    """
    _check("averaged", optimizers)
    swapping = Swapping()
    swapping.enter(optimizers)
    try:
        yield
    finally:
        swapping.leave()


def close_windows(*optimizers: Any) -> None:
    """Apply every open window of `accumulate` although it is not full. Accelerate's own closes with its loader.

    Args:
        *optimizers: what `prepare` returned for them.
    """
    _check("close_windows", optimizers)
    for optimizer in chains(optimizers):
        optimizer.flush()


def log(accelerator: Any, *optimizers: Any, step: int | None = None, **values: Any) -> None:
    """Give the accelerator's trackers learning rates and what links recorded last, where it is a number, by address.

    Args:
        accelerator: whose `log` is called.
        *optimizers: what `prepare` returned for them.
        step: as `accelerator.log` has it.
        **values: to be logged beside it.
    """
    _check("log", optimizers)
    accelerator.log({**numbers(optimizers), **values}, step=step)


def _check(owner: str, optimizers: tuple[Any, ...]) -> None:
    """TypeError for optimizers that are not all of chains."""
    if not optimizers or len(chains(optimizers)) < len(optimizers):
        found = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
        raise TypeError(
            f"{owner}: optimizers must be what accelerator.prepare(updater.as_optimizer()) returned, got {found}."
        )
