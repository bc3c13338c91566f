"""The elementary functions and the steps: how far each executor is from the exact value, over numbers of every kind.

The exact value in float32 is torch's in float64; in float64 nobody has it, so there it is torch's own that is compared
with. Bounds are in units in the last place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import numpy
import pytest
import torch
from operation_cases import A, B

from gradchain.core.operations import OPERATIONS
from gradchain.engine.executors.base import Executor
from gradchain.engine.executors.blocks import Blocks
from gradchain.engine.executors.compiled import Compiled
from gradchain.engine.executors.native import Native
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column

OUT = 2
EXECUTORS: dict[str, Callable[[], Executor]] = {"native": Native, "blocks": Blocks, "compiled": lambda: Compiled("cpu")}
# in float32, from the exact value: ours; torch's over lists; Inductor's
NEAR = {
    "exp": (0.51, 1.0, 1.0),
    "expm1": (0.52, 1.0, 3.0),
    "tanh": (0.52, 1.0, 1.01),
    "log": (0.51, 1.0, 1.0),
    "log1p": (0.51, 1.0, 1.0),
    "atan2": (0.51, 1.0, 1.0),
    "erf": (1.0, 1.0, 1.0),
    "pow": (0.53, 1.0, 1.0),
}
# from torch's own: in float64 each is within one of the exact value, but for Inductor's expm1
NEAR_TORCH = {"expm1-compiled": 4.0}
STEPS = ("round", "floor", "remainder")
TINY = [1e-45, 1e-42, 1.1754942e-38, 1.1754944e-38, 1e-30, 1e-10, 2.9802322e-8, 5.9604645e-8, 1e-4]
LARGE = [8388607.5, 8388608.5, 16777216.0, 2.0**31, 1e10, 1e30, 3.4028235e38, math.inf]
# where ln 2 is added once, a half is rounded, a function overflows, vanishes, or turns to another formula
TURNS = [0.34657359, 0.34657362, 0.41421357, 0.70710677, 0.70710678, 1.4142135, 2.4142137, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
ENDS = [9.01, 17.3, 20.0, 40.0, 87.33654, 88.72283, 88.72284, 100.0, 103.27893, 103.97208, 104.0, 110.0, 150.0, 710.0]
HOSTILE = [s * v for v in (0.0, *TINY, *TURNS, *ENDS, *LARGE) for s in (1.0, -1.0)]
HOSTILE += [math.nan, math.nextafter(1, 0), math.nextafter(-1, 0), -0.99999994, 0.99999994, 1.0000001]


def given(dtype: torch.dtype, seed: int, lowest: int) -> torch.Tensor:
    """Every hostile number beside every other, and 10^5 of all magnitudes from 2^lowest on."""
    generator = torch.Generator().manual_seed(seed)
    many = torch.tensor(HOSTILE, dtype=torch.float64)
    pairs = many.repeat(len(many)) if seed % 2 else many.repeat_interleave(len(many))
    drawn = torch.randn(100_000, generator=generator, dtype=torch.float64)
    power = torch.randint(lowest, 8, (100_000,), generator=generator)
    return torch.cat([pairs, torch.ldexp(drawn, power)]).to(dtype)


def computed(op: str, executor: str, *given: torch.Tensor) -> torch.Tensor:
    """The operation by an executor; of what is given to it only the first, where it takes one."""
    if executor != "blocks" and shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("there is no compiler")
    rows = [[v.clone()] for v in (*given, torch.zeros_like(given[0]))]
    program = Program([0, 1, 2], [], [], [(op, (A, B)[: len(OPERATIONS[op].takes)])], [(OUT, ("value", 0))])
    dtypes = [v.dtype for v in (*given, given[0])]
    runner = EXECUTORS[executor]().ready(program, dtypes, [given[0].numel()])
    runner.run([Column(row) for row in rows], [], [])
    return rows[OUT][0]


def units(found: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """How far a finite number is from the float64 that it should be, in units in its last place. inf where NaN or inf
    is not where it should be."""
    nearest = want.to(found.dtype)
    same = (nearest == found) | (nearest.isnan() & found.isnan())
    above = torch.nextafter(nearest.abs(), torch.tensor(math.inf, dtype=found.dtype))
    unit = torch.where(above.isfinite(), above - nearest.abs(), nearest.abs() * torch.finfo(found.dtype).eps)
    gap = (found.double() - want).abs() / unit.double()
    gap = torch.where(found.isfinite() & nearest.isfinite(), gap, torch.where(same, 0.0, math.inf))
    return gap.nan_to_num(math.inf)


def by_executor(*ops: str) -> list:
    slow = [pytest.mark.slow]
    return [
        pytest.param(op, name, id=f"{op}-{name}", marks=slow if name == "compiled" else [])
        for op in ops
        for name in EXECUTORS
    ]


def worst(op: str, found: torch.Tensor, want: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[float, str]:
    gap = units(found, want)
    at = int(gap.argmax())
    return float(gap[at]), f"{op}({x[at]!r}, {y[at]!r}) = {found[at]!r}, not {want[at]!r}"


@pytest.mark.parametrize(("op", "executor"), by_executor(*NEAR))
def test_float32_is_so_near_to_the_exact_value(op, executor):
    x, y = given(torch.float32, 0, -40), given(torch.float32, 1, -40)
    exact = OPERATIONS[op].truth(*(v.double() for v in (x, y)[: len(OPERATIONS[op].takes)]))
    gap, told = worst(op, computed(op, executor, x, y), exact, x, y)
    assert gap <= NEAR[op][list(EXECUTORS).index(executor)], f"{gap:.3f}: {told}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "executor"), by_executor(*NEAR))
def test_each_is_near_to_torch(op, executor, dtype):
    x, y = given(dtype, 0, -40), given(dtype, 1, -40)
    own = OPERATIONS[op].truth(*(x, y)[: len(OPERATIONS[op].takes)])
    gap, told = worst(op, computed(op, executor, x, y), own.double(), x, y)
    assert gap <= NEAR_TORCH.get(f"{op}-{executor}", 2.0), f"{gap:.3f}: {told}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "executor"), by_executor(*STEPS))
def test_steps_have_the_very_bits(op, executor, dtype):
    x, y = given(dtype, 0, -4), given(dtype, 1, -4)
    found = computed(op, executor, x, y)
    if op == "remainder":  # torch's is NaN where a quotient is too large for its dtype; the kernels' is what it is
        within = torch.ones_like(x, dtype=torch.bool) if executor == "native" else (x / y).isfinite() | (x == 0)
        x, y, found = x[within], y[within], found[within]
        want = numpys_remainder(x, y)
    else:
        want = OPERATIONS[op].truth(x)
    right = ((found == want) & (found.signbit() == want.signbit())) | (found.isnan() & want.isnan())
    at = int((~right).nonzero()[0]) if not right.all() else 0
    assert right.all(), f"{int((~right).sum())}: {op}({x[at]!r}, {y[at]!r}) = {found[at]!r}, not {want[at]!r}"
    assert len(right) > 100_000


def numpys_remainder(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """By numpy's fmod, which is exact."""
    with numpy.errstate(all="ignore"):
        left = torch.from_numpy(numpy.fmod(x.numpy(), y.numpy()))
    return torch.where((left != 0) & ((y < 0) != (left < 0)), left + y, left)


