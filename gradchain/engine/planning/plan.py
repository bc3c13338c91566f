"""Plans: the programs for one structure of a step, and what tells structures apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gradchain.core.index import Index
from gradchain.core.scalars import Scalars
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import HandsOver, Rows, Runner
from gradchain.engine.recording.device import DeviceRows
from gradchain.engine.recording.tape import Tape


@dataclasses.dataclass
class Part:
    """The program of one class of parameters.

    Attributes:
        names: the class.
        program: what it computes, over the nodes and cells of a tape of this structure.
        runner: the program made ready by an executor.
        executor: that executor's name.
        refused: why executors that come before it could not.
        dtypes: of the program's columns.
        staged: whether it runs for each tensor in turn, beside the other parts of which that is so.
    """

    names: tuple[str, ...]
    program: Program
    runner: Runner
    executor: str
    refused: dict[str, str]
    dtypes: tuple[torch.dtype, ...]
    staged: bool = False
    _places: dict[Index, torch.Tensor | None] = dataclasses.field(default_factory=dict, repr=False)

    def rows(self, given: list[Scalars | DeviceRows]) -> Sequence[Any]:
        """Numbers per parameter, row by row."""
        held = [scalars.column for scalars in given]
        if all(held):
            columns = [self._ordered(*pair) for pair in held if pair is not None]
            return Rows(columns[0] if len(columns) == 1 else torch.stack(columns, 1).flatten())
        return [number for row in zip(*(s.listed(self.names) for s in given), strict=True) for number in row]

    def _ordered(self, index: Index, column: torch.Tensor) -> torch.Tensor:
        """A column over an Index in the order of this class."""
        if index not in self._places:
            same = index.names == self.names
            self._places[index] = None if same else torch.tensor([index.position[n] for n in self.names], device="cpu")
        places = self._places[index]
        return column if places is None else column[places]

    @property
    def ran(self) -> str:
        """The executor that ran it last: its own, or the one that the runner handed those numbers to."""
        return (self.runner.handed_to if isinstance(self.runner, HandsOver) else "") or self.executor

    @property
    def bytes_read(self) -> int:
        """Per element."""
        return sum(self.dtypes[i].itemsize for i in self.program.loads() if self._goes_along(i))

    def _goes_along(self, column: int) -> bool:
        """Whether a column has as many elements as there are: one that is broadcast costs next to nothing."""
        return self.program.grid is None or all(self.program.grid.spans[column])

    @property
    def bytes_written(self) -> int:
        """Per element."""
        return sum(self.dtypes[column].itemsize for column, _ in self.program.stores)


@dataclasses.dataclass
class Plan:
    """The programs for one structure of a step. Holds the indices its key refers to by identity."""

    parts: list[Part]
    indices: tuple[Index, ...]


def too_many(plans: Mapping[tuple[Any, ...], Plan], key: tuple[Any, ...]) -> str:
    """What keeps the steps of a chain from sharing plans, where there are as many as are kept."""
    alike = [k for k in plans if len(k) > 1 and type(k[0]) is type(key[0])]
    return (
        f"{len(plans)} plans were made for one chain and yet another is needed: its steps differ in structure, not in "
        f"numbers only, and each new one is compiled. {difference(alike[-1:], key)}"
    )


def difference(before: list[tuple[Any, ...]], key: tuple[Any, ...]) -> str:
    """What is another thing in this key than in the one before."""
    if not before:
        return "This one is the first of its kind."
    old, new = before[0], key
    old_ops, new_ops = (
        k[0] if isinstance(k[0], tuple) else tuple(n[1] for n in k[2:] if isinstance(n, tuple) and type(n[0]) is int)
        for k in (old, new)
    )
    for i, (a, b) in enumerate(zip(old_ops, new_ops, strict=False)):
        if a != b:
            return f"The last two differ in operation {i}: {a[0]!r} before, {b[0]!r} now."
    if len(old_ops) != len(new_ops):
        return f"The last two have {len(old_ops)} and {len(new_ops)} operations."
    return "The last two have the same operations over other parameters: see which have a gradient or pass a mask."


def structure(tape: Tape, nodes: Iterable[int]) -> tuple[Any, ...]:
    """What some nodes of a tape are, apart from the numbers in it."""
    return (*((i, tape.ops[i], id(tape.indices[i])) for i in nodes), *arithmetic(tape))


def arithmetic(tape: Tape) -> tuple[Any, ...]:
    """What kernels do to numbers that lie on the device."""
    return () if tape.ledger is None else tape.ledger.structure


def extra_dtypes(tape: Tape) -> Iterator[torch.dtype]:
    """The dtypes of tensors that links brought onto the tape."""
    for leaf, tensors in tape.leaves.items():
        if tape.ops[leaf][1] == "extra":
            yield from (t.dtype for t in tensors._data)
