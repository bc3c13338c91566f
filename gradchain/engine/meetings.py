"""Where ranks meet in a step over shards: numbers of shards become those of whole tensors, and no rank waits in vain.

Every rank runs the same links, so all come to the same meetings in the same order. A rank that cannot run a step by
kernels goes through the links once more, with the numbers that it has met so far, and tells the others at the next
meeting: from there all of them run that step by the reference. One in which something failed does the same, and no rank
writes that step. What is met is met in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradchain.engine.operations import Unrecorded

T = TypeVar("T")

Groups = dict[Any, "list[int] | None"]
"""Which numbers meet over a process group, by their places; None for all of them."""

_HOST = torch.device("cpu")
_FAILED = 2.0**40  # what a rank says in which something failed: more than all others that are absent say together


class OnEveryRank(Unrecorded):
    """A step runs by the reference for a reason that every rank has, or has been told of."""


class FailedElsewhere(RuntimeError):  # noqa: N818  # what failed is an error of another rank
    """Something failed on another rank, which has told this one."""


class Meetings:
    """The meetings of one engine.

    A step may be gone through several times: by one that is run again, and was not this one; by the links, and by them
    once more. What has met is kept until it ends, and the others are met once.

    Attributes:
        absent: why this rank cannot run the current step by kernels; "" if it can.
        kinds: what has met in this step, which every rank knows alike.
        on_device: whether the executors of this rank leave numbers on a device.
        torn: whether something that ranks do together failed here: where the others are nobody knows.
    """

    def __init__(self) -> None:
        self.absent = ""
        self.kinds: list[Hashable] = []
        self.on_device = self.torn = False
        self._says = 0.0  # what this rank has to say of the step: nothing, that it is absent, or that something failed
        self._everyone: Sequence[Any] = ()  # groups, over which together all ranks meet
        self._device = _HOST
        self._met: list[Any] = []  # what has met in this step
        self._ended: Exception | None = None  # how a meeting of this step came to nothing
        self._agreed: dict[Hashable, Any] = {}

    def begin(self, everyone: Sequence[Any] = (), device: torch.device = _HOST) -> None:
        """A step begins."""
        self.absent, self.kinds, self._met = "", [], []
        self._says, self.torn, self._ended = 0.0, False, None
        self._everyone, self._device = everyone, device

    def anew(self) -> None:
        """The links are about to run, from the first of them on."""
        self.kinds = []

    def absents(self, why: str, failed: bool) -> None:
        """This rank cannot run the step by kernels, or something failed: the others hear of it at the next meeting."""
        self.absent, self._says = why, _FAILED if failed else 1.0

    def agree(self, key: Hashable, alive: Any = None) -> None:
        """Ask, when all ranks have a key for the first time, whether each can run the step; `alive` has its ids.

        OnEveryRank where one cannot.
        """
        if key not in self._agreed:
            self._held(self._ask)
            self._agreed[key] = alive

    def forget(self) -> None:
        """The groups are others, and there may be ranks among them that have agreed on nothing."""
        self._agreed.clear()

    def next(self, kind: Hashable) -> int:
        """Which meeting of the step the links have come to; of what kind it is every rank knows alike."""
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def once(self, number: int, meet: Callable[[], Any]) -> Any:
        """What a meeting of the step comes to: `meet` is called the first time that anybody comes to it."""
        if number == len(self._met):
            self._met.append(self._held(meet))
        return self._met[number]

    def _held(self, meet: Callable[[], T]) -> T:
        """A meeting. After one that came to nothing there is none in this step: the others have left."""
        if self._ended is not None:
            raise self._ended
        try:
            return meet()
        except Exception as error:
            self._ended = error
            raise

    # what ranks do in a meeting

    def of_all(self, make: Callable[[], T]) -> T:
        """What ranks make together by a collective of torch's, once it is known that all are there."""
        self._ask()
        return self.together(make)

    def together(self, make: Callable[[], T]) -> T:
        """The same, whoever is there."""
        with self._together():
            return make()

    def numbers(self, mine: Tensor, groups: Groups, largest: bool) -> Tensor:
        """Numbers of all ranks, together: their sums, or the largest; NaN where there is one.

        Args:
            mine: those of this rank, flat.
            groups: over which ranks they are shared out.
            largest: whether they meet as the largest.
        """
        met, said = mine.to(self._device, torch.float64, copy=True), self._says
        if said:
            met.zero_()
        with self._together():
            for group, places in groups.items():
                some, said = _reduced(met if places is None else met[places], said, group, largest)
                if places is None:
                    met = some
                else:
                    met[places] = some
        self._hear(said)
        return met.to(mine.device)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What is done inside the others do at this moment, too."""
        self.torn = True
        yield
        self.torn = False

    def _ask(self) -> None:
        says = [self._says, float(self.on_device), float(not self.on_device)]
        heard = torch.tensor(says, dtype=torch.float64, device=self._device)
        with self._together():
            for group in self._everyone:
                torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX, group=group)
            said, there, here = heard.tolist()
        self._hear(said)
        if there and here:  # links may decide in another order where numbers are not known at once
            raise OnEveryRank("executors leave numbers on a device on some ranks, and with the host on others")

    def _hear(self, said: float) -> None:
        """OnEveryRank or FailedElsewhere where a rank has said so."""
        if said >= _FAILED:
            raise FailedElsewhere(
                "update: every rank must come to the end of a step, got one on which something failed. It says what; "
                "no rank has written this step."
            )
        if said:
            raise OnEveryRank(self.absent or "another rank cannot run it by kernels")


def _reduced(mine: Tensor, says: float, group: Any, largest: bool) -> tuple[Tensor, float]:
    """Numbers over a group, and what its ranks say of the step: one collective."""
    ops = torch.distributed.ReduceOp
    flag = mine.new_full((1,), says)
    if not largest:
        sent = torch.cat([mine, flag])
        torch.distributed.all_reduce(sent, ops.SUM, group=group)
        return sent[:-1], sent[-1].item()
    nan = mine.isnan()  # which of a NaN and a number is larger, backends do not agree on
    sent = torch.cat([mine.masked_fill(nan, -torch.inf), nan.to(mine.dtype), flag])
    torch.distributed.all_reduce(sent, ops.MAX, group=group)
    values, nans = sent[:-1].chunk(2)
    return values.masked_fill(nans > 0, torch.nan), sent[-1].item()
