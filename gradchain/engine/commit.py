"""What a step is about to write: all of it known before the first of it happens, and none of it begun in vain.

An exception may come at any moment, and a second one while the first is dealt with. Nothing is undone here, for that
would take a copy of all weights and moments. What has begun is finished instead: each write can be called again until
it has come to its end, goes on where it was, and does nothing from then on. So a commit is fired as often as it takes,
and what follows from it (a state, clocks, versions) is kept beside it as absolute values, never as an increment.

A write that is one call of C cannot be broken off by Python at all. It leaves a mark as its last act; the only question
is whether it ran, and the mark answers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from gradchain.core import _torch

W = TypeVar("W", bound="Write")


class Write(Protocol):
    """Something to write, which may be called again until it returns, and does nothing from then on."""

    @property
    def begun(self) -> bool:
        """Whether any of it may be written."""
        ...

    def __call__(self) -> None:
        """Write it, or what is left of it."""


class Commit:
    """The writes of one step, in any order. Nothing is written before `fire`; what follows from them comes after.

    Code of others may be among them, between what must be written before it and what must be after.
    """

    def __init__(self) -> None:
        self._writes: list[Any] = []
        self._once: Once | None = None
        self._num_before = 0  # so many of the writes come before that
        self._after: list[Callable[[], object]] = []
        self._num_ended = 0  # so many of those

    def add(self, write: Write) -> None:
        """One more thing to write."""
        self._writes.append(write)

    def shared(self, kind: Callable[[], W]) -> W:
        """The one write of this class, made when it is first asked for: several parts are written by it at once."""
        for write in self._writes[self._num_before :]:
            if type(write) is kind:
                return write  # type: ignore[no-any-return]
        made = kind()
        self._writes.append(made)
        return made

    def once(self, act: Callable[[], object]) -> None:
        """Code of others, to be called once: after the writes that were added before it, and before all others."""
        self._once = Once(act)
        self._writes.append(self._once)
        self._num_before = len(self._writes)

    def after(self, settle: Callable[[], object]) -> None:
        """What holds once everything is written. It may be called more than once."""
        self._after.append(settle)

    @property
    def begun(self) -> bool:
        """Whether something may be written: then it has to be fired to its end."""
        return any(write.begun for write in self._writes)

    @property
    def torn(self) -> bool:
        """Whether code of others was broken off: it cannot be fired to its end."""
        return self._once is not None and self._once.torn

    def fire(self) -> None:
        """Write it all, or what is left of it."""
        if self._writes:
            with _torch.no_grad():
                for write in self._writes:
                    write()
        while self._num_ended < len(self._after):
            self._after[self._num_ended]()
            self._num_ended += 1


class Once:
    """Code of others that writes weights: broken off, it has written nobody knows what, and is not called again."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.begun = False
        self._ended = False

    @property
    def torn(self) -> bool:
        """Whether it was called, and did not come to its end."""
        return self.begun and not self._ended

    def __call__(self) -> None:
        if self._ended:
            return
        if self.begun:
            raise RuntimeError("code that writes weights was broken off, and cannot be called again")
        self.begun = True
        self._act()
        self._ended = True


class Copies:
    """Tensors copied over others: the same whenever it is done again, as long as nobody changes what is copied."""

    def __init__(self, places: list[Tensor], values: list[Tensor]) -> None:
        self._places, self._values = places, values
        self.begun = False

    def __call__(self) -> None:
        self.begun = True
        if self._places:
            with _torch.no_grad():
                _torch.copy_(self._places, self._values)


def sums(places: list[Tensor], updates: list[Tensor], factor: Any) -> Write:
    """What adds updates times a factor to weights, each rounded once to its weight's dtype.

    Where one call of torch does it all, that call; else the new weights are made before the first is written.
    """
    wide = _torch.widened(places)
    plain = all(type(w) in (Tensor, nn.Parameter) for w in places)
    if wide is places and plain and not isinstance(factor, Tensor):
        return Sums(places, updates, factor)
    return Copies(places, _torch.add_scaled(wide, updates, factor))


class Sums:
    """One call of torch that adds in place. It says nowhere that it ran: rows of our own, first and last, show it."""

    def __init__(self, places: list[Tensor], updates: list[Tensor], factor: float) -> None:
        self._ends = [places[0].detach().new_zeros(1) for _ in range(2)]
        self._places = [self._ends[0], *places, self._ends[1]]
        one = updates[0].new_ones(1)
        self._updates, self._factor = [one, *updates, one], factor
        self._tried = False

    @property
    def begun(self) -> bool:
        """Whether the first row was written. Where the factor is so small that it was not, nothing else was, either."""
        return self._tried and bool(self._ends[0].item())

    def __call__(self) -> None:
        if not self.begun:
            self._tried = True
            with _torch.no_grad():
                _torch.add_(self._places, self._updates, self._factor)
        elif not self._ends[1].item():
            raise RuntimeError("torch failed within one call that adds to many weights")
