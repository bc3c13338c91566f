"""What holds of every executor that takes numbers where they lie: imported as `operation_cases` is."""

from __future__ import annotations

import math

import pytest
import torch
from operation_cases import SIZES, A, drawn, equal, run
from whole_program import every_number

from gradchain.core.operations import OPERATIONS
from gradchain.engine.planning.lower import Program


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_numbers_may_live_on_the_device(dtype):
    scaled, added = ("mul", (A, ("scalar", 1))), ("add", (("value", 0), ("entry", 1)))
    instructions = [scaled, added, ("sub", (("value", 1), ("entry", 0)))]
    program = Program([0], [0, 1], [0, 1], instructions, [(0, ("value", 2))])
    given = [drawn(dtype, 0), drawn(dtype, 0)]
    host, device = [0.5, 0.25], [0.5, torch.tensor(0.25, dtype=torch.float32)]
    each = [float(i) for i in range(2 * len(SIZES))]
    mixed = [torch.tensor(v) if i % 4 == 1 else v for i, v in enumerate(each)]  # among the numbers of one entry too
    run(program, [given[0]], host, each)
    run(program, [given[1]], device, mixed)
    equal(given[1], given[0])


def test_numbers_are_computed_as_the_host_does():
    program = every_number()
    found = [torch.ones(n, dtype=torch.float64) for n in SIZES]
    values = {("scalar", 0): 1.5, ("scalar", 1): 0.5, ("entry", 0): 0.75}
    run(program, [found], [torch.tensor(1.5), 0.5], [0.75] * len(SIZES))
    held = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    for i, (op, operands) in enumerate(program.numbers):
        held[("device", i)] = OPERATIONS[op].truth(*(held[o] for o in operands))
    want = held[("device", i)].double()
    assert math.isfinite(want) and want != 1.0
    torch.testing.assert_close(found[0], want.expand(5))


def test_a_choice_between_numbers_of_the_host_keeps_their_digits():
    """Also where what decides lies on the device."""
    numbers = [("gt", (("scalar", 0), ("scalar", 1))), ("where", (("device", 0), ("scalar", 1), ("scalar", 2)))]
    program = Program([0], [0, 1, 2], [], [("mul", (A, ("device", 1)))], [(0, ("value", 0))], numbers=numbers)
    found = [torch.ones(n, dtype=torch.float64) for n in SIZES]
    run(program, [found], [torch.tensor(1.0), 0.1, 1.0])
    assert bool((found[0] == 0.1).all())