@pytest.mark.parametrize("executor", ["native", "blocks"])
def test_zeros_keep_their_sign(executor):
    zeros = torch.tensor([0.0, -0.0])
    for op in ("expm1", "tanh", "log1p", "erf", "round", "floor"):
        assert computed(op, executor, zeros, zeros).signbit().tolist() == [False, True], op
    y, x = torch.tensor([0.0, -0.0, 0.0, -0.0]), torch.tensor([0.0, 0.0, -0.0, -0.0])
    torch.testing.assert_close(computed("atan2", executor, y, x), torch.tensor([0.0, -0.0, math.pi, -math.pi]))
    assert computed("atan2", executor, y, x).signbit().tolist() == [False, True, False, True]
    x = torch.tensor([0.0, -0.0]).repeat(6)
    y = torch.tensor([3.0, -3.0, 2.0, -2.0, 0.5, -0.5]).repeat_interleave(2)
    found, want = (
        computed("pow", executor, x, y),
        torch.tensor([0.0, -0.0, math.inf, -math.inf, *[0.0, 0.0, math.inf, math.inf] * 2]),
    )
    assert torch.equal(found, want) and torch.equal(found.signbit(), want.signbit())


def test_a_bound_is_seen_to_be_passed():
    """One unit too many in one number of 10^5 is told."""
    x = given(torch.float32, 0, -40)
    found = computed("tanh", "native", x, x)
    at = int(((x > 0.3) & (x < 0.4)).nonzero()[0])
    assert units(found, x.double().tanh()).max() <= NEAR["tanh"][0]
    found[at] = torch.nextafter(found[at], torch.tensor(1.0))
    assert units(found, x.double().tanh()).max() > NEAR["tanh"][0]
