"""What the callbacks of several trainers do alike: averages in for a while, windows closed, numbers to a logger."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from gradchain.adapters.optimizer import ChainOptimizer
from gradchain.core.roles import AverageState
from gradchain.core.scalars import as_number
from gradchain.updater.state_dict import states


class Swapping:
    """The chains among a trainer's optimizers, and whether their averages are in the model."""

    def __init__(self) -> None:
        self._inside: ExitStack | None = None

    def enter(self, optimizers: Iterable[Any]) -> None:
        """Put the averages in, of chains that keep one, unless they are in."""
        if self._inside is not None:
            return
        with ExitStack() as stack:
            for updater in (optimizer.updater for optimizer in chains(optimizers)):
                found = states(updater.chain, updater._bound.state)
                if any(isinstance(state, AverageState) for _, state in found):
                    stack.enter_context(updater.averaged())
            self._inside = stack.pop_all()

    def leave(self) -> None:
        """Put the model's own weights back, if they are out."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()


def chains(optimizers: Iterable[Any]) -> list[ChainOptimizer]:
    """Those that are ours, without the wrappers of Accelerate."""
    return [o for o in (getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers) if is_ours(o)]


def is_ours(optimizer: Any) -> bool:
    """Whether it was made by `updater.as_optimizer()`."""
    return isinstance(optimizer, ChainOptimizer)


def numbers(optimizers: Iterable[Any]) -> dict[str, float]:
    """What the links recorded last, by address, where it is one number."""
    found = {}
    for optimizer in chains(optimizers):
        for address, value in optimizer.updater.metrics.items():
            number = as_number(value)
            if number is not None:
                found[address] = float(number)
    return found
