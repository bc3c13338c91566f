"""Chains of operations that the library does not have: by test_operations.py, over a copy that has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from twins import Shapes, Twins

import gradchain as gch
from gradchain.core.scalars import HOST


def of(op: str, *args):
    """What a method of Tensors would do."""
    return args[0]._apply(op, args)


class grown(gch.Transform):
    """A rule of the new operations: over tensors, numbers, masks and numbers per parameter."""

    def update(self, u, state, ctx):
        size = u + 0.1 * of("ahead", u, ctx.params) + of("ahead", u.norms() * u, 0.5)
        inside = of("between", ctx.params, u, 2.0)
        odd = of("either", inside, u > 0)
        return gch.where(odd, of("cube", u), size) * (1.0 + inside), state


@pytest.mark.parametrize("executor", ["native", "blocks"])
def test_a_chain_of_cube_and_the_others_equals_the_reference(executor):
    assert Path(gch.__file__).parent.parent == Path.cwd(), "not the copy"
    twins = Twins(gch.chain(grown(), gch.sgd(0.05)), Shapes(), (executor,))
    for t in range(4):
        twins.gradients(t)
    twins.compare()
    assert twins.used == {executor}


def test_a_cube_of_a_number_of_the_host():
    assert HOST["cube"](3.0) == 27.0
    assert "ahead" not in HOST
    assert of("cube", gch.Tensors.of({"w": torch.tensor([2.0, -1.0])}))["w"].tolist() == [8.0, -1.0]
