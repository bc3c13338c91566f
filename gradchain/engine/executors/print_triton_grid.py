"""A program over a grid printed as a Triton kernel: columns that stand still along axes, and results along others.

It is called as every kernel is; the lengths of a row's axes lie in its table as addresses do. An item is a stretch of
a row's elements. Of a reduction along axes it is a few results: each has some lanes, which go over what it is of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from gradchain.core.along import ALONG
from gradchain.engine.executors.base import name_of
from gradchain.engine.executors.print_draws import triton as drawn
from gradchain.engine.executors.print_triton import Printer
from gradchain.engine.planning.lower import Program, Value

LANES = 32  # of each result: their sums meet in a fixed order


def grid_source(program: Program, dtypes: Sequence[torch.dtype], on_device: Collection[tuple[str, int]] = ()) -> str:
    """The Triton of a program over a grid, whose columns have these dtypes; see `source`.

    For a reduction along axes the row of an item is `row + rows * result`, its begin and end are of results.
    """
    return (_Along if program.along else _Grid)(program, dtypes, on_device).text()


class _Grid(Printer):
    """Elements of all axes, in the order of memory."""

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype], on_device: Collection[tuple[str, int]]) -> None:
        super().__init__(program, dtypes, on_device)
        assert program.grid is not None
        self._grid = program.grid
        self._fixed = len(dtypes) + self._grid.rank

    def _whole(self, column: int) -> bool:
        return all(self._grid.spans[column])

    def _place(self, column: int) -> str:
        return "lane" if self._whole(column) else f"o{column}"

    def _pointers(self) -> list[str]:
        axes = (f"h{a} = tl.load(table + {len(self._dtypes) + a} * rows + r)" for a in range(self._grid.rank))
        return [*super()._pointers(), *axes]

    def _places(self) -> list[str]:
        lines = _counted("begin + lane", range(self._grid.rank))
        partly = [i for i in sorted(self._program.loads()) if not self._whole(i)]
        return [*lines, *self._offsets(partly)] if partly else []

    def _offsets(self, columns: Iterable[int]) -> list[str]:
        """The lines that find where columns stand, by the counters of axes."""
        return [f"o{i} = {_offset(self._grid.spans[i])}" for i in columns]


class _Along(_Grid):
    """Results of reductions along axes: an item is some of one of them."""

    def _whole(self, column: int) -> bool:
        return False

    def _row(self) -> list[str]:
        return ["code = tl.load(items + 3 * k)", "r = code % rows", "which = code // rows"]

    def _elements(self) -> list[str]:
        return [line for j, one in enumerate(self._program.along) for line in self._result(j, *one)]

    def _result(self, j: int, kind: str, value: Value, column: int) -> list[str]:
        """The lines of one of the results."""
        along, spans = ALONG[kind], self._grid.spans[column]
        kept = [a for a, goes in enumerate(spans) if goes]
        gone = [a for a, goes in enumerate(spans) if not goes]
        whole = (True,) * self._grid.rank
        met = along.triton_meet.format(f"acc{j}", "taken")
        inner = [
            f"within = at{j} + lane % {LANES}",
            "inside = (result < begin + n) & (within < many)",
            *_counted("result", kept),
            *_counted("within", gone),
            *self._offsets(sorted(self._program.loads())),
            *(
                line
                for i, draw in enumerate(self._program.draws)
                for line in drawn(draw, i, self._compute, f"({_offset(whole)})")
            ),
            *self._computed(ragged=True),
            f"wide = zero.to(tl.float64) + {name_of(value)}.to(tl.float64)",
            f"taken = {along.triton}",
            f"acc{j} = tl.where(inside, {met}, acc{j})",
            f"at{j} = at{j} + {LANES}",
        ]
        lines = [
            f"result = begin + lane // {LANES}",
            f"many = {_product(gone)}",
            f"acc{j} = tl.full([BLOCK], {along.triton_start}, tl.float64)",
            f"at{j} = begin * 0",
            f"while at{j} < many:",
            *(f"    {line}" for line in inner),
            f"block = tl.reshape(acc{j}, [BLOCK // {LANES}, {LANES}])",
            f"met{j} = {along.triton_block.format('block')}",
            f"kept{j} = {along.triton_finish.format(f'met{j}', 'many')}",
            f"lane{j} = begin + tl.arange(0, BLOCK // {LANES})",
            *self._store(column, f"kept{j}", f"lane{j} < begin + n", f"lane{j}"),
        ]
        return [f"if which == {j}:", *(f"    {line}" for line in lines)]


def _counted(element: str, axes: Sequence[int]) -> list[str]:
    """The lines that find the counters of axes for the elements of these alone, numbered in the order of memory."""
    lines = [f"rest = {element}"]
    for a in reversed(axes):
        outermost = a == axes[0]
        lines += [f"i{a} = rest"] if outermost else [f"i{a} = rest % h{a}", f"rest = rest // h{a}"]
    return lines if axes else []


def _offset(spans: Sequence[bool]) -> str:
    """Where a column along these axes stands, by their counters."""
    axes = [a for a, goes in enumerate(spans) if goes]
    terms = [" * ".join([f"i{a}", *(f"h{b}" for b in axes if b > a)]) for a in axes]
    return " + ".join(terms) or "lane * 0"


def _product(axes: Sequence[int]) -> str:
    return " * ".join(f"h{a}" for a in axes) or "begin * 0 + 1"
