"""Where a part of a tensor lies in the whole: what a shard has to know of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """A part of a tensor that is one range of each dimension.

    Attributes:
        whole: the shape of the whole.
        offsets: where the part begins in each dimension.
    """

    whole: tuple[int, ...]
    offsets: tuple[int, ...]

    def of_reals(self, shape: Sequence[int]) -> Place:
        """The same place of a tensor as rules see it: a complex one has its pairs of reals in one more dimension."""
        if len(shape) == len(self.whole):
            return self
        return Place((*self.whole, 2), (*self.offsets, 0))

    def strides(self) -> list[int]:
        """By how many elements of the whole, in row-major order, neighbours lie apart in each dimension."""
        return [math.prod(self.whole[d + 1 :]) for d in range(len(self.whole))]

    def run(self, shape: Sequence[int]) -> int | None:
        """The first element, where a part of this shape is one run of the whole; None where it has gaps."""
        many = [d for d, size in enumerate(shape) if size != 1]
        behind = range(many[0] + 1, len(shape)) if many else ()
        if math.prod(shape) and any(shape[d] != self.whole[d] for d in behind):
            return None
        return sum(at * stride for at, stride in zip(self.offsets, self.strides(), strict=True))

    def elements(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Which element of the whole each element of a part of this shape is."""
        found = torch.zeros((), dtype=torch.int64, device=device)
        for size, at, stride in zip(shape, self.offsets, self.strides(), strict=True):
            found = found.unsqueeze(-1) + torch.arange(at, at + size, dtype=torch.int64, device=device) * stride
        return found
