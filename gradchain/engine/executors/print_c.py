"""A program printed as C: one loop over elements, compiled for this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradchain.engine.operations import BOOLEAN, TYPES
from gradchain.engine.planning.lower import Program, Value

LANES = 16

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

# C of each elementwise operation. NaNs go through maximum and minimum as through torch's.
EXPRESSIONS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "pow": "POW({0}, {1})",
    "lerp": "LERP({0}, {1}, {2})",
    "maximum": "MAXIMUM({0}, {1})",
    "minimum": "MINIMUM({0}, {1})",
    "sqrt": "SQRT({0})",
    "rsqrt": "((C)1 / SQRT({0}))",
    "sign": "((C)(({0} > 0) - ({0} < 0)))",
    "abs": "ABS({0})",
    "where": "({0} ? {1} : {2})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "not": "(!{0})",
    "number": "((C){0})",
    "isfinite": "(({0} - {0}) == 0)",
    "isnan": "({0} != {0})",
}

_HELPERS = """\
static inline C MAXIMUM(C a, C b) { C r = a <= b ? b : a; return b != b ? b : r; }
static inline C MINIMUM(C a, C b) { C r = a >= b ? b : a; return b != b ? b : r; }
static inline double LARGER(double a, double b) {
  union { double f; int64_t i; } x, y; x.f = a; y.f = b;
  return x.i > y.i ? a : b;
}
static inline C LERP(C a, C b, C w) { return ABS(w) < (C)0.5 ? a + w * (b - a) : b - (b - a) * ((C)1 - w); }
"""

# Magnitudes compare as their bits do, and a NaN is larger than all: one comparison, which gcc makes vector code of.
# How a reduction takes in one element, in float64, and how partial results meet.
_REDUCTIONS = {
    "sum": ("a + (double)v", "a + b"),
    "sum1": ("a + fabs((double)v)", "a + b"),
    "sum2": ("a + (double)v * (double)v", "a + b"),
    "max": ("LARGER(a, fabs((double)v))", "LARGER(a, b)"),
    "bad": ("a + (double)!((v - v) == 0)", "a + b"),
}


def source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The C of a program whose columns have these dtypes.

    The kernel is called as `run(items, row, begin, end, columns, scalars, entries, out)`: an item is a stretch of one
    parameter, and `out` has one number per item for a reduction.
    """
    wide = not dtypes or torch.float64 in dtypes  # a program of numbers alone is computed as the host would
    head = ["#define C " + ("double" if wide else "float")]
    head += [f"#define {name} {call}{'' if wide else 'f'}" for name, call in (("SQRT", "sqrt"), ("POW", "pow"))]
    head += [f"#define ABS {'fabs' if wide else 'fabsf'}", _PRELUDE + _HELPERS]
    head += [
        "void run(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,",
        "         const int64_t* const* columns, const double* scalars, const double* entries, double* out) {",
        *(f"  const C s{i} = (C)scalars[{i}];" for i in range(len(program.scalars))),
        "  for (int64_t k = 0; k < items; ++k) {",
        "    const int64_t r = row[k], from = begin[k], n = end[k] - begin[k];",
        *(f"    const C e{i} = (C)entries[r * {len(program.entries)} + {i}];" for i in range(len(program.entries))),
    ]
    written = {column for column, _ in program.stores}
    for i, dtype in enumerate(dtypes):
        kind = TYPES[dtype] if i in written else f"const {TYPES[dtype]}"
        head.append(f"    {kind}* restrict p{i} = ({kind}*)columns[{i}][r] + from;")
    body = _reduction(program, dtypes) if program.reduce else _loop(program, dtypes)
    return "\n".join([*head, *body, "  }", "}", ""])


def _element(program: Program, dtypes: Sequence[torch.dtype], at: str) -> list[str]:
    """The lines that compute every instruction for one element."""
    lines = [f"const C x{i} = from_{TYPES[dtypes[i]]}(p{i}[{at}]);" for i in sorted(program.loads())]
    for i, (op, operands) in enumerate(program.instructions):
        kind = "int" if op in BOOLEAN else "C"
        lines.append(f"const {kind} v{i} = {EXPRESSIONS[op].format(*map(_name, operands))};")
    return lines


def _loop(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    stores = [f"p{c}[i] = to_{TYPES[dtypes[c]]}({_name(value)});" for c, value in program.stores]
    lines = [*_element(program, dtypes, "i"), *stores]
    # gcc does not believe `restrict` in a block: from six columns on it would give up checking and make no vector code
    head = ["#pragma GCC ivdep", "    for (int64_t i = 0; i < n; ++i) {"]
    return [*head, *(f"      {line}" for line in lines), "    }"]


def _reduction(program: Program, dtypes: Sequence[torch.dtype]) -> list[str]:
    assert program.reduce is not None
    kind, value = program.reduce
    take, meet = _REDUCTIONS[kind]
    step = [*_element(program, dtypes, "i + l"), f"const C v = {_name(value)};", "const double a = lane[l];"]
    tail = [*_element(program, dtypes, "i"), f"const C v = {_name(value)};", "const double a = lane[0];"]
    return [
        f"    double lane[{LANES}] = {{0}};",
        "    int64_t i = 0;",
        f"    for (; i + {LANES} <= n; i += {LANES})",
        *(["#pragma GCC unroll 1"] if kind == "max" else []),  # gcc makes no vectors of choices once they are unrolled
        f"      for (int l = 0; l < {LANES}; ++l) {{",
        *(f"        {line}" for line in [*step, f"lane[l] = {take};"]),
        "      }",
        "    for (; i < n; ++i) {",
        *(f"      {line}" for line in [*tail, f"lane[0] = {take};"]),
        "    }",
        f"    for (int l = 1; l < {LANES}; ++l) {{ const double a = lane[0], b = lane[l]; lane[0] = {meet}; }}",
        "    out[k] = lane[0];",
    ]


def _name(value: Value) -> str:
    kind = value[0]
    if kind == "zero":
        return "((C)0)"
    return {"load": "x", "scalar": "s", "entry": "e", "value": "v"}[kind] + str(value[1])
