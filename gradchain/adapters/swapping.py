"""What the callbacks of several trainers do alike: averages in for a while, windows closed, numbers to a logger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from gradchain.adapters.optimizer import ChainOptimizer
from gradchain.core.roles import AverageState
from gradchain.core.scalars import as_number
from gradchain.updater import Updater
from gradchain.updater.averages import copies
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
            for updater in averaging(optimizers):
                if not updater._bound.journal.averaged:  # the user's own `with` is around it
                    stack.enter_context(updater.averaged())
            self._inside = stack.pop_all()

    def enter_others(self, places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Put tensors of a file in, by name, unless some are in."""
        if self._inside is not None:
            return
        own = {name: place.detach().clone() for name, place in places.items() if name in values}
        with ExitStack() as stack:
            stack.callback(copies(places, own))
            copies(places, {name: value.to(places[name].device) for name, value in values.items() if name in places})()
            self._inside = stack.pop_all()

    def leave(self) -> None:
        """Put the model's own weights back, if they are out."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()


def chains(optimizers: Iterable[Any]) -> list[ChainOptimizer]:
    """Those that are ours, without the wrappers of Accelerate."""
    return [o for o in (getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers) if is_ours(o)]


def averaging(optimizers: Iterable[Any]) -> list[Updater]:
    """The updaters among them whose chains average the weights."""
    updaters = [optimizer.updater for optimizer in chains(optimizers)]
    found = ((u, states(u.chain, u._bound.state)) for u in updaters)
    return [u for u, held in found if any(isinstance(state, AverageState) for _, state in held)]


def is_ours(optimizer: Any) -> bool:
    """Whether it was made by `updater.as_optimizer()`."""
    return isinstance(optimizer, ChainOptimizer)


def numbers(optimizers: Iterable[Any]) -> dict[str, float]:
    """The learning rates of the coming update, and what the links recorded last, by address, where it is a number."""
    found: dict[str, float] = {}
    for optimizer in chains(optimizers):
        found |= optimizer.rates()
        for address, value in optimizer.updater.metrics.items():
            number = as_number(value)
            if number is not None:
                found[address] = float(number)
    return found
