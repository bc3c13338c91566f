"""Where ranks meet in a step over shards: numbers of shards become those of whole tensors, and no rank waits in vain.

Every rank runs the same links, so all come to the same meetings in the same order. A rank that cannot run a step by
kernels goes through the links once more, with the numbers that it has met so far, and tells the others at the next
meeting: from there all of them run that step by the reference. What is met is met in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NoReturn

import torch
from torch import Tensor

from gradchain.engine.operations import Unrecorded

Groups = dict[Any, "list[int] | None"]
"""Which numbers meet over a process group, by their places; None for all of them."""


class OnEveryRank(Unrecorded):
    """A step runs by the reference for a reason that every rank has, or has been told of."""


class Meetings:
    """The meetings of one engine.

    Attributes:
        absent: why this rank cannot run the current step by kernels; "" if it can.
        kinds: what has met in this step, which every rank knows alike.
    """

    def __init__(self) -> None:
        self.absent = ""
        self.kinds: list[Hashable] = []
        self._everyone: list[Any] = []  # groups, over which together all ranks meet
        self._device = torch.device("cpu")
        self._met: list[Any] = []  # what has met in this step
        self._agreed: dict[Hashable, Any] = {}

    def begin(self, everyone: list[Any], device: torch.device) -> None:
        """A step begins."""
        self.absent, self.kinds, self._met = "", [], []
        self._everyone, self._device = everyone, device

    def again(self, why: str) -> None:
        """The links are about to run once more, for this rank cannot run the step by kernels."""
        self.absent, self.kinds = why, []

    def agree(self, key: Hashable, alive: Any = None) -> None:
        """Ask, when all ranks have a key for the first time, whether each can run the step; `alive` has its ids.

        OnEveryRank where one cannot.
        """
        if key not in self._agreed:
            self._ask()
            self._agreed[key] = alive

    def of_all(self, kind: Hashable, make: Callable[[], Any]) -> Any:
        """What ranks make together by a collective of torch's, once it is known that all are there."""
        if self._is_known(kind):
            return self._met[len(self.kinds) - 1]
        self._ask()
        self._met.append(make())
        return self._met[-1]

    def numbers(self, kind: Hashable, mine: Tensor, groups: Groups, largest: bool) -> Tensor:
        """Numbers of all ranks, together: their sums, or the largest; NaN where there is one.

        Args:
            kind: what they are, which every rank knows alike.
            mine: those of this rank, flat.
            groups: over which ranks they are shared out.
            largest: whether they meet as the largest.
        """
        if not groups:
            return mine
        if self._is_known(kind):
            known: Tensor = self._met[len(self.kinds) - 1]
            return known
        met, absent = mine.to(self._device, torch.float64, copy=True), bool(self.absent)
        if absent:
            met.zero_()
        for group, places in groups.items():
            some, absent = _reduced(met if places is None else met[places], absent, group, largest)
            if places is None:
                met = some
            else:
                met[places] = some
        if absent:
            self._refuse()
        self._met.append(met.to(mine.device))
        return met.to(mine.device)

    def _is_known(self, kind: Hashable) -> bool:
        """Whether a meeting has been, in this step, before the links ran once more."""
        self.kinds.append(kind)
        return len(self.kinds) <= len(self._met)

    def _ask(self) -> None:
        absent = torch.tensor(float(bool(self.absent)), dtype=torch.float64, device=self._device)
        for group in self._everyone:
            torch.distributed.all_reduce(absent, torch.distributed.ReduceOp.MAX, group=group)
        if absent:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise OnEveryRank(self.absent or "another rank cannot run it by kernels")


def _reduced(mine: Tensor, absent: bool, group: Any, largest: bool) -> tuple[Tensor, bool]:
    """Numbers over a group, and whether one of its ranks is absent: one collective."""
    ops = torch.distributed.ReduceOp
    flag = mine.new_full((1,), float(absent))
    if not largest:
        sent = torch.cat([mine, flag])
        torch.distributed.all_reduce(sent, ops.SUM, group=group)
        return sent[:-1], bool(sent[-1])
    nan = mine.isnan()  # which of a NaN and a number is larger, backends do not agree on
    sent = torch.cat([mine.masked_fill(nan, -torch.inf), nan.to(mine.dtype), flag])
    torch.distributed.all_reduce(sent, ops.MAX, group=group)
    values, nans = sent[:-1].chunk(2)
    return values.masked_fill(nans > 0, torch.nan), bool(sent[-1])
