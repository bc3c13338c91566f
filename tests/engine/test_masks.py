"""The result of a comparison in every operation: 0 and 1 in the compute dtype of what was compared, for everyone."""

from __future__ import annotations

import pytest
import torch
from programs import OPERATIONS

import gradchain as gch
from gradchain.core.eager import EagerTensors

DTYPES = [torch.float64, torch.bfloat16]
EXECUTORS = ["native", "blocks"]
SHAPES = {"matrix": (5, 3), "number": (), "none": (0,), "long": (1000,)}
LOGIC = {"and": "mm", "or": "mm", "not": "m"}
# m a mask, n another, t numbers, s a number, e one number per parameter
FORMS = {
    **{op: ["mn", "ms", "sm", "mt", "tm", "me"] for op in ("add", "sub", "mul", "maximum", "minimum")},
    **{op: ["mn", "ms", "sm", "mt", "tm", "me"] for op in ("lt", "le", "gt", "ge", "eq")},
    "div": ["mn", "ms", "mt", "me"],
    "pow": ["ms", "sm", "me"],
    "atan2": ["mn", "ms", "sm", "mt", "tm", "me"],
    "remainder": ["ms", "sm", "mt", "tm", "me"],
    "lerp": ["mns", "mts", "tms", "mte"],
    "clamp": ["mss"],
    "where": ["mns", "msm", "mss", "mnn", "mnm", "mtn", "mee"],
    **{op: ["m"] for op in ("neg", "sqrt", "sign", "abs", "isfinite", "isnan", "zeros")},
    **{op: ["m"] for op in ("exp", "expm1", "log1p", "tanh", "erf", "round", "floor")},
    "log": ["m", "t"],
    **{op: ["m"] for op in ("sum", "sums", "numels", "all_finite")},
    "rsqrt": ["t"],
    "norm": ["m1", "m2", "mi"],
    "norms": ["m1", "m2", "mi"],
    "select": ["mN"],
    "overlay": ["mt", "tm", "mp"],
    **{op: [form] for op, form in LOGIC.items()},
}
SCALAR = 0.1  # not a float32


def operands(form: str, g: gch.Tensors, p: gch.Tensors, as_numbers: bool) -> list:
    """The operands of a form; with masks given as the numbers that they are, for what is no logic."""
    low = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

    def numbers(mask: gch.Tensors) -> gch.Tensors:
        return mask.map(lambda t: t.to(low.get(p[next(iter(p))].dtype, p[next(iter(p))].dtype)))

    m, n = g > p, (g.abs() < 1) | ~(p > 0)
    given = {
        "m": m,
        "n": n,
        "t": g.abs() + 0.5,
        "p": (g < 0).select(["matrix", "long"]),
        "s": SCALAR,
        "e": gch.Scalars({name: 0.3 + i for i, name in enumerate(SHAPES)}),
        "1": 1.0,
        "2": 2.0,
        "i": float("inf"),
        "N": ["matrix", "long"],
    }
    return [numbers(given[k]) if as_numbers and k in "mnp" else given[k] for k in form]


class of_masks(gch.Transform):
    """Turn the updates into the sum of what an operation makes of masks in every form."""

    op: str

    def update(self, g, state, ctx):
        total = g
        for i, form in enumerate(FORMS[self.op]):
            result = OPERATIONS[self.op](*operands(form, g, ctx.params, False))
            if not isinstance(result, gch.Tensors):
                result = g * result  # a number, or one per parameter
            total = total.overlay(total + (0.25 + 0.5 * i) * result)
        return total, state


def model(dtype: torch.dtype) -> torch.nn.ParameterDict:
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}
    return torch.nn.ParameterDict(drawn)


