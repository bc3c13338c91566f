"""Programs of one operation or one reduction, and what torch gives: an executor's cases, by which each is held.

The reference is torch in the compute dtype, float32 or float64 where a column is. One operation, and every store, must
give torch's very bits, but for ULPS: torch's own sqrt is off by one where it calls MKL, every library has another pow,
and torch's lerp is fused. A module of tests calls `use(executor)` and imports the tests from here.
"""

from __future__ import annotations

import math

import pytest
import torch

from gradchain.core.eager import EagerTensors
from gradchain.core.operations import OPERATIONS
from gradchain.core.tensors import Tensors
from gradchain.engine.executors.base import Executor
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column

BLOCK = 1024  # Triton's; the sizes below have full items and ragged ends
SIZES = [5, 0, 1, BLOCK, 2 * BLOCK + 300]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 0.5, 2.0]
ENTRIES = [0.5, -1.5, 0.0, 3.0, math.nan]
SCALAR = 0.7
ULPS = {"sqrt": 1.0, "rsqrt": 1.0, "pow": 8.0, "lerp": 8.0}
ULPS |= dict.fromkeys(("exp", "expm1", "log", "log1p", "tanh", "erf", "atan2"), 2.0)

A, B, OUT = ("load", 0), ("load", 1), 2


RULES = {name: o.truth for name, o in OPERATIONS.items()} | {"lerp": torch.lerp}
"""What an operation is to the executor that is used; the table's lerp has another formula for weights in tensors."""

_used: list[Executor] = []


def use(executor: Executor) -> None:
    """Run the cases by this executor from now on. A process holds one module of cases' tests at a time."""
    _used[:] = [executor]


def executor() -> Executor:
    """That which is used."""
    return _used[0]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def drawn(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Rows of random numbers and every pair of special ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, generator=generator, dtype=torch.float64) for n in SIZES]
    many = torch.tensor(SPECIAL, dtype=torch.float64)
    pairs = many.repeat(len(SPECIAL)) if seed % 2 else many.repeat_interleave(len(SPECIAL))
    rows[3][: len(pairs)] = pairs
    rows[4][-len(pairs) :] = pairs
    return [row.to(dtype) for row in rows]


def columns(*rows: list[torch.Tensor]) -> list[Column]:
    return [Column(row) for row in rows]


def run(program: Program, rows, scalars=(), entries=()):
    """Run a program over columns given as rows of tensors, in place."""
    dtypes = [row[0].dtype for row in rows]
    assert executor().legal(program, dtypes) is None
    return executor().ready(program, dtypes, [t.numel() for t in rows[0]]).run(columns(*rows), scalars, entries)


def equal(found: list[torch.Tensor], want: list[torch.Tensor], ulps: float = 0.0, size: float = 0.0) -> None:
    """Fail where a value is off by more than so many units in the last place, of itself or of a number of that size."""
    for i, (x, y) in enumerate(zip(found, want, strict=True)):
        close = ulps * torch.finfo(y.dtype).eps
        wrong = ~torch.isclose(x, y, rtol=close, atol=close * size, equal_nan=True)
        assert not wrong.any(), f"row {i}: {x[wrong][:5]} is not {y[wrong][:5]}"


def program_of(op: str, operands: tuple[tuple, ...]) -> Program:
    """The operation alone; a truth value chooses between 1 and 0, masks are made of comparisons."""
    instructions: list = []
    takes = OPERATIONS[op].takes
    if "m" in takes:
        instructions = [("gt", (A, B)), ("lt", (A, ("scalar", 0)))]
        masks = iter([("value", 0), ("value", 1)])
        operands = tuple(next(masks) if kind == "m" else o for kind, o in zip(takes, operands, strict=True))
    instructions.append((op, tuple(operands)))
    last = ("value", len(instructions) - 1)
    if OPERATIONS[op].mask:
        instructions.append(("where", (last, A, B)))
        last = ("value", len(instructions) - 1)
    return Program([0, 1, 2], [0], [0], instructions, [(OUT, last)])


