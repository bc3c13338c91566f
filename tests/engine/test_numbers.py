"""Numbers of a ledger: their arithmetic is a float's; on a device it is computed where torch or the host asks, on the
host it is known and computed again by the program."""

from __future__ import annotations

import math

import pytest
import torch

import gradchain as gch
from gradchain.core.step import Step
from gradchain.engine.operations import Unrecorded
from gradchain.engine.recording.device import DeviceLedger, over_classes
from gradchain.engine.recording.host import GuardFailed, HostLedger
from gradchain.engine.recording.numbers import Each, Number
from gradchain.engine.replay import ordered, run

CPU = torch.device("cpu")


def ledger() -> DeviceLedger:
    return DeviceLedger([], [], CPU)


def number(value: float, held: DeviceLedger | None = None) -> Number:
    return (held or ledger()).whole(torch.tensor(value, dtype=torch.float64))


FORMULAS = {
    "clip": lambda x: 2.0 / gch.maximum(x + 1e-6, 2.0),
    "powers": lambda x: (x**2 + 2**x) ** 0.5,
    "signs": lambda x: abs(-x) - 3 * x,
    "choice": lambda x: gch.where(x > 2, x, 1.5) + gch.where(x <= 2, 1.0, x),
    "root": lambda x: gch.sqrt(gch.minimum(x, 7.0)) / x,
    "equal": lambda x: gch.where(x == 3.0, 1.0, 0.0) + gch.where(x >= 3, 2.0, 0.0) + gch.where(x < 3, 4.0, 0.0),
    "curves": lambda x: gch.exp(-x) + gch.expm1(x) * gch.tanh(x) + gch.erf(x) + gch.log(x) / gch.log1p(x),
    "angles": lambda x: gch.atan2(x, -2.0) + gch.atan2(1, x) + gch.atan2(x, x),
    "steps": lambda x: gch.round(x * 2) + gch.floor(x / 2) + gch.remainder(-x, 0.7) + gch.remainder(5, x),
    "modulo": lambda x: x % 0.7 + 5 % x + gch.Count(["a"], 7) % x + x % gch.Count(["a"], 2),
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
    reduced = over_classes([(n, r.double()) for n, r in parts], "sum2", CPU)
    held = ledger()
    assert float(reduced.norm(held, 2.0, 2.0)) == 2.0 * math.sqrt(12.0)
    assert dict(reduced.norms(held, 1.0, 2.0)) == {"a": 6.0, "b": 8.0, "c": 10.0}
    largest = over_classes([(("a", "b"), torch.tensor([3.0, math.nan]).double())], "max", CPU)
    assert math.isnan(float(largest.norm(held, math.inf, 1.0)))
    assert float(over_classes([], "max", CPU).norm(held, math.inf, 1.0)) == 0.0


def test_a_closed_ledger_gives_no_value():
    held = ledger()
    norm = number(4.0, held)
    held.closed = True
    assert type(norm + 1.0) is Number
    for ask in (float, bool, Number.tensor):
        with pytest.raises(Unrecorded, match="waits for the value"):
            ask(norm)
    for ask in ("is_finite", "is_zero"):
        with pytest.raises(Unrecorded, match="waits for the value"):
            getattr(over_classes([], "sum2", CPU), ask)(held)


# numbers of the host


def again(of: Number | Each, value: object) -> list[object]:
    """The values of the program that follows from one input, for another. GuardFailed where it takes another way."""
    held = of.ledger
    values = list(held.values)
    values[of.at] = value
    for lines in ordered(held.ops, range(len(values))):
        run(lines, values)
    return values


def host(value: object) -> Number | Each:
    held = HostLedger([], [], Step())
    return held.handle(held.input(value))


@pytest.mark.parametrize("name", FORMULAS)
def test_the_arithmetic_of_a_float_on_the_host_now_and_again(name):
    rule, x = FORMULAS[name], host(1.25)
    found = rule(x)
    assert type(found) is Number and x.ledger.values[found.at] == rule(1.25)
    assert not any(op.out < 0 for op in x.ledger.ops), "arithmetic needs no guard"
    for value in (3.0, 0.5, 100.0):
        assert again(x, value)[found.at] == rule(value)


WHOLE = {
    "remainder": lambda x: x % 3,
    "quotient": lambda x: x // 2,
    "whole part": math.trunc,
    "minus": lambda x: 1 - (-x),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_arithmetic_of_an_int(name):
    rule, x = WHOLE[name], host(7)
    found = rule(x)
    values = [again(x, v)[found.at] for v in (7, 8, 2)]
    assert values == [rule(7), rule(8), rule(2)] and all(type(v) is int for v in values)


def test_numbers_per_parameter_on_the_host():
    each = host(gch.Scalars({"x": 1.0, "y": 4.0}))
    root, mean = gch.sqrt(each) * 2.0, each["x"] + each["y"]
    assert isinstance(root, gch.Scalars) and list(root) == ["x", "y"] and "z" not in root and len(root) == 2
    joined = gch.Scalars({"x": mean, "y": 1.0}) + each
    largest = gch.maximum(0.0, *each.values()) if len(each) == 1 else gch.maximum(each["x"], each["y"])
    other = gch.Scalars({"x": 9.0, "y": 16.0})
    values = again(each, other)
    assert dict(values[root.at]) == {"x": 6.0, "y": 8.0}
    assert dict(values[joined.at]) == {"x": 34.0, "y": 17.0}
    assert values[largest.at] == 16.0


def test_a_0d_tensor_is_a_number():
    x = host(torch.tensor(2.0))
    found = (3.0 * x + 1) / 2
    value = again(x, torch.tensor(5.0))[found.at]
    assert torch.equal(value, torch.tensor(8.0)) and value.dtype is torch.float32


LEAVING = {
    "float": float,
    "int": int,
    "index": lambda x: [10, 20, 30, 40][x],
    "repr": repr,
    "format": lambda x: f"{x:03d}",
    "key": lambda x: {1: "one", 2: "two"}[x],
    "range": lambda x: [*range(x)],
    "torch": lambda x: torch.add(torch.ones(2), x),
    "isfinite": math.isfinite,
}


@pytest.mark.parametrize("name", LEAVING)
def test_what_leaves_the_ledger_is_a_guard(name):
    """The program holds where the number is the same, and for no other."""
    x = host(2)
    left, plain = LEAVING[name](x), LEAVING[name](2)
    assert torch.equal(left, plain) if isinstance(plain, torch.Tensor) else left == plain
    again(x, 2)
    for value in (1, 3, 2.0):
        with pytest.raises(GuardFailed):
            again(x, value)


def test_a_truth_is_a_guard_and_no_more():
    x = host(2)
    assert x and not x > 3 and (x or 1) is x and x != 5
    for value in (1, 3):
        again(x, value)
    for value in (0, 4, 5):
        with pytest.raises(GuardFailed):
            again(x, value)


def test_nan_is_itself_to_a_guard():
    x = host(math.nan)
    assert math.isnan(float(x))
    again(x, math.nan)
    with pytest.raises(GuardFailed):
        again(x, 1.0)


def test_counts_that_differ():
    each = host(gch.Scalars({"a": 1, "b": 2}))
    count = gch.Count(["a", "b"], each).tick({"a": 0})
    assert count.uniform is not None, "they agree now: a guard"
    values = again(each, gch.Scalars({"a": 6, "b": 7}))
    assert values[count.uniform.at] == 7
    with pytest.raises(GuardFailed):
        again(each, gch.Scalars({"a": 6, "b": 6}))


def test_a_number_of_another_step_does_not_join():
    with pytest.raises(TypeError, match="another step"):
        host(2.0) + host(3.0)


def test_reductions_come_late_and_what_nobody_needs_does_not_come():
    """A step that goes another way costs little: guards on plain numbers come before passes over gradients."""
    held = HostLedger([], [], Step())
    x, done = held.handle(held.input(2.0)), []
    reduced = held.handle(held.note(lambda values: done.append("reduced") or 3.0, (), 3.0, reduces=True))
    unused = x * 7.0
    scheduled = held.number_from(lambda step: done.append("scheduled") or 1.0)
    assert reduced * scheduled > 1.0
    late = held.number_from(lambda step: done.append("late") or 1.0)
    assert x > 1.0
    done.clear()
    first, put_off, last = ordered(held.ops, [late.at])
    assert unused.at not in {out for *_, out in (*first, *put_off, *last)} and not last
    with pytest.raises(GuardFailed):
        run(first, [*held.values[: x.at], 0.5, *held.values[x.at + 1 :]])
    assert done == ["scheduled"]
    run([*first, *put_off], list(held.values))
    assert done == ["scheduled", "scheduled", "reduced", "late"]
