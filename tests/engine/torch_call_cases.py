"""What holds of every executor by calls of torch: imported behind `operation_cases`, of which one test is here too."""

from __future__ import annotations

import operation_cases
import pytest
import torch
from operation_cases import RULES, SIZES, ULPS, run

from gradchain.core.operations import OPERATIONS
from gradchain.engine.planning.lower import Program


@pytest.fixture(autouse=True)
def as_torch_computes(monkeypatch, request):
    """torch divides a number by a tensor by the reciprocal, and lerps by weights in tensors as the reference does."""
    given = getattr(request.node, "callspec", None)
    if given is not None and (given.params.get("op"), given.params.get("kind")) == ("lerp", "tensors"):
        monkeypatch.setitem(RULES, "lerp", OPERATIONS["lerp"].truth)
    monkeypatch.setitem(ULPS, "div", 1.0)


def test_a_constant_needs_no_column():
    """What reads no column is computed in float32."""
    constant = ("maximum", (("zero",), ("scalar", 0)))
    reduced = Program([], [0], [], [constant], reduce=("sum", ("value", 0)))
    found = operation_cases.executor().ready(reduced, [], SIZES).run([], [0.656], [])
    assert found == pytest.approx([n * float(torch.tensor(0.656)) for n in SIZES], rel=1e-14)
    out = [torch.ones(n) for n in SIZES]
    run(Program([0], [0], [], [constant], [(0, ("value", 0))]), [out], [0.656])
    assert all(bool((row == 0.656).all()) for row in out)
