"""Triton kernels compiled for a GPU that need not be there: by test_triton.py in a child, without the interpreter."""

from __future__ import annotations

import re

import pytest
import torch
import triton
from operation_cases import A, B
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from whole_program import every_number, everything

from gradchain.core.along import ALONG
from gradchain.core.random import KINDS
from gradchain.engine.executors.print_triton import fold, source
from gradchain.engine.executors.print_triton_grid import grid_source
from gradchain.engine.executors.triton import BLOCK, OPTIONS, compiled
from gradchain.engine.operations import REDUCTIONS
from gradchain.engine.planning.grid import Grid
from gradchain.engine.planning.lower import Drawn, Program

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def built(text: str, name: str, pointers: dict[str, str], constants: dict[str, object]) -> str:
    """The PTX of a kernel for an H100."""
    kernel = compiled(text, name)
    at = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    given = ASTSource(fn=kernel, signature={**pointers, **dict.fromkeys(constants, "constexpr")}, constexprs=at)
    asm = triton.compile(given, target=GPUTarget("cuda", 90, 32), options=OPTIONS).asm
    return str(asm["ptx"])


def run(program: Program, dtypes, aligned: bool = True, on_device=()) -> str:
    pointers = {"table": "*i64", "items": "*i64", "rows": "i32", "out": "*fp64"}
    printed = source if program.grid is None else grid_source
    return built(printed(program, dtypes, on_device), "run", pointers, {"BLOCK": BLOCK, "ALIGNED": aligned})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operation_compiles(dtype):
    for numbers in ((), (("scalar", 0), ("entry", 0))):
        ptx = run(everything(), [dtype, dtype], on_device=numbers)
        assert ".rn.f64" in ptx if dtype is torch.float64 else "div.rn.f32" in ptx and "sqrt.rn.f32" in ptx


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_on_the_device_are_computed_in_float64(dtype):
    ptx = run(every_number(), [dtype], on_device=(("scalar", 1), ("entry", 0)))
    assert "sqrt.rn.f64" in ptx and "div.rn.f64" in ptx


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_operation_is_fused_with_another(dtype):
    operations = [("mul", (A, ("scalar", 0))), ("add", (("value", 0), B)), ("lerp", (("value", 1), A, ("scalar", 0)))]
    ptx = run(Program([0, 1], [0], [], operations, [(1, ("value", 2))]), [dtype, dtype])
    assert "fma" not in ptx


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_aligned_rows_are_read_and_written_16_bytes_at_a_time(dtype):
    program = Program([0, 1], [0], [], [("mul", (A, ("scalar", 0))), ("add", (("value", 0), B))], [(1, ("value", 1))])
    ptx = run(program, [dtype, dtype])
    wide = set(re.findall(r"(ld|st)\.global\.v[24]\.b(?:32|64)", ptx))
    assert wide == {"ld", "st"}
    assert re.search(r"and\.b64\s+\S+ \S+ 15;", ptx), "each item looks where its own rows begin"
    assert not re.search(r"\.global\.v\d", run(program, [dtype, dtype], aligned=False))


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_every_reduction_compiles(kind):
    assert "st.global" in run(Program([0], reduce=(kind, A)), [torch.bfloat16])


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_the_fold_compiles(kind):
    assert built(fold(kind), "fold", {"partial": "*fp64", "first": "*i64", "out": "*fp64"}, {"BLOCK": BLOCK})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_random_numbers_compile_and_every_operation_rounds(kind, wide):
    cells = (("entry", 0), ("entry", 1), ("scalar", 0), ("scalar", 1))
    draws = [Drawn(kind, 8 * i + KINDS[kind], wide, cells) for i in range(2)]
    program = Program([0], [0, 1], [0, 1], [("maximum", (("draw", 0), ("draw", 1)))], [(0, ("value", 0))], draws=draws)
    for dtype in (torch.float64, torch.bfloat16):
        ptx = run(program, [dtype], on_device=(("scalar", 0),))
        assert "fma" not in ptx and "div.full" not in ptx and "div.approx" not in ptx
        assert kind != "normal" or ("div.rn.f64" if wide else "div.rn.f32") in ptx


FULL, ROWS, COLUMNS = (True, True), (True, False), (False, True)


@pytest.mark.parametrize(("dtype", "spans"), [*zip(DTYPES[1:], (ROWS, COLUMNS, ROWS), strict=True)], ids=str)
def test_programs_over_axes_compile(dtype, spans):
    program = everything()
    program.grid = Grid((spans, FULL), ((40, 30),))
    assert ("div.s64" if spans is ROWS else "rem.s64") in run(program, [dtype, dtype], on_device=(("scalar", 0),))
    assert "st.global" in run(Program([0, 1], reduce=("sum2", B), grid=program.grid), [dtype, dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ALONG)
def test_results_along_axes_compile(kind, dtype):
    """Two of one pass, along rows and along columns, of a product with random numbers; no product is fused to a sum."""
    cells = (("entry", 0), ("entry", 1), ("scalar", 0), ("scalar", 1))
    drawn = Drawn("uniform", KINDS["uniform"], False, cells)
    grid = Grid((FULL, ROWS, COLUMNS), ((40, 30),))
    along = [(kind, ("value", 0), 1), (kind, A, 2)]
    program = Program([0, 1, 2], [0, 1], [0, 1], [("mul", (A, ("draw", 0)))], along=along, grid=grid, draws=[drawn])
    ptx = run(program, [dtype] * 3)
    assert "fma" not in ptx and ptx.count("st.global") >= 2
    assert kind != "norm" or "sqrt.rn.f64" in ptx


def test_a_power_keeps_what_is_denormal():
    ptx = run(Program([0, 1], [0], [], [("pow", (A, B))], [(0, ("value", 0))]), [torch.float32, torch.float32])
    # the library itself writes two instructions so, whatever is asked of it
    assert set(re.findall(r"\w[\w.]*\.ftz[\w.]*", ptx)) <= {"rcp.approx.ftz.f32", "ex2.approx.ftz.f32"}
