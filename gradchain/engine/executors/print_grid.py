"""A program over a grid printed as C: loops over axes, in which some columns stand still, and others are reduced to.

It is called as every kernel is, with more columns behind those of the program: for each row the lengths of its axes,
then, for each result of a reduction along axes, room to meet its elements in float64. An item is a stretch of the
outermost axis; of a reduction along axes a whole row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradchain.core.along import ALONG
from gradchain.engine.executors.base import name_of
from gradchain.engine.executors.print_c import AHEAD, LANES, LINE, computed, head, loaded, pointer
from gradchain.engine.executors.print_draws import DRAWN, c_fill
from gradchain.engine.operations import REDUCTIONS, TYPES
from gradchain.engine.planning.grid import Grid
from gradchain.engine.planning.lower import Program

STRETCH = 256  # elements between two requests for memory ahead


def grid_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The C of a program over a grid, whose columns have these dtypes."""
    grid = program.grid
    assert grid is not None
    outs = [column for _, _, column in program.along]
    read = [i for i in range(len(dtypes)) if i not in outs]
    written = {column for column, _ in program.stores} | {*outs}
    lines = [
        *head(program, dtypes),
        f"    const int64_t* const extent = (const int64_t*)columns[{len(dtypes)}][r];",
        *(f"    const int64_t n{a} = extent[{a}];" for a in range(1, grid.rank)),
        *(
            f"    {pointer(dtype, i in written)} b{i} = ({pointer(dtype, i in written)})columns[{i}][r];"
            for i, dtype in enumerate(dtypes)
        ),
        *_begun(program, grid, len(dtypes)),
        *_nested(grid, dtypes, written, read, _innermost(program, grid, dtypes, read)),
        *_ended(program, grid, dtypes),
    ]
    return "\n".join([*lines, "  }", "}", ""])


def _place(spans: Sequence[bool], axes: range) -> str:
    """Where a column along these axes stands, by the counters of some, from where it stands at their beginning."""
    terms = []
    for a in axes:
        if spans[a]:
            inner = [f"n{b}" for b in range(a + 1, len(spans)) if spans[b]]
            terms.append(" * ".join([f"i{a}", *inner]))
    return " + ".join(terms) or "0"


def _length(grid: Grid, column: int) -> str:
    """How many elements a column has, where all of the outermost axis is there."""
    return " * ".join([f"n{a}" if a else "n" for a, along in enumerate(grid.spans[column]) if along]) or "1"


def _nested(
    grid: Grid, dtypes: Sequence[torch.dtype], written: set[int], read: Sequence[int], innermost: list[str]
) -> list[str]:
    """Loops over all axes but the last, in which each column has its place, and what is done along the last."""
    last = grid.rank - 1
    loops = [f"    for (int64_t i{a} = {'from' if a == 0 else 0}; i{a} < {'end[k]' if a == 0 else f'n{a}'}; ++i{a}) {{"
             for a in range(last)]  # fmt: skip
    width = f"n{last}" if last else "n"
    places = []
    for i in read:
        kind = pointer(dtypes[i], i in written)
        start = _place(grid.spans[i], range(last)) if last else ("from" if grid.spans[i][0] else "0")
        places.append(f"      {kind} restrict p{i} = b{i} + {start};")
    inside = [f"      const int64_t w = {width};", *places, *(f"      {line}" for line in innermost)]
    return [*loops, "    {", *inside, "    }", *("    }" for _ in loops)]


def _begun(program: Program, grid: Grid, columns: int) -> list[str]:
    """What stands before the loops: where results meet."""
    if program.reduce:
        return [f"    double lane[{LANES}] = {{0}};"]
    lines = []
    for j, (kind, _, column) in enumerate(program.along):
        lines += [
            f"    double* const a{j} = (double*)columns[{columns + 1 + j}][r];",
            f"    for (int64_t i = 0; i < {_length(grid, column)}; ++i) a{j}[i] = {ALONG[kind].start};",
        ]
    return lines


def _ended(program: Program, grid: Grid, dtypes: Sequence[torch.dtype]) -> list[str]:
    """What stands behind the loops: results as they are kept."""
    if program.reduce:
        meet = REDUCTIONS[program.reduce[0]].meet.c.format("a", "b")
        return [
            f"    for (int l = 1; l < {LANES}; ++l) {{ const double a = lane[0], b = lane[l]; lane[0] = {meet}; }}",
            "    out[k] = lane[0];",
        ]
    lines = []
    for j, (kind, _, column) in enumerate(program.along):
        many = " * ".join([f"n{a}" if a else "n" for a, along in enumerate(grid.spans[column]) if not along]) or "1"
        result = ALONG[kind].finish.format(f"a{j}[i]", many)
        # the dtype of what is kept is that of the computation: it is rounded once
        kept = f"b{column}[i] = ({TYPES[dtypes[column]].c})({result});"
        lines.append(f"    for (int64_t i = 0; i < {_length(grid, column)}; ++i) {kept}")
    return lines