def gradients(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("op", FORMS)
def test_a_mask_is_zero_and_one_in_the_compute_dtype(op, dtype):
    for form in FORMS[op]:
        zero_and_one(op, form, dtype)


def zero_and_one(op: str, form: str, dtype: torch.dtype) -> None:
    params, g = gch.Tensors.of(model(dtype)), gch.Tensors.of(gradients(dtype))
    found = OPERATIONS[op](*operands(form, g, params, False))
    logical = op in LOGIC or (op == "where" and all(k in "mn" for k in form))
    if logical:  # the logic of masks is torch's of truth values
        rule = {"and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not, "where": torch.where}[op]
        given = operands(form, g, params, False)
        for name in found:
            assert found[name].dtype is torch.bool
            assert torch.equal(found[name], rule(*(v[name] for v in given)))
        return
    given = operands(form, g, params, True)
    if op == "where":
        given[0] = given[0] > 0.5
    want = OPERATIONS[op](*given)
    if not isinstance(want, gch.Tensors):
        assert (dict(found) == dict(want)) if isinstance(want, gch.Scalars) else found == want
        return
    assert list(found) == list(want)
    for name in want:
        if op in ("select", "overlay") and found[name].dtype is torch.bool:  # these compute nothing
            assert torch.equal(found[name].to(want[name].dtype), want[name])
        else:
            assert found[name].dtype is want[name].dtype, name
            assert torch.equal(found[name].nan_to_num(9), want[name].nan_to_num(9)), name


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", FORMS)
def test_executors_agree_with_the_reference(op, dtype, executor):
    theirs = model(dtype)
    tx, grads = gch.chain(of_masks(op)), gch.Tensors.of(gradients(dtype))
    params = gch.Tensors.of(theirs)
    with torch.no_grad():
        updates, _ = tx.update(grads, tx.init(params), gch.Context(params, step=0))
        want = gch.apply_updates(params, updates)
    mine = model(dtype)
    updater = tx.bind(mine)
    engine = updater._bound.engine
    engine.executors = tuple(e for e in engine.executors if e.name == executor)
    updater.step(gradients(dtype))
    assert engine.reason == "", engine.reason
    assert {part.executor for part in engine.last} == {executor}
    bound = {torch.float64: 1e-14, torch.bfloat16: 2.0**-7}[dtype]  # a rounding border may be near
    for name, p in mine.items():
        close = torch.isclose(p.double(), want[name].double(), rtol=bound, atol=bound, equal_nan=True)
        assert bool(close.all()), (name, p, want[name])


def test_every_operation_meets_a_mask():
    assert set(FORMS) == set(OPERATIONS), "an operation has no row here"


@pytest.mark.parametrize("host", [True, False])
def test_a_truth_of_the_host_may_choose(host):
    class chosen(gch.Transform):
        truth: bool

        def update(self, g, state, ctx):
            mask = gch.where(self.truth, g > 0, g < -1)
            return gch.where(self.truth, g, 0.5) + gch.where(mask, 0.1, ctx.params), state

    grads, start = gradients(torch.float64), model(torch.float64)
    for executor in EXECUTORS:
        mine = model(torch.float64)
        updater = gch.chain(chosen(host)).bind(mine)
        engine = updater._bound.engine
        engine.executors = tuple(e for e in engine.executors if e.name == executor)
        updater.step(grads)
        assert engine.reason == "", engine.reason
        for name, p in mine.items():
            mask = grads[name] > 0 if host else grads[name] < -1
            want = start[name] + ((grads[name] if host else 0.5) + torch.where(mask, 0.1, start[name].detach()))
            assert torch.allclose(p, want, rtol=1e-14, atol=0), (executor, name)


def test_numbers_are_no_truth():
    for tensors in (gch.Tensors.of({"w": torch.ones(3)}), gch.Tensors.of({"w": torch.ones(3)}) * 2):
        for wrong in (lambda t: ~t, lambda t: t & (t > 0), lambda t: (t > 0) | t, lambda t: (t > 0) & 1):
            with pytest.raises(TypeError, match=r"^Tensors: . takes masks, what comparisons give, got "):
                wrong(tensors)
        with pytest.raises(TypeError, match=r"^where: the condition must be a mask, got Tensors of numbers\."):
            gch.where(tensors, 1.0, tensors)


def test_a_link_that_takes_numbers_for_truths_is_told_in_the_engine_too():
    class wrong(gch.Transform):
        def update(self, g, state, ctx):
            return g * (~g), state

    with pytest.raises(TypeError, match="takes masks, what comparisons give"):
        gch.chain(wrong()).bind(model(torch.float32)).step(gradients(torch.float32))


def test_a_mask_remembers_what_was_compared():
    w = gch.Tensors.of({"w": torch.tensor([1.0, -1.0])})
    assert (0.1 * (w.to(torch.float64) > 0))["w"].tolist() == [0.1, 0.0]
    assert (0.1 * (w > 0))["w"].dtype is torch.float32
    kept = EagerTensors(w.index, [torch.tensor([True, False])])  # as from a state that was loaded
    assert (0.1 * kept)["w"].dtype is torch.float32
