"""A program printed as C: one loop over elements, compiled for this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from gradchain.core.along import ALONG
from gradchain.core.operations import OPERATIONS
from gradchain.engine.executors.base import name_of
from gradchain.engine.executors.print_draws import DRAWN, c_fill, c_helpers, c_keys
from gradchain.engine.operations import BOOLEAN, REDUCTIONS, TYPES
from gradchain.engine.planning.lower import Program

CHEAP = frozenset(("add", "sub", "mul", "lerp"))
LANES = 16
BLOCK = DRAWN  # elements between two requests for memory ahead
AHEAD = 2048  # bytes from where a kernel is to what it asks for
LINE = 64  # bytes that come at once
ROWS = 16  # rows ahead of the one a kernel is at, where they lie anywhere

# Intel's hardware loses some of a dozen streams, and a kernel that asks takes 0.8 of the time. AMD's follows them all:
# a kernel that asks takes 1.05 to 1.2 of the time, so none does where gcc builds for a Zen. Rows that lie anywhere no
# hardware could guess: they are asked for on both.
_ZEN = """\
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
#define ZEN 1
#define ASK(place, written)
#else
#define ZEN 0
#define ASK(place, written) __builtin_prefetch(place, written)
#endif"""
# A Zen that only moves memory does so in 0.88 of the time by vectors of half the length (plain SGD; 0.95 with
# momentum), where with more arithmetic they take 1.01 to 1.45 of it. For Intel's gcc chooses that length by itself.
_NARROW = """\
#if ZEN && defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=256")
#endif"""
_PRELUDE = """\
#include <stdint.h>
#include <math.h>
typedef float f32;
typedef double f64;
typedef uint16_t bf16;
typedef _Float16 f16;
static inline f32 from_f32(f32 v) { return v; }
static inline f64 from_f64(f64 v) { return v; }
static inline f32 from_f16(f16 v) { return (f32)v; }
static inline f32 from_bf16(bf16 v) { union { uint32_t i; f32 f; } u; u.i = (uint32_t)v << 16; return u.f; }
static inline f32 to_f32(C v) { return (f32)v; }
static inline f64 to_f64(C v) { return (f64)v; }
static inline f16 to_f16(C v) { return (f16)(f32)v; }
static inline bf16 to_bf16(C v) {
  union { uint32_t i; f32 f; } u; u.f = (f32)v;
  uint32_t rounded = (u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16;
  return (bf16)(v != v ? 0x7fc0u : rounded);
}
"""


def source(program: Program, dtypes: Sequence[torch.dtype], rows: bool = False) -> str:
    """The C of a program whose columns have these dtypes.

    The kernel is called as `run(items, row, begin, end, columns, scalars, entries, out)`: an item is a stretch of one
    parameter, and `out` has one number per item for a reduction. Where items are `rows`, none follows on another.
    """
    written = {column for column, _ in program.stores}
    places = _rows_ahead(program, dtypes) if rows else []
    places += [
        f"    {pointer(dtype, i in written)} restrict p{i} = ({pointer(dtype, i in written)})columns[{i}][r] + from;"
        for i, dtype in enumerate(dtypes)
    ]
    body = _reduction(program, dtypes) if program.reduce else _loop(program, dtypes)
    return "\n".join([*head(program, dtypes), *places, *body, "  }", "}", ""])


