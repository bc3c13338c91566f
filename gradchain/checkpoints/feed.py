"""Batches of an epoch, from its first or from one in the middle: then what was seen is skipped, to the same end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gradchain.checkpoints import randomness
from gradchain.checkpoints.objects import is_stateful
from gradchain.checkpoints.orders import sampler

_NONE = object()


class Feed:
    """A loader, and where in its epoch it is.

    Attributes:
        epoch: which one, from 0.
        batch: how many of its batches are behind.
        length: how many it has; None where the loader does not say.
    """

    def __init__(self, loader: Any, owner: str) -> None:
        self._owner = owner
        self.epoch = 0
        self.batch = 0
        self._begin: dict[str, Any] | None = None  # the random numbers as the epoch began
        self._place: Any = None  # of a loader that keeps its own
        self.exchange(loader)

    def exchange(self, loader: Any) -> None:
        """Go on with this loader, from the next epoch that is opened. TypeError where it is none."""
        if not hasattr(loader, "__iter__"):
            raise TypeError(f"{self._owner}: loader must be iterable, got {type(loader).__name__}.")
        self.loader = loader
        try:
            self.length: int | None = len(loader)
        except TypeError:
            self.length = None

    def seed(self) -> None:
        """Tell samplers and data sets which epoch it is."""
        told: list[int] = []
        for part in self._parts():
            if id(part) not in told and callable(getattr(part, "set_epoch", None)):
                told.append(id(part))
                part.set_epoch(self.epoch)

    def open(self) -> Iterator[Any]:
        """The batches from where it is on. Random numbers go on from where they are, whatever skipping draws."""
        if not self.batch:
            self._begin = {"random": randomness.state(), "generators": [g.get_state() for g in self._generators()]}
            return self._checked(self._iterator())
        before = randomness.state()
        self._go_to_begin()
        batches = self._skipped()
        randomness.put(before)
        return batches

    def _go_to_begin(self) -> None:
        if self._begin is None:  # other ranks began the epoch
            return
        begin = self._begin
        randomness.put(begin["random"])
        generators = self._generators()
        if len(generators) != len(begin["generators"]):
            raise ValueError(
                f"{self._owner}: loader must have the generators that it was saved with, to go on in an epoch."
            )
        for generator, state in zip(generators, begin["generators"], strict=True):
            generator.set_state(state)

    def _skipped(self) -> Iterator[Any]:
        if self._place is not None and self.is_stateful():
            self.loader.load_state_dict(self._place)
            return self._iterator()
        leaping = self._leap()
        if leaping is not None:
            leaping.skip(self.batch * self.loader.batch_size)
            return self._iterator()
        batches = self._iterator()
        for number in range(self.batch):
            try:
                next(batches)
            except StopIteration:
                raise ValueError(
                    f"{self._owner}: loader must give the {self.batch} batches of epoch {self.epoch + 1} that were "
                    f"seen before the checkpoint, got {number}. Resume with the data of then."
                ) from None
        return batches

    def _iterator(self) -> Iterator[Any]:
        batches: Iterator[Any] = iter(self.loader)
        return batches

    def _ordered(self) -> sampler | None:
        """The sampler, where it is ours and gives batches of one size."""
        found = getattr(self.loader, "sampler", None)
        return found if isinstance(found, sampler) and getattr(self.loader, "batch_size", None) is not None else None

    def _leap(self) -> sampler | None:
        """The sampler, where it may leap over what was seen: it then comes to the same as loading it again."""
        found = self._ordered()
        return found if found is not None and (found.leap or getattr(self.loader, "num_workers", 0) == 0) else None

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        """ValueError for an epoch without a batch: an endless run would go on without one."""
        first = next(batches, _NONE)
        if first is _NONE:
            again = " A generator can be gone through once: give a list or a DataLoader." if self.epoch else ""
            raise ValueError(
                f"{self._owner}: loader must give at least one batch, got none in epoch {self.epoch + 1}.{again}"
            )
        yield first
        del first
        yield from batches

    def state(self, behind: int, ended: bool = False) -> dict[str, Any]:
        """Where it is once so many more batches are behind, as plain data."""
        if ended:
            return {"epoch": self.epoch + 1, "batch": 0, "begin": None, "place": None, "items": 0}
        place = self.loader.state_dict() if self.is_stateful() else None
        batch = self.batch + behind
        ordered = self._ordered()
        items = None if ordered is None else min(batch * self.loader.batch_size, len(ordered))
        return {"epoch": self.epoch, "batch": batch, "begin": self._begin, "place": place, "items": items}

    def shared_out(self, state: Any, behind: Sequence[int | None], ranks: int) -> dict[str, Any] | None:
        """Where it is once so many items are behind on each rank of then, on as many ranks as there are now.

        None where nobody can say: the order is not `sampler`'s, or those items are no whole number of batches here.
        """
        ordered = self._ordered()
        if ordered is None or state is None or None in behind or len(set(behind)) > 1:
            return None
        seen, many = len(behind) * int(behind[0] or 0), ranks * self.loader.batch_size
        if seen >= ordered.items:
            return {**state, "epoch": state["epoch"] + 1, "batch": 0, "begin": None, "place": None}
        return None if seen % many else {**state, "batch": seen // many, "begin": None, "place": None}

    def load(self, state: dict[str, Any]) -> None:
        """Be there."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._begin, self._place = state["begin"], state["place"]

    def stay(self) -> None:
        """Whoever opens it again goes on here: a loader that keeps its own place is asked for it."""
        self._place = self.loader.state_dict() if self.is_stateful() else None

    def is_stateful(self) -> bool:
        """Whether the loader keeps its own place."""
        return is_stateful(self.loader)

    def _parts(self) -> list[Any]:
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        names = ("sampler", "dataset")
        return [self.loader, *(getattr(self.loader, name, None) for name in names), batch_sampler, inner]

    def _generators(self) -> list[torch.Generator]:
        found = [getattr(part, "generator", None) for part in self._parts() if part is not None]
        distinct = {id(g): g for g in found if isinstance(g, torch.Generator)}
        return list(distinct.values())
