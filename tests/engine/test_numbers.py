"""Numbers on the device: their arithmetic is a float's, recorded, and computed where torch or the host asks."""

from __future__ import annotations

import math

import pytest
import torch

import gradchain as gch
from gradchain.engine.operations import Unrecorded
from gradchain.engine.recording.numbers import Each, Ledger, Number, met

CPU = torch.device("cpu")


def ledger() -> Ledger:
    return Ledger([], [], CPU)


def number(value: float, held: Ledger | None = None) -> Number:
    return (held or ledger()).whole(torch.tensor(value, dtype=torch.float64))


FORMULAS = {
    "clip": lambda x: 2.0 / gch.maximum(x + 1e-6, 2.0),
    "powers": lambda x: (x**2 + 2**x) ** 0.5,
    "signs": lambda x: abs(-x) - 3 * x,
    "choice": lambda x: gch.where(x > 2, x, 1.5) + gch.where(x <= 2, 1.0, x),
    "root": lambda x: gch.sqrt(gch.minimum(x, 7.0)) / x,
    "equal": lambda x: gch.where(x == 3.0, 1.0, 0.0) + gch.where(x >= 3, 2.0, 0.0) + gch.where(x < 3, 4.0, 0.0),
    "count": lambda x: x * gch.Count(["a"], 3) + gch.Count(["a"], 2) / x,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("value", [1.25, 3.0])
def test_the_arithmetic_of_a_float(name, value):
    rule = FORMULAS[name]
    want, found = rule(value), rule(number(value))
    assert type(found) is Number
    assert math.isclose(float(found), want, rel_tol=1e-15)


def test_nothing_is_computed_before_it_is_asked_for():
    held = ledger()
    norm = number(4.0, held)
    factor = 1.0 / gch.maximum(norm + 0.5, 1.0)
    assert [op for op, *_ in held.ops] == ["add", "maximum", "div"]
    assert not held._computed
    assert float(factor) == 1 / 4.5
    assert len(held._computed) == 3


def test_numbers_per_parameter_meet_by_name():
    held = ledger()
    a = held.each(("x", "y", "z"), torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    b = held.each(("z", "x"), torch.tensor([2.0, 8.0], dtype=torch.float64))
    met = gch.sqrt(a) * b
    assert type(met) is Each and dict(met) == {"x": 8.0, "z": 6.0}
    assert dict(met / gch.Scalars({"x": 2.0, "y": 0.0})) == {"x": 4.0}
    less = gch.Scalars({"z": 1.0}) - met
    assert type(less) is Each and dict(less) == {"z": -5.0}
    assert dict(gch.where(a > 3.0, a, -a)) == {"x": -1.0, "y": 4.0, "z": 9.0}
    assert len(met) == 2 and "y" not in met and list(met) == ["x", "z"]
    assert dict(met * number(2.0, held)) == {"x": 16.0, "z": 12.0}
    assert float(number(2.0, held) * number(0.5, held)) == 1.0


def test_numbers_of_other_steps_and_of_torch_may_join():
    old, new = number(2.0) + 1.0, ledger()
    assert float(number(5.0, new) * old) == 15.0
    other = ledger().each(("a",), torch.tensor([2.0], dtype=torch.float64))
    assert dict(number(5.0, new) * other) == {"a": 10.0}
    mixed = gch.Scalars({"a": number(2.0, new) + 1.0, "b": 4.0})
    assert dict(number(1.0, new) + mixed * 1.0) == {"a": 4.0, "b": 5.0}
    assert torch.equal(torch.exp(number(0.0)), torch.ones((), dtype=torch.float64))
    assert float(torch.tensor(2.0) * number(3.0)) == 6.0
    assert float(number(3.0) * torch.tensor(2.0, dtype=torch.float32)) == 6.0


def test_what_classes_gave_is_put_together():
    parts = [(("a",), torch.tensor([3.0])), (("b", "c"), torch.tensor([4.0, 5.0]))]
    reduced = met([(n, r.double()) for n, r in parts], "sum2", CPU)
    held = ledger()
    assert float(reduced.norm(held, 2.0, 2.0)) == 2.0 * math.sqrt(12.0)
    assert dict(reduced.norms(held, 1.0, 2.0)) == {"a": 6.0, "b": 8.0, "c": 10.0}
    largest = met([(("a", "b"), torch.tensor([3.0, math.nan]).double())], "max", CPU)
    assert math.isnan(float(largest.norm(held, math.inf, 1.0)))
    assert float(met([], "max", CPU).norm(held, math.inf, 1.0)) == 0.0


def test_a_closed_ledger_gives_no_value():
    held = ledger()
    norm = number(4.0, held)
    held.closed = True
    assert type(norm + 1.0) is Number
    for ask in (float, bool, Number.tensor):
        with pytest.raises(Unrecorded, match="waits for the value"):
            ask(norm)
    with pytest.raises(Unrecorded, match="waits for the value"):
        held.finite(lambda kind: met([], kind, CPU))
