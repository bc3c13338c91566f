"""Every operation and reduction alone, random chains too, by calls over whole lists as they are made on CUDA."""

from __future__ import annotations

import math

import operation_cases
import pytest
import torch
from against_reference import compared
from device_cases import *  # noqa: F403  # its tests
from operation_cases import *  # noqa: F403  # its tests
from operation_cases import SIZES, A, B, drawn, equal, run
from programs import expression
from torch_call_cases import *  # noqa: F403  # its tests

from gradchain.core.operations import OPERATIONS
from gradchain.engine.executors.foreach import Foreach
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _foreach():
    operation_cases.use(Foreach("cpu"))


NUMBERS = {
    "one of the host": (0.7, []),
    "one on the device": (torch.tensor(0.7, dtype=torch.float64), []),
    "per row": (0.0, [0.5, 0.0, 3.0, 0.7, 0.25]),
    "per row on the device": (0.0, [torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.0, 3.0, 0.7, 0.25)]),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("turned", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("op", [name for name, o in OPERATIONS.items() if o.takes == "nn"])
def test_numbers_of_every_kind_meet_tensors(op, turned, kind):
    """As the truth gives, row by row, whatever call over lists there is."""
    scalar, entries = NUMBERS[kind]
    number = ("entry", 0) if entries else ("scalar", 0)
    instructions = [(op, (number, A) if turned else (A, number))]
    if OPERATIONS[op].mask:
        instructions.append(("where", (("value", 0), A, B)))
    program = Program([0, 1], [0], [0] if entries else [], instructions, [(0, ("value", len(instructions) - 1))])
    rows = [[t.abs() + 0.1 for t in drawn(torch.float64, 0)], drawn(torch.float64, 1)]
    want = []
    for i, (a, b) in enumerate(zip(*rows, strict=True)):
        given = torch.tensor(float(entries[i] if entries else scalar), dtype=torch.float64)
        made = OPERATIONS[op].truth(*((given, a) if turned else (a, given)))
        want.append(torch.where(made, a, b) if OPERATIONS[op].mask else made)
    run(program, rows, [scalar], entries)
    equal(rows[0], want, ulps=8.0)


def test_a_store_never_reads_what_another_wrote():
    """Columns that change places, and values that lie where something else is stored."""
    a, b, c = ([torch.randn(n) for n in SIZES] for _ in range(3))
    before = [[t.clone() for t in column] for column in (a, b, c)]
    run(Program([0, 1], [], [], [], [(0, ("load", 1)), (1, ("load", 0))]), [a, b])
    equal(a, before[1])
    equal(b, before[0])
    doubled = ("mul", (("load", 0), ("scalar", 0)))
    summed = ("add", (("value", 0), ("load", 1)))
    stores = [(0, ("value", 1)), (1, ("value", 0)), (2, ("load", 0))]
    run(Program([0, 1, 2], [0], [], [doubled, summed], stores), [a, b, c], [2.0])
    equal(a, [2 * x + y for x, y in zip(before[1], before[0], strict=True)])
    equal(b, [2 * x for x in before[1]])
    equal(c, before[1])


def test_rows_in_pieces_are_the_rows(monkeypatch):
    """Long rows are cut, short ones go together, and it is the same as all at once; a reduction meets the pieces."""
    from gradchain.engine.executors import chunks

    sizes = [5, 0, 3000, 70, 1, 2048, 17]
    program = Program(
        [0, 1, 2], [0], [0],
        [
            ("mul", (A, B)), ("gt", (A, B)), ("where", (("value", 1), ("value", 0), A)),
            ("mul", (("value", 2), ("entry", 0))),
        ],
        [(2, ("value", 3)), (0, ("value", 2))],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = [
        [torch.randn(n, generator=generator).to(d) for n in sizes]
        for d in (torch.float32, torch.bfloat16, torch.float32)
    ]
    results = []
    for small in (1 << 16, 128):
        monkeypatch.setattr(chunks, "SMALL", small)
        given = [[t.clone() for t in column] for column in rows]
        columns = [Column(column) for column in given]
        entries = [0.5 + i for i in range(len(sizes))]
        for each in (entries, [torch.tensor(v) for v in entries]):
            runner = Foreach("cpu").ready(program, [c[0].dtype for c in given], sizes)
            assert len(chunks.chunked(sizes, 3, 4)) == (1 if small > 128 else 4)
            runner.run(columns, [0.0], each)
        programs = [
            Program([0], [], [], [("abs", (A,))], reduce=(kind, ("value", 0)))
            for kind in ("sum", "sum1", "sum2", "max", "bad")
        ]
        ready = [Foreach("cpu").ready(reduction, [torch.float32], sizes) for reduction in programs]
        reduced = [runner.run(columns[:1], [], []) for runner in ready]
        results.append((given, reduced))
    for mine, theirs in zip(results[0][0], results[1][0], strict=True):
        equal(mine, theirs)
    for mine, theirs in zip(results[0][1], results[1][1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)


CHAINS = [
    *[(seed, (torch.float64,)) for seed in range(400, 460)],
    *[(seed, (torch.float32,)) for seed in range(460, 475)],
    *[(seed, (torch.bfloat16,)) for seed in range(475, 483)],
    *[(seed, (torch.float16,)) for seed in range(483, 488)],
    *[(seed, (torch.float32, torch.bfloat16, torch.float16)) for seed in range(488, 494)],
]


@pytest.mark.parametrize(("seed", "dtypes"), CHAINS, ids=[str(seed) for seed, _ in CHAINS])
def test_a_random_chain_equals_the_reference(seed, dtypes):
    assert expression(seed).steps
    compared(seed, *dtypes, executor=Foreach("cpu"), name="foreach")


def test_what_is_not_finite_is_counted_behind_numbers_of_the_device():
    """A number is computed on the device first, and the count is that of what it makes of the elements."""
    program = Program(
        [0], [0], [], [("mul", (A, ("device", 0)))], reduce=("bad", ("value", 0)),
        numbers=[("div", (("scalar", 0), ("scalar", 0)))],
    )  # fmt: skip
    rows = [torch.ones(n) for n in SIZES]
    rows[0][2] = math.inf
    assert run(program, [rows], [torch.tensor(2.0)]) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert run(program, [rows], [torch.tensor(0.0)]) == [float(n) for n in SIZES]


def test_what_cannot_run_says_why():
    plain = Program([0], [], [], [("no_such", (A,))], [(0, ("value", 0))])
    assert Foreach("cpu").legal(plain, [torch.float32]) == "no kernel of torch for the operation 'no_such'"
    assert Foreach("cpu").legal(Program([0]), [torch.complex64]) == "no kernels over lists for torch.complex64"
