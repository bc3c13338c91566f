"""Triton kernels run by its interpreter on the CPU: by test_triton.py in a child, where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

import math
import os
from functools import partial

import numpy
import operation_cases
import pytest
import test_shapes
import torch
from against_reference import compared
from device_cases import *  # noqa: F403  # its tests
from operation_cases import *  # noqa: F403  # its tests
from operation_cases import A, run
from random_chains import KINDS_OF_NUMBERS, Shapes, by_hand, probe, steps

import gradchain as gch
from gradchain.core.along import ALONG, reduced
from gradchain.core.random import KINDS
from gradchain.engine.executors.triton import Triton
from gradchain.engine.planning.grid import Grid
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column


@pytest.fixture(autouse=True)
def _in_the_interpreter():
    """The interpreter computes in numpy, which warns where a device does not."""
    operation_cases.use(Triton("cpu"))
    with numpy.errstate(all="ignore"):
        yield


def test_nothing_to_do_is_done():
    store, reduce, executor = Program([0], [], [], [], [(0, A)]), Program([0], reduce=("sum", A)), Triton("cpu")
    assert executor.ready(store, [torch.float32], []).run([Column([])], [], []) is None
    assert executor.ready(reduce, [torch.float32], []).run([Column([])], [], []) == []
    assert run(Program([0], reduce=("sum", A)), [[torch.zeros(0), torch.zeros(0)]]) == [0.0, 0.0]


def test_what_cannot_run_says_why():
    executor, plain = Triton("cpu"), Program([0], [], [], [("no_such", (A,))], [(0, ("value", 0))])
    assert executor.legal(plain, [torch.float32]) == "no Triton for the operation 'no_such'"
    assert executor.legal(Program([0]), [torch.complex64]) == "no Triton kernels for torch.complex64"
    assert Triton("mps").legal(Program([0]), [torch.float32]) == "no Triton kernels on mps"


CHAINS = [
    *[(seed, (torch.float64,)) for seed in range(200, 240)],
    *[(seed, (torch.float32,)) for seed in range(240, 250)],
    *[(seed, (torch.bfloat16,)) for seed in range(250, 256)],
    *[(seed, (torch.float16,)) for seed in range(256, 260)],
    *[(seed, (torch.float32, torch.bfloat16, torch.float16)) for seed in range(260, 264)],
]
if not os.environ.get("GRADCHAIN_LONG"):
    CHAINS = CHAINS[::4]  # of each dtype


@pytest.mark.parametrize(("seed", "dtypes"), CHAINS, ids=[str(seed) for seed, _ in CHAINS])
def test_a_random_chain_equals_the_reference(seed, dtypes):
    compared(seed, *dtypes, executor=Triton("cpu"), name="triton")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtypes", KINDS_OF_NUMBERS)
def test_random_numbers_are_the_bits_of_the_reference(dtypes, kind):
    model = Shapes(KINDS_OF_NUMBERS[dtypes], long=2500)
    tx = gch.chain(probe(kind))
    wanted = by_hand(tx, model)
    updater = tx.bind(model)
    engine = updater._bound.engine
    engine.executors = (Triton("cpu"),)
    steps(updater)
    assert engine.reason == ""
    assert {part.executor for part in engine.last} == {"triton"}
    for name, weight in model.named_parameters():
        assert torch.equal(weight.detach(), wanted[name]), name


LONG = bool(os.environ.get("GRADCHAIN_LONG"))
MATRICES = [(5, 3), (3, 5, 2, 4), (2, 70)]


@pytest.fixture
def _with_axes(monkeypatch):
    monkeypatch.setitem(test_shapes.EXECUTORS, "triton", partial(Triton, "cpu"))


@pytest.mark.usefixtures("_with_axes")
@pytest.mark.parametrize(("rule", "dtype"), [*zip(test_shapes.RULES, test_shapes.BOUND, strict=False)], ids=str)
def test_rules_with_state_of_rows(rule, dtype):
    tx = gch.chain(test_shapes.RULES[rule], gch.scale(-0.1))
    for how in test_shapes.HOWS if LONG else ("channels last",):
        test_shapes.assert_equal(tx, dtype, how, "triton", MATRICES)


@pytest.mark.usefixtures("_with_axes")
def test_kernels_that_reduce_rows_draw_too():
    tx = gch.chain(test_shapes.noise_in_rows(), gch.scale(-0.1))
    engine = test_shapes.assert_equal(tx, torch.float32, "plain", "triton", MATRICES[:2])
    over_axes = [part.program for part in engine.last if part.program.grid is not None]
    assert {(bool(p.along), bool(p.reduce)) for p in over_axes if p.draws} == {
        (True, False),
        (False, True),
        (False,) * 2,
    }


@pytest.mark.usefixtures("_with_axes")
@pytest.mark.parametrize("seed", range(200 if LONG else 4))
def test_a_drawn_expression_of_rows_maps_and_noise(seed):
    how = test_shapes.HOWS[seed % 3]
    tx = gch.chain(test_shapes.drawn(seed), gch.scale(-0.1))
    test_shapes.assert_equal(tx, torch.float64, how, "triton", MATRICES[:2])


@pytest.mark.parametrize("kind", ALONG)
@pytest.mark.parametrize("spans", [(True, False, True), (False, True, False), (False,) * 3, (True,) * 3], ids=str)
def test_each_reduction_along_each_axis(spans, kind):
    """More results than an item has, more elements than a result has lanes; what is not finite stays in its result."""
    extents = [(3, 40, 2), (2, 3, 70), (4, 0, 3), (1, 1, 1)]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64).float() for shape in extents]
    rows[0][1, 5, 0], rows[0][2, 39, 1], rows[1][0, 2, 69] = math.nan, -math.inf, math.inf
    dims = [d for d, along in enumerate(spans) if not along]
    want = [reduced(kind, 2.0 * row.double(), dims).float().flatten() for row in rows]
    found = [torch.full_like(value, 7.0) for value in want]
    program = Program([0, 1], [0], [], [("mul", (A, ("scalar", 0)))], along=[(kind, ("value", 0), 1)])
    program.grid = Grid(((True,) * 3, spans), tuple(extents))
    runner = Triton("cpu").ready(program, [torch.float32] * 2, [row.numel() for row in rows])
    runner.run([Column(rows), Column(found)], [2.0], [])
    for mine, right in zip(found, want, strict=True):
        torch.testing.assert_close(mine, right, equal_nan=True, rtol=1e-6, atol=1e-6)
