"""Triton kernels run by its interpreter on the CPU: by test_triton.py in a child, where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

import os

import numpy
import operation_cases
import pytest
import torch
from against_reference import compared
from device_cases import *  # noqa: F403  # its tests
from operation_cases import *  # noqa: F403  # its tests
from operation_cases import A, run
from random_chains import KINDS_OF_NUMBERS, Shapes, by_hand, probe, steps

import gradchain as gch
from gradchain.core.random import KINDS
from gradchain.engine.executors.triton import Triton
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
