"""Indexes of a data set in an order that a seed and the epoch give, the same whoever asks, from any place on."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from gradchain.checkpoints.arguments import is_count


class sampler(Sampler[int]):
    """Every index of a data set once an epoch, in an order of the epoch's own; each rank has its share.

    The order is a function of the seed and the epoch, not of torch's random numbers, and the loop says which epoch it
    is. A run that is resumed in the middle of an epoch leaps over what it has seen, and loads nothing twice.

    Args:
        data: the data set, or how many items it has.
        seed: of the order, the same on all ranks.
        shuffle: False for 0, 1, 2, …
        drop_last: where ranks cannot share evenly, leave out the last few; otherwise the first come again.
        leap: leap where the loader has workers too. Random augmentation in a worker is then another than without the
            interruption: its random numbers go on from batch to batch.
        rank, ranks: this process and how many there are; None asks torch.distributed.

    Attributes:
        items: how many the data set has.

    >>> import gradchain as gch
    >>> order = gch.loop.sampler(5, seed=1)
    >>> order.set_epoch(3)
    >>> sorted(order), list(order) == list(order)
    ([0, 1, 2, 3, 4], True)
    """

    def __init__(
        self,
        data: Sized | int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        leap: bool = False,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        items = data if isinstance(data, int) else len(data)
        if not is_count(items, 1):
            raise ValueError(f"loop.sampler: data must have at least one item, got {items!r}.")
        if not is_count(seed, 0):
            raise ValueError(f"loop.sampler: seed must be a whole number of at least 0, got {seed!r}.")
        here = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.ranks = ranks if ranks is not None else torch.distributed.get_world_size() if here else 1
        self.rank = rank if rank is not None else torch.distributed.get_rank() if here else 0
        if not is_count(self.ranks, 1) or not is_count(self.rank, 0) or self.rank >= self.ranks:
            raise ValueError(f"loop.sampler: rank must be below ranks, got {self.rank!r} and {self.ranks!r}.")
        if drop_last and items < self.ranks:
            raise ValueError(
                f"loop.sampler: data must have an item for each of {self.ranks} ranks with drop_last=True, got {items}."
            )
        self.items, self.seed, self.shuffle, self.leap = items, seed, shuffle, leap
        self._each = items // self.ranks if drop_last else -(-items // self.ranks)
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of this epoch from the next iteration on."""
        self.epoch = epoch

    def skip(self, many: int) -> None:
        """The next iteration begins behind so many indexes; those after it at the first again."""
        self.start = many

    def __len__(self) -> int:
        return self._each

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(self._order()[start:])

    def _order(self) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.items, generator=generator).tolist()
        else:
            order = list(range(self.items))
        wanted = self._each * self.ranks
        order = (order * -(-wanted // self.items))[:wanted]
        return order[self.rank :: self.ranks]