def by_torch(program: Program, rows: list[list[torch.Tensor]], compute: torch.dtype) -> list[torch.Tensor]:
    """What the program's instructions give, by the table of the reference, row by row."""
    out = []
    for r in range(len(SIZES)):
        values: list[torch.Tensor] = []

        def read(operand, r=r, values=values):
            kind, *at = operand
            if kind == "load":
                return rows[at[0]][r].to(compute)
            if kind == "value":
                return values[at[0]]
            number = 0.0 if kind == "zero" else SCALAR if kind == "scalar" else ENTRIES[r]
            return torch.full((SIZES[r],), number, dtype=torch.float64).to(compute)

        for op, operands in program.instructions:
            values.append(RULES[op](*map(read, operands), *([compute] if OPERATIONS[op].typed else [])))
        out.append(read(program.stores[0][1]).to(rows[OUT][r].dtype))
    return out


KINDS = {"tensors": (A, B), "scalar": (A, ("scalar", 0)), "of a scalar": (("scalar", 0), A), "entry": (A, ("entry", 0))}


CASES = [
    pytest.param(op, kind, dtype, id=f"{op}-{kind}-{str(dtype)[6:]}")
    for op in sorted(OPERATIONS)
    for kind in KINDS
    for dtype in DTYPES
    if kind == "tensors" or ("nn" in OPERATIONS[op].takes and dtype in (torch.float64, torch.float32))
]


@pytest.mark.parametrize(("op", "kind", "dtype"), CASES)
def test_an_operation_gives_what_torch_gives(op, kind, dtype):
    operands = (B, *KINDS[kind])[-len(OPERATIONS[op].takes) :] if len(OPERATIONS[op].takes) > 1 else (A,)
    if op == "lerp":  # lerp(a, b, weight): the weight is the number
        operands = (A, B, KINDS[kind][1] if kind != "of a scalar" else ("scalar", 0))
    program = program_of(op, operands)
    rows = [drawn(dtype, 0), drawn(dtype, 1), [torch.zeros(n, dtype=dtype) for n in SIZES]]
    want = by_torch(program, rows, wide(dtype))
    run(program, rows, [SCALAR], ENTRIES)
    equal(rows[OUT], want, ulps=ULPS.get(op, 0.0), size=4.0 if op == "lerp" else 0.0)


@pytest.mark.parametrize("dtypes", [DTYPES, DTYPES[::-1], [*DTYPES[1:], DTYPES[1]]], ids=str)
def test_columns_of_several_dtypes_compute_in_the_widest(dtypes):
    rows = [drawn(d, i) for i, d in enumerate(dtypes)]
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    instructions = [("mul", (A, B)), ("add", (("value", 0), ("load", 3))), ("mul", (("value", 1), ("scalar", 0)))]
    program = Program([0, 1, 2, 3], [0], [], instructions, [(OUT, ("value", 2)), (3, ("value", 1))])
    summed = [a.to(compute) * b.to(compute) + c.to(compute) for a, b, c in zip(rows[0], rows[1], rows[3], strict=True)]
    want = [(torch.tensor(SCALAR, dtype=torch.float64).to(compute) * s).to(dtypes[2]) for s in summed]
    run(program, rows, [SCALAR])
    equal(rows[OUT], want)
    equal(rows[3], [s.to(dtypes[3]) for s in summed])


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_store_rounds_as_torch_does(dtype, compute):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).to(compute)
    bits = bits[bits.isfinite()]
    halfway = (bits + torch.nextafter(bits.to(torch.float32), torch.tensor(torch.inf)).to(compute)) / 2
    tiny = torch.tensor([1e-40, -1e-40, 1e-8, 3e38, -3e38, 65519.0, 65520.0, math.nan, math.inf], dtype=compute)
    source = torch.cat([bits, bits * 1.001, bits * (1 + 2.0**-9), halfway, tiny])
    out = torch.zeros(len(source), dtype=dtype)
    run(Program([0, 1], [], [], [], [(1, A)]), [[source], [out]])
    assert torch.allclose(out.double(), source.to(dtype).double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", sorted(REDUCTIONS))
def test_a_reduction_gives_one_number_per_row(kind, dtype):
    rows = [torch.randn(n, dtype=torch.float64).to(dtype) for n in SIZES]
    wide_rows = [r.double() for r in rows]
    want = {
        "sum": [float(r.sum()) for r in wide_rows],
        "sum1": [float(r.abs().sum()) for r in wide_rows],
        "sum2": [float((r * r).sum()) for r in wide_rows],
        "max": [float(r.abs().max()) if r.numel() else 0.0 for r in wide_rows],
        "bad": [0.0] * len(rows),
    }
    found = run(Program([0], reduce=(kind, A)), [rows])
    expected = want[kind] if kind in want else [REDUCTIONS[kind].truth(r).item() for r in wide_rows]
    size = [float(r.abs().sum()) for r in wide_rows]  # a sum is exact to rounding of the magnitudes in it
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(size))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 299])
@pytest.mark.parametrize("kind", sorted(REDUCTIONS))
def test_what_is_not_finite_comes_through_a_reduction(kind, at, poison):
    row = torch.ones(2 * BLOCK + 300)
    row[at] = poison
    (found,) = run(Program([0], reduce=(kind, A)), [[row]])
    assert found == 1.0 if kind == "bad" else (math.isnan(found) if math.isnan(poison) else found == math.inf)