def head(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    """The lines of a kernel up to where it begins with an item, and has its numbers."""
    wide = not dtypes or torch.float64 in dtypes  # a program of numbers alone is computed as the host would
    lines = [
        _ZEN,
        *([_NARROW] if _only_moves(program, dtypes) else []),
        "#define C " + ("double" if wide else "float"),
        "#define F(name) name" + ("" if wide else "##f"),
        "#define zero ((C)0)",
        _PRELUDE + "\n".join(_helpers(program)),
        "void run(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,",
        "         const int64_t* const* columns, const double* scalars, const double* entries, double* out) {",
        *(f"  const C s{i} = (C)scalars[{i}];" for i in range(len(program.scalars))),
        "  for (int64_t k = 0; k < items; ++k) {",
        "    const int64_t r = row[k], from = begin[k], n = end[k] - begin[k];",
        *(f"    const C e{i} = (C)entries[r * {len(program.entries)} + {i}];" for i in range(len(program.entries))),
    ]
    return [*lines, *(f"    {c_keys(draw, i, len(program.entries))}" for i, draw in enumerate(program.draws))]


def _only_moves(program: Program, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether a kernel's time is that of memory alone: it has few columns and few operations, and none that is dear."""
    operations = [op for op, _ in program.instructions]
    plain = program.reduce is None and program.grid is None
    return plain and len(dtypes) <= 3 and len(operations) <= 5 and CHEAP.issuperset(operations)


def pointer(dtype: torch.dtype, written: bool) -> str:
    """The type of what points to elements of a column."""
    return f"{TYPES[dtype].c}*" if written else f"const {TYPES[dtype].c}*"


def _helpers(program: Program) -> list[str]:
    """The functions that the program's operations call, each once."""
    called = [OPERATIONS[op].helper for op, _ in program.instructions]
    called += [REDUCTIONS[program.reduce[0]].meet.helper] if program.reduce else []
    called += [ALONG[kind].helper for kind, _, _ in program.along]
    return [helper for helper in dict.fromkeys(called) if helper] + c_helpers(program.draws)


def _drawn(program: Program, begin: str) -> list[str]:
    """The lines that draw the next elements, before a loop goes over them."""
    return [line for i, draw in enumerate(program.draws) for line in c_fill(draw, i, begin)]


def loaded(program: Program, dtypes: Sequence[torch.dtype], columns: Iterable[int], at: str) -> list[str]:
    """The lines that read an element of those of the columns that are read."""
    return [f"const C x{i} = from_{TYPES[dtypes[i]].c}(p{i}[{at}]);" for i in sorted(program.loads() & {*columns})]


def computed(program: Program) -> list[str]:
    """The lines that compute every instruction of what was read."""
    lines = []
    for i, (op, operands) in enumerate(program.instructions):
        kind = "int" if op in BOOLEAN else "C"
        lines.append(f"const {kind} v{i} = {OPERATIONS[op].c.format(*map(name_of, operands))};")
    return lines


def _element(program: Program, dtypes: Sequence[torch.dtype], at: str, begin: str = "j") -> list[str]:
    """The lines that compute every instruction for one element, of those drawn for from `begin` on."""
    drawn = [f"const C r{i} = (C)q{i}[{at} - {begin}];" for i in range(len(program.draws))]
    return [*loaded(program, dtypes, range(len(dtypes)), at), *drawn, *computed(program)]


def _loop(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    stores = [f"p{c}[i] = to_{TYPES[dtypes[c]].c}({name_of(value)});" for c, value in program.stores]
    lines = [*_element(program, dtypes, "i"), *stores]
    return [
        f"    for (int64_t j = 0; j < n; j += {BLOCK}) {{",
        f"      const int64_t m = n - j < {BLOCK} ? n : j + {BLOCK};",
        *(f"      {line}" for line in ahead(program, dtypes, "j", BLOCK)),
        *(f"      {line}" for line in _drawn(program, "j")),
        # gcc does not believe `restrict` in a block: from six columns on it would give up checking and make no vectors
        "#pragma GCC ivdep",
        "      for (int64_t i = j; i < m; ++i) {",
        *(f"        {line}" for line in lines),
        "      }",
        "    }",
    ]


def ahead(
    program: Program, dtypes: Sequence[torch.dtype], at: str, many: int, columns: Iterable[int] | None = None
) -> list[str]:
    """The lines that ask for the memory of every column that comes some time after so many elements, if any does.

    Hardware fetches ahead a few streams by itself, and loses one where it crosses a page: an update has up to a dozen.
    """
    written = {column for column, _ in program.stores}
    read = sorted((program.loads() | written) & {*(range(len(dtypes)) if columns is None else columns)})
    if not read:
        return []
    calls = [
        f"  ASK(p{i} + {at} + {(AHEAD + past) // dtypes[i].itemsize}, {int(i in written)});"
        for i in read
        for past in range(0, many * dtypes[i].itemsize, LINE)
    ]
    farthest = AHEAD // min(dtypes[i].itemsize for i in read) + many
    return [f"if (n - {at} >= {farthest}) {{", *calls, "}"]


def _rows_ahead(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    """The lines that ask for the memory of a row some rows ahead, which no hardware could guess: its beginning."""
    written = {column for column, _ in program.stores}
    lines = []
    for i in sorted(program.loads() | written):
        most, step = AHEAD // dtypes[i].itemsize, LINE // dtypes[i].itemsize
        there = f"({TYPES[dtypes[i]].c}*)columns[{i}][row[k + {ROWS}]]"
        lines.append(f"      for (int64_t j = 0; j < n && j < {most}; j += {step})")
        lines.append(f"        __builtin_prefetch({there} + j, {int(i in written)});")
    return [f"    if (k + {ROWS} < items) {{", *lines, "    }"] if lines else []


def _reduction(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    assert program.reduce is not None
    kind, value = program.reduce
    reduction = REDUCTIONS[kind]
    met = reduction.meet.c
    take, meet = met.format("a", reduction.c), met.format("a", "b")
    step = [*_element(program, dtypes, "i + l"), f"const C v = {name_of(value)};", "const double a = lane[l];"]
    tail = [*_element(program, dtypes, "i", "rest"), f"const C v = {name_of(value)};", "const double a = lane[0];"]
    return [
        f"    double lane[{LANES}] = {{0}};",
        "    int64_t i = 0;",
        f"    for (int64_t j = 0; j + {LANES} <= n; j += {BLOCK}) {{",
        f"      const int64_t m = n - j < {BLOCK} ? n : j + {BLOCK};",
        *(f"      {line}" for line in (*ahead(program, dtypes, "j", BLOCK), *_drawn(program, "j"))),
        f"      for (; i + {LANES} <= m; i += {LANES})",
        *filter(None, [reduction.meet.pragma]),
        f"        for (int l = 0; l < {LANES}; ++l) {{",
        *(f"          {line}" for line in [*step, f"lane[l] = {take};"]),
        "        }",
        "    }",
        *(f"    {line}" for line in (["const int64_t rest = i;"] if program.draws else [])),
        *(f"    {line}" for line in _drawn(program, "rest")),
        "    for (; i < n; ++i) {",
        *(f"      {line}" for line in [*tail, f"lane[0] = {take};"]),
        "    }",
        f"    for (int l = 1; l < {LANES}; ++l) {{ const double a = lane[0], b = lane[l]; lane[0] = {meet}; }}",
        "    out[k] = lane[0];",
    ]