def _innermost(program: Program, grid: Grid, dtypes: Sequence[torch.dtype], read: Sequence[int]) -> list[str]:
    """What is done along the last axis, over `w` elements, those of column i behind `p{i}`."""
    moving = [i for i in read if grid.spans[i][-1]]
    still = loaded(program, dtypes, [i for i in read if i not in moving], "0")
    element = [*loaded(program, dtypes, moving, "i"), *computed(program)]
    written = {column for column, _ in program.stores}
    asked = [_ahead(i, dtypes[i], i in written) for i in read if all(grid.spans[i])]
    # random numbers are drawn for so many elements at once, from element `b` on
    stretch = DRAWN if program.draws else STRETCH
    element = [*(f"const C r{i} = (C)q{i}[i - b];" for i in range(len(program.draws))), *element]
    drawn = _drawn(program, grid)
    if program.stores:
        stores = [f"p{c}[i] = to_{TYPES[dtypes[c]].c}({name_of(value)});" for c, value in program.stores]
        lines = [*element, *stores]
        return [*still, f"for (int64_t j = 0; j < w; j += {stretch}) {{",
                f"  const int64_t m = w - j < {stretch} ? w : j + {stretch};",
                *(f"  {line}" for line in (*asked, *drawn)),
                "#pragma GCC ivdep", "  for (int64_t i = j; i < m; ++i) {",
                *(f"    {line}" for line in lines), "  }", "}"]  # fmt: skip
    before, take, after, pragmas = _taken(program, grid)
    inner = [
        f"  const int64_t whole = w - w % {LANES};",
        "  while (j < whole) {",
        f"    const int64_t m = whole - j < {stretch} ? whole : j + {stretch};",
        *(f"    {line}" for line in (*asked, *drawn)),
        f"    for (; j < m; j += {LANES}) {{",
        "#pragma GCC ivdep",
        *pragmas,
        f"    for (int l = 0; l < {LANES}; ++l) {{",
        "      const int64_t i = j + l;",
        *(f"      {line}" for line in [*element, *take]),
        "    }",
        "    }",
        "  }",
        *(f"  {line}" for line in drawn),
        "  for (const int l = 0; j < w; ++j) {",
        "    const int64_t i = j;",
        *(f"    {line}" for line in [*element, *take]),
        "  }",
    ]
    return [*still, *before, "{", "  int64_t j = 0;", *inner, "}", *after]


def _drawn(program: Program, grid: Grid) -> list[str]:
    """The lines that draw the next elements of a row, from `j` on: they are told from the first of the item."""
    last = grid.rank - 1
    begin = f"(uint64_t)({_place((True,) * grid.rank, range(last))} - from + j)" if last else "j"
    fills = [line for i, draw in enumerate(program.draws) for line in c_fill(draw, i, begin)]
    return ["const int64_t b = j;", *fills] if fills else []


def _ahead(column: int, dtype: torch.dtype, written: bool) -> str:
    """The line that asks for the memory some way behind elements j to m of a column that has every element.

    Rows lie one behind the other, so behind a short one it is that of later rows.
    """
    size = dtype.itemsize
    ask = f"ASK(p{column} + q + {AHEAD // size}, {int(written)});"
    return f"for (int64_t q = j; q < m; q += {LINE // size}) {ask}"


def _taken(program: Program, grid: Grid) -> tuple[list[str], list[str], list[str], list[str]]:
    """How an element at `i`, in lane `l`, goes into results: what stands before the loop, in it, and behind it."""
    if program.reduce:
        kind, value = program.reduce
        reduction = REDUCTIONS[kind]
        met = reduction.meet.c.format("a", reduction.c)
        take = [f"const C v = {name_of(value)};", "const double a = lane[l];", f"lane[l] = {met};"]
        return [], take, [], [*filter(None, [reduction.meet.pragma])]
    before: list[str] = []
    take, after = [], []
    for j, (kind, value, column) in enumerate(program.along):
        along, spans = ALONG[kind], grid.spans[column]
        at = f"a{j}[{_place(spans, range(grid.rank - 1))}]"
        if spans[-1]:  # each element has a result of its own along this axis
            before.append(f"double* const o{j} = &{at};")
            met = along.meet.format(f"o{j}[i]", along.c)
            take.append(f"{{ const C v = {name_of(value)}; o{j}[i] = {met}; }}")
        else:
            before.append(f"double l{j}[{LANES}]; for (int l = 0; l < {LANES}; ++l) l{j}[l] = {along.start};")
            met = along.meet.format(f"l{j}[l]", along.c)
            take.append(f"{{ const C v = {name_of(value)}; l{j}[l] = {met}; }}")
            after.append(f"for (int l = 0; l < {LANES}; ++l) {at} = {along.meet.format(at, f'l{j}[l]')};")
    return before, take, after, [*dict.fromkeys(filter(None, (ALONG[kind].pragma for kind, _, _ in program.along)))]
