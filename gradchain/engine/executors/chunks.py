"""Rows in chunks: what is worked on at once, so that what a run makes beside the columns is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.engine.planning.rows import Column

APART = 64  # elements between the beginnings of rows in kept memory: whole lines of it, for any dtype
SMALL = 1 << 16  # elements that are worked on at once whatever they are of: more calls would cost more than the memory
MOST = 3.9  # bytes per element of all rows that a run may make


class Chunk:
    """Some rows, and pieces of rows where one is too long.

    Attributes:
        pieces: row, where it begins, and how many elements of it.
        whole: whether these are all rows, each in one piece.
        stretch: how many elements of kept memory they take, with gaps.
    """

    def __init__(self, pieces: list[tuple[int, int, int]], sizes: Sequence[int]) -> None:
        self.pieces = pieces
        self.whole = len(pieces) == len(sizes) and all(size == sizes[row] for row, _, size in pieces)
        self.padded = [-(-size // APART) * APART for _, _, size in pieces]
        self.stretch = sum(self.padded)
        self._sizes = sizes
        self._repeats: Tensor | None = None
        self._rows: Tensor | None = None

    def cut(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The pieces of a column."""
        if self.whole:
            return tensors if isinstance(tensors, list) else list(tensors)
        return [
            tensors[row] if size == self._sizes[row] else flat(tensors[row], start, size)
            for row, start, size in self.pieces
        ]

    def laid(self, kept: Tensor, offset: int, like: Sequence[Tensor] | None) -> list[Tensor]:
        """The pieces over a stretch of kept memory, each shaped as the column's."""
        out = []
        for (row, _, size), padded in zip(self.pieces, self.padded, strict=True):
            whole = like is not None and size == self._sizes[row]
            shape, strides = (like[row].shape, like[row].stride()) if like is not None and whole else ((size,), (1,))
            out.append(kept.as_strided(shape, strides, offset))
            offset += padded
        return out

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers per row, one for each element of a stretch."""
        if self._repeats is None or self._rows is None:
            where = partial(torch.tensor, dtype=torch.int64, device="cpu")
            self._repeats = where(self.padded).to(numbers.device)
            self._rows = where([row for row, _, _ in self.pieces]).to(numbers.device)
        at = torch.repeat_interleave(self._repeats, output_size=self.stretch)
        return numbers.index_select(0, self._rows).index_select(0, at)


class Cuts:
    """The columns of a program in chunks; those of weights and state are cut once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[Column, list[list[Tensor]]]] = {}

    def of(self, i: int, column: Column, chunks: Sequence[Chunk]) -> list[list[Tensor]]:
        """A column, chunk by chunk."""
        key = (i, id(chunks))
        kept = self._kept.get(key)
        if kept is not None and kept[0] is column:
            return kept[1]
        cut = [chunk.cut(column.tensors) for chunk in chunks]
        if column.stays:
            self._kept[key] = (column, cut)
        return cut


def flat(tensor: Tensor, start: int, size: int) -> Tensor:
    """A stretch of a tensor that fills its memory."""
    return tensor.as_strided((size,), (1,), tensor.storage_offset() + start)


def most_at_once(total: int, units: int, itemsize: int) -> int:
    """How many of so many elements are worked on at once, where `units` lists of this size of element are there."""
    return max(SMALL, int(total * MOST / (units * itemsize))) if units else max(total, 1)


def chunked(sizes: Sequence[int], units: int, itemsize: int) -> list[Chunk]:
    """Rows in as few chunks as `units` lists at once allow, of elements of this size."""
    total = sum(sizes)
    number = max(1, -(-total // most_at_once(total, units, itemsize)))
    each = max(1, -(-total // number))
    each = each if number == 1 else -(-each // APART) * APART
    chunks: list[list[tuple[int, int, int]]] = [[]]
    room = each
    for row, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                chunks.append([])
                room = each
            taken = min(size - start, room)
            chunks[-1].append((row, start, taken))
            start, room = start + taken, room - taken
    return [Chunk(pieces, sizes) for pieces in chunks if pieces]


class Kept:
    """Memory for slots, which is given back between runs: the tensors in it stay, and it lies elsewhere next time."""

    def __init__(self, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = torch.empty(elements, dtype=dtype, device=device)
        storage = self.memory.untyped_storage()
        self.take: Any = partial(storage.resize_, storage.nbytes())
        self.give_back: Any = partial(storage.resize_, 0)

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give_back()
