"""Rows: what a program runs over, one parameter a row, and what something is that can run it."""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from torch import Tensor

from gradchain.engine.commit import Commit


@dataclass
class Column:
    """One tensor per row."""

    tensors: list[Tensor]
    lent: bool = False  # gradients that stay the user's
    stays: bool = False  # the same tensors at the next step: weights and state
    _addresses: Any = field(default=None, repr=False)
    _table: int = field(default=0, repr=False)

    @property
    def addresses(self) -> array.array[int]:
        """Where the tensors lie, as a kernel takes it."""
        if self._addresses is None:
            found = list(map(Tensor.data_ptr, self.tensors))
            if not all(found):
                _check_there(self.tensors)
            self._addresses = array.array("q", found)
        return self._addresses  # type: ignore[no-any-return]

    @property
    def table(self) -> int:
        """Where these addresses lie themselves."""
        if not self._table:
            self._table = self.addresses.buffer_info()[0]
        return self._table


def _check_there(tensors: Sequence[Tensor]) -> None:
    """RuntimeError for a tensor without the memory of its elements, which a kernel would read or write."""
    for tensor in tensors:
        if tensor.numel() and not tensor.data_ptr():
            raise RuntimeError(
                f"step: a gradient or state must have memory for its elements, got shape {tuple(tensor.shape)} over a "
                "storage of 0 bytes. Resize the storage back first."
            )


class Rows(Sequence[float]):
    """Numbers per row that lie in memory already: a kernel takes their address, and anyone else the numbers."""

    def __init__(self, column: Tensor) -> None:
        self.column = column
        self._numbers: list[float] | None = None

    def __len__(self) -> int:
        return self.column.numel()

    @overload
    def __getitem__(self, at: int) -> float: ...
    @overload
    def __getitem__(self, at: slice) -> list[float]: ...
    def __getitem__(self, at: int | slice) -> float | list[float]:
        if self._numbers is None:
            self._numbers = self.column.tolist()
        return self._numbers[at]


class Runner(Protocol):
    """A program made ready for rows of fixed sizes."""

    @property
    def scratch(self) -> int | None:
        """Bytes of tensors that a run makes and lets go of, at most at once; None where that is not known."""

    @property
    def source(self) -> str | None:
        """The text of its kernel; None where it has none."""

    def run(self, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]) -> list[float] | None:
        """Run it over all rows, in place and at once: for what is reduced, or written to memory of nobody's yet.

        Args:
            columns: the tensors, in the order of the program's columns. All of one row have the same size and
                strides, and fill one stretch of memory.
            scalars: the numbers, in the order of the program.
            entries: the numbers per row, row by row.

        Returns:
            For a program that reduces, one number per row; else None.
        """

    def write(
        self, commit: Commit, columns: Sequence[Column], scalars: Sequence[float], entries: Sequence[float]
    ) -> None:
        """Have a commit run it over all rows, for a program that stores. The arguments are those of `run`."""


class HandsOver:
    """A runner that hands rows to one of another executor where its own kernel cannot take the numbers.

    Attributes:
        handed_to: the name of that executor, where the last rows were; else "".
    """

    handed_to = ""