def test_squares_do_not_overflow():
    (found,) = run(Program([0], reduce=("sum2", A)), [[torch.full((3,), 3e25)]])
    assert found == pytest.approx(3 * float(torch.tensor(3e25)) ** 2)


def test_a_norm_of_an_expression_equals_the_reference():
    rows = [torch.randn(n, dtype=torch.float64) for n in SIZES]
    tensors = Tensors.of({f"w{i}": row for i, row in enumerate(rows)})
    assert isinstance(tensors, EagerTensors)
    want = list((0.5 * tensors - tensors.abs()).norms().values())
    instructions = [("mul", (A, ("scalar", 0))), ("abs", (A,)), ("sub", (("value", 0), ("value", 1)))]
    found = run(Program([0], [0], [], instructions, reduce=("sum2", ("value", 2))), [rows], [0.5])
    assert [v**0.5 for v in found] == pytest.approx(want, rel=1e-12)


def test_masks_made_numbers_go_into_arithmetic_and_reductions():
    rows = [drawn(torch.float32, 0), drawn(torch.float32, 1)]
    want = [float((a > b).sum()) for a, b in zip(*rows, strict=True)]
    compare = [("gt", (A, B)), ("number", (("value", 0),))]
    assert run(Program([0, 1], [], [], compare, reduce=("sum", ("value", 1))), rows) == want
    program = Program([0, 1], [], [], [*compare, ("mul", (("value", 1), B))], [(1, ("value", 2))])
    want = [(a > b).to(b.dtype) * b for a, b in zip(*rows, strict=True)]
    run(program, rows)
    equal(rows[1], want)


def test_masks_are_joined():
    rows = [drawn(torch.float32, 0), drawn(torch.float32, 1), [torch.zeros(n) for n in SIZES]]
    joined = [
        ("gt", (A, B)),
        ("lt", (A, ("scalar", 0))),
        ("not", (("value", 0),)),
        ("and", (("value", 2), ("value", 1))),
        ("or", (("value", 3), ("value", 0))),
        ("where", (("value", 4), A, B)),
    ]
    program = Program([0, 1, 2], [0], [], joined, [(OUT, ("value", 5))])
    want = by_torch(program, rows, torch.float32)
    run(program, rows, [SCALAR])
    equal(rows[OUT], want)


def test_a_constant_needs_no_column():
    constant = ("maximum", (("zero",), ("scalar", 0)))
    out = [torch.ones(n) for n in SIZES]
    run(Program([0], [0], [], [constant], [(0, ("value", 0))]), [out], [0.656])
    assert all(bool((row == 0.656).all()) for row in out)
    program = Program([], [0], [], [constant], reduce=("sum", ("value", 0)))
    found = _used[0].ready(program, [], SIZES).run([], [0.656], [])
    assert found == pytest.approx([n * 0.656 for n in SIZES], rel=1e-14)
