"""Functions of numbers of the host, 0-d tensors, one per parameter, counts, Tensors. One answer for all."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import gradchain as gch
from gradchain.core.operations import OPERATIONS

ONE = ["exp", "expm1", "log", "log1p", "tanh", "erf", "round", "floor"]
TWO = ["atan2", "remainder"]
INF, NAN = math.inf, math.nan
NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.3, -7.25, 1e-300, -1e-20, 3e-308, 1e3, -1e3, 1e300]
NUMBERS += [INF, -INF, NAN, 3, -3, 0, 10**6]
CALLS = [(op, (a,)) for op in ONE for a in NUMBERS]
CALLS += [(op, (a, b)) for op in TWO for a in NUMBERS for b in NUMBERS]

# how a number may be given, and how the answer is read
KINDS = {
    "host": (lambda a: a, float),
    "numpy": (lambda a: np.float64(a), float),
    "0-d": (lambda a: torch.tensor(a, dtype=torch.float64), lambda r: r.item()),
    "each": (lambda a: gch.Scalars({"w": a}), lambda r: r["w"]),
    "tensors": (lambda a: gch.Tensors.of({"w": torch.tensor([a], dtype=torch.float64)}), lambda r: r["w"].item()),
}


def torchs(op: str, given: tuple) -> float:
    """What torch gives for float64 tensors."""
    return getattr(torch, op)(*(torch.tensor(a, dtype=torch.float64) for a in given)).item()


def same(found: float, want: float) -> bool:
    near = found == want or math.isclose(found, want, rel_tol=4e-16, abs_tol=0.0)
    return (math.isnan(found) and math.isnan(want)) or (near and math.copysign(1, found) == math.copysign(1, want))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", [*ONE, *TWO])
def test_each_kind_of_number_has_torchs_answer(op, kind):
    make, read = KINDS[kind]
    for name, given in CALLS:
        if name != op:
            continue
        found, want = read(getattr(gch, op)(*map(make, given))), torchs(op, given)
        whole = all(isinstance(a, int) for a in given) and want == 0  # an int has no sign at zero
        assert same(found, want) or (whole and found == 0), (kind, given, found, want)


@pytest.mark.parametrize("kind", ["host", "numpy", "0-d", "each"])
@pytest.mark.parametrize("op", TWO)
def test_tensors_meet_numbers_of_any_kind_on_either_side(op, kind):
    make, of = KINDS[kind][0], gch.Tensors.of
    for a in NUMBERS:
        tensors = of({"w": torch.tensor([1.5, -0.0, INF, -2.25], dtype=torch.float64)})
        number = torch.full((4,), a, dtype=torch.float64)
        rule = partial(getattr(torch, op))
        forms = [(lambda x, y: getattr(gch, op)(x, y)), *([lambda x, y: x % y] if op == "remainder" else [])]
        for form in forms:
            for found, want in (
                (form(tensors, make(a)), rule(tensors["w"], number)),
                (form(make(a), tensors), rule(number, tensors["w"])),
            ):
                torch.testing.assert_close(found["w"], want, rtol=4e-16, atol=0.0, equal_nan=True)
        by_method = getattr(tensors, op)(make(a))["w"]
        torch.testing.assert_close(by_method, rule(tensors["w"], number), rtol=4e-16, atol=0.0, equal_nan=True)


def test_what_python_raises_at_is_a_number():
    assert (gch.log(0), gch.log(0.0), gch.log1p(-1), gch.exp(1000), gch.expm1(1e4)) == (-INF, -INF, -INF, INF, INF)
    assert all(
        map(math.isnan, (gch.log(-1), gch.log1p(-2.0), gch.remainder(1.0, 0), gch.remainder(INF, 2), gch.round(NAN)))
    )
    assert (gch.round(INF), gch.floor(-INF)) == (INF, -INF)


def test_ints_and_counts_stay_whole():
    count = gch.Count(["a", "b"], {"a": 7, "b": 8})
    for found, want in (
        (gch.remainder(7, 3), 1), (gch.remainder(-7, 3), 2), (gch.round(7), 7), (gch.floor(7), 7),
        (gch.Count(["a"], 7) % 4, 3), (gch.round(gch.Count(["a"], 7)), 7),
    ):  # fmt: skip
        assert found == want and type(found) is int
    assert dict(count % 4) == {"a": 3, "b": 0} and dict(30 % count) == {"a": 2, "b": 6}
    assert dict(gch.exp(-count)) == {"a": math.exp(-7), "b": math.exp(-8)}
    assert dict(gch.atan2(count, gch.Scalars({"b": 8.0}))) == {"b": math.pi / 4}


def test_a_0d_tensor_keeps_its_dtype():
    for op in ONE:
        assert getattr(gch, op)(torch.tensor(0.5, dtype=torch.float32)).dtype is torch.float32
    tensors = gch.Tensors.of({"w": torch.ones(2), "b": torch.tensor(2.0)})
    for op in TWO:
        met = getattr(tensors, op)(torch.tensor(0.7, dtype=torch.float64))
        assert {t.dtype for t in (met["w"], met["b"])} == {torch.float32}


def test_entries_meet_by_name_and_halves_are_computed_in_float32():
    a = gch.Tensors.of({"x": torch.tensor([0.5, 3.0], dtype=torch.bfloat16), "y": torch.ones(1)})
    b = gch.Tensors.of({"x": torch.tensor([2.0, -1.25], dtype=torch.bfloat16)})
    assert list(a.atan2(b)) == list(a % b) == ["x"] and a.exp()["x"].dtype is torch.float32
    torch.testing.assert_close(a.atan2(b)["x"], torch.atan2(a["x"].float(), b["x"].float()))
    assert (a % b)["x"].tolist() == [0.5, -0.75]


def test_a_carried_factor_is_applied_first():
    g = gch.Tensors.of({"w": torch.tensor([0.3, -1.2], dtype=torch.float64)})
    for op in ("exp", "tanh", "erf", "round", "floor"):
        assert torch.equal(getattr(3.0 * g, op)()["w"], getattr(torch, op)(3.0 * g["w"]))
    assert torch.equal((3.0 * g % (2.0 * g))["w"], (3.0 * g["w"]) % (2.0 * g["w"]))


# derivatives


def through(op: str, *given: torch.Tensor) -> torch.Tensor:
    """The operation as a rule calls it."""
    tensors = [gch.Tensors.of({"w": v}) if v.ndim else v for v in given]
    return getattr(gch, op)(*tensors)["w"]


WAYS = [(op, "tensors") for op in (*ONE, *TWO)]
WAYS += [(op, kinds) for op in TWO for kinds in ("a number behind", "a number before")]


@pytest.mark.parametrize(("op", "kinds"), WAYS)
def test_derivatives_are_torchs(op, kinds):
    x = torch.tensor([0.3, 1.7, 2.6], dtype=torch.float64)
    y = torch.tensor([0.9, 0.8, 1.1], dtype=torch.float64)
    number = torch.tensor(0.7, dtype=torch.float64)
    given = {"tensors": (x, y), "a number behind": (x, number), "a number before": (number, y)}[kinds]
    given = given[: len(OPERATIONS[op].takes)]
    ours, theirs = ([v.clone().requires_grad_() for v in given] for _ in range(2))
    through(op, *ours).sum().backward()
    getattr(torch, op)(*theirs).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-14, atol=0.0)
    assert op in ("round", "floor") or torch.autograd.gradcheck(partial(through, op), ours, check_forward_ad=True)
    rule, want = partial(through, op), getattr(torch, op)
    slopes = torch.func.jacfwd(rule)(*given), torch.func.jacrev(rule)(*given), torch.func.jacfwd(want)(*given)
    torch.testing.assert_close(slopes[0], slopes[2])
    torch.testing.assert_close(slopes[1], slopes[2])


@pytest.mark.parametrize("op", [*ONE, *TWO])
def test_vmap_is_a_loop(op):
    x = torch.linspace(0.1, 3.1, 12, dtype=torch.float64).reshape(4, 3)
    rates = torch.tensor([0.3, 0.7, -1.1, 2.0], dtype=torch.float64)
    if op in ONE:
        found, want = torch.func.vmap(partial(through, op))(x), getattr(torch, op)(x)
    else:
        found, want = torch.func.vmap(partial(through, op))(x, rates), getattr(torch, op)(x, rates[:, None])
        swapped = torch.func.vmap(lambda r, row: through(op, r, row))(rates, x)
        torch.testing.assert_close(swapped, getattr(torch, op)(rates[:, None], x), rtol=1e-14, atol=0.0)
        by_float = torch.func.vmap(lambda row: getattr(gch, op)(0.7, gch.Tensors.of({"w": row}))["w"])(x)
        seven = torch.tensor(0.7, dtype=torch.float64)
        torch.testing.assert_close(by_float, getattr(torch, op)(seven, x), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(found, want, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("op", [*ONE, *TWO])
def test_nothing_is_read_from_a_device(op):
    tensors = gch.Tensors.of({"w": torch.ones(3, device="meta")})
    given = (tensors,) if op in ONE else (tensors, 0.7)
    for args in (given, given[::-1], *([(tensors, tensors)] if op in TWO else [])):
        assert getattr(gch, op)(*args)["w"].device.type == "meta"


@pytest.mark.parametrize("given", [(0.3, 0.7), (0.3, 1), (1, 0.7)])
def test_a_truth_on_a_device_chooses_between_floats_in_float64(given):
    """As one of the host does: neither is rounded to torch's default dtype."""
    for truth, chosen in ((True, given[0]), (False, given[1])):
        made = gch.where(torch.tensor(truth), *given)
        assert made.dtype == torch.float64 and made.item() == gch.where(truth, *given) == chosen
        batched = torch.func.vmap(lambda t: gch.where(t, *given))(torch.tensor([truth, not truth]))
        assert batched[0].item() == chosen
    assert gch.where(torch.tensor(True), 1, 2).dtype == torch.int64
