"""Clips, and numbers that are none: groups, absent entries, infinite bounds."""

import math
from functools import partial

import pytest
import torch
from one_link import DOUBLE, draw, once, tensors

import gradchain as gch
from gradchain.transforms import (
    clip_by_norm,
    clip_by_value,
    nan_to_num,
)

INF, NAN = math.inf, math.nan


# clip_by_norm


def norm_of(tensors, p=2.0):
    return torch.linalg.vector_norm(torch.cat([t.flatten() for t in tensors]), p)


def test_clip_per_group_uses_each_groups_own_norm_and_leaves_the_rest():
    g = draw(0, 5.0)
    link = clip_by_norm(1.0, per=[gch.named("body.*"), gch.named("head.*")])
    out, run = once(link, g)
    for group in (["body.weight", "body.bias"], ["head.weight"]):
        norm = norm_of([g[n] for n in group])
        for name in group:
            torch.testing.assert_close(out[name], g[name] / (norm + 1e-6), rtol=1e-12, atol=0)
    assert torch.equal(out["scale"], g["scale"])
    body, head = norm_of([g["body.weight"], g["body.bias"]]).item(), norm_of([g["head.weight"]]).item()
    assert run.records == pytest.approx(
        {'norm/named("body.*")': body, 'norm/named("head.*")': head, "norm": max(body, head)}, rel=1e-12
    )


def test_clip_per_group_with_an_absent_parameter():
    params, g = draw(0), draw(1, 5.0).select(["body.bias", "scale"])
    out, run = once(clip_by_norm(1.0, per=[gch.named("body.*"), gch.named("head.*")]), g, params=params)
    assert list(out) == ["body.bias", "scale"]
    torch.testing.assert_close(out["body.bias"], g["body.bias"] / (g["body.bias"].norm() + 1e-6), rtol=1e-12, atol=0)
    assert run.records['norm/named("head.*")'] == 0.0


def test_clip_refuses_overlapping_groups_at_init():
    link = clip_by_norm(1.0, per=[gch.named("*.weight"), gch.named("head.*")])
    with pytest.raises(ValueError, match=r"each parameter must be in at most one group, but 'head.weight'"):
        link.init(draw(0))


def test_clip_refuses_a_group_that_matches_nothing_at_init():
    with pytest.raises(ValueError, match="matches"):
        clip_by_norm(1.0, per=[gch.named("boddy.*")]).init(draw(0))


def test_two_functions_of_one_name_get_two_records():
    link = clip_by_norm(1.0, per=[lambda n, p, o: n == "scale", lambda n, p, o: n == "head.weight"])
    _, run = once(link, draw(0))
    labels = [name for name in run.records if name != "norm"]
    assert len(labels) == 2
    assert labels[1] == f"{labels[0]}#2"


def test_clip_per_tensor_is_torch_on_each_and_records_the_largest():
    g = draw(0, 5.0)
    out, run = once(clip_by_norm(1.0, per="tensor"), g)
    for name in g:
        torch.testing.assert_close(out[name], g[name] * min(1, 1 / (g[name].norm() + 1e-6)), rtol=1e-12, atol=0)
    assert run.records["norm"] == pytest.approx(max(g[n].norm().item() for n in g), rel=1e-12)


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_clip_takes_any_norm(p):
    g = draw(0, 5.0)
    twins = [torch.nn.Parameter(torch.zeros_like(g[n])) for n in g]
    for twin, name in zip(twins, g, strict=True):
        twin.grad = g[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(twins, 2.0, norm_type=p)
    out, run = once(clip_by_norm(2.0, p=p), g)
    for twin, name in zip(twins, g, strict=True):
        torch.testing.assert_close(out[name], twin.grad, rtol=1e-12, atol=0)
    assert run.records["norm"] == pytest.approx(norm.item(), rel=1e-12)


@pytest.mark.parametrize("per", ["all", "tensor", (gch.everything,)])
def test_infinite_max_norm_only_measures(per):
    g = draw(0)
    out, run = once(clip_by_norm(INF, per=per), g)
    assert out is g
    assert run.records["norm"] > 0


def test_infinite_max_norm_passes_what_is_not_finite():
    g = tensors(a=[1.0, INF], b=[NAN, 1.0])
    assert once(clip_by_norm(INF), g)[0] is g


def test_max_norm_may_be_a_schedule_that_reaches_infinity():
    link, g = clip_by_norm(lambda step: 1.0 if step < 2 else INF), tensors(a=[3.0, 4.0])
    assert once(link, g, step=0)[0]["a"].norm() == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(once(link, g, step=2)[0]["a"], g["a"])


@pytest.mark.parametrize("per", ["all", "tensor", (gch.everything,)])
@pytest.mark.parametrize("eps", [0, 1e-6])
def test_zero_gradients_stay_zero(per, eps):
    out, _ = once(clip_by_norm(1.0, per=per, eps=eps), tensors(a=[0.0, 0.0], b=0.0))
    assert torch.equal(out["a"], torch.zeros(2, dtype=DOUBLE))
    assert out["b"] == 0


@pytest.mark.parametrize("per", ["all", "tensor", (gch.everything,)])
def test_clip_differentiates_at_zero(per):
    g = gch.Tensors.of({"a": torch.zeros(2, dtype=DOUBLE, requires_grad=True)})
    limit = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    out, _ = once(clip_by_norm(limit, per=per, eps=0), g)
    slope = torch.autograd.grad(out["a"].sum(), [g["a"], limit])
    assert torch.equal(slope[0], torch.ones(2, dtype=DOUBLE))
    assert slope[1] == 0


def test_a_nan_is_not_clipped_away():
    out, run = once(clip_by_norm(1.0), tensors(a=[1.0, NAN], b=1.0))
    assert out["b"].isnan()
    assert math.isnan(run.records["norm"])


def test_a_list_of_selectors_is_kept_as_a_value():
    link = clip_by_norm(1.0, per=[gch.bias, gch.named("head.*")])
    assert link == clip_by_norm(1.0, per=(gch.bias, gch.named("head.*")))
    assert hash(link) == hash(clip_by_norm(1.0, per=(gch.bias, gch.named("head.*"))))
    assert repr(link) == 'clip_by_norm(1.0, per=(bias, named("head.*")))'
    assert gch.from_config(gch.to_config(link)) == link


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"max_norm": 0.0}, ValueError, r"clip_by_norm: max_norm must be in (0, inf], got 0.0."),
        ({"max_norm": 1.0, "eps": -1.0}, ValueError, "clip_by_norm: eps must be in [0, inf), got -1.0."),
        ({"max_norm": 1.0, "p": 0.0}, ValueError, "clip_by_norm: p must be above 0, or inf, got 0.0."),
        ({"max_norm": 1.0, "p": NAN}, ValueError, "clip_by_norm: p must be above 0, or inf, got nan."),
        ({"max_norm": 1.0, "p": "2"}, TypeError, "clip_by_norm: p must be a number above 0, or inf, got '2'."),
        (
            {"max_norm": 1.0, "per": "head.*"},
            ValueError,
            "clip_by_norm: per must be 'all', 'tensor' or a list of selectors, got 'head.*'. "
            'A name pattern is written per=[gch.named("head.*")].',
        ),
        (
            {"max_norm": 1.0, "per": gch.bias},
            TypeError,
            "clip_by_norm: per must be 'all', 'tensor' or a list of selectors, got bias. Write per=[bias].",
        ),
        (
            {"max_norm": 1.0, "per": []},
            ValueError,
            "clip_by_norm: per must be 'all', 'tensor' or a list of selectors, got an empty one.",
        ),
    ],
)
def test_clip_by_norm_refuses(arguments, kind, sentence):
    with pytest.raises(kind) as caught:
        clip_by_norm(**arguments)
    assert str(caught.value) == sentence


# clip_by_value, nan_to_num


def test_clip_by_value_bounds_inf_and_keeps_nan():
    out, _ = once(clip_by_value(2.0), tensors(a=[-INF, -3.0, 1.0, INF, NAN]))
    assert out["a"].tolist()[:4] == [-2.0, -2.0, 1.0, 2.0]
    assert out["a"][4].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("given", [{}, {"nan": 0.5, "posinf": 1e3, "neginf": -7.0}])
def test_nan_to_num_is_torchs(dtype, given):
    value = torch.tensor([1.0, NAN, INF, -INF, -2.0]).to(dtype)
    if dtype.is_complex:
        value = torch.complex(torch.tensor([NAN, 1.0, INF]), torch.tensor([-INF, NAN, 2.0]))
    out, _ = once(nan_to_num(**given), gch.Tensors.of({"a": value}))
    assert torch.equal(out["a"].to(dtype), torch.nan_to_num(value, **given))


@pytest.mark.parametrize(("value", "kind"), [(INF, ValueError), (NAN, ValueError), ("1", TypeError), (True, TypeError)])
def test_nan_to_num_refuses(value, kind):
    with pytest.raises(kind) as caught:
        nan_to_num(posinf=value)
    assert str(caught.value) == f"nan_to_num: posinf must be a finite number or None, got {value!r}."


@pytest.mark.parametrize("norm", [0.5, 2.0, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bad", "elsewhere"), [(INF, 0.0), (-INF, 0.0), (NAN, NAN)])
def test_what_is_not_finite_is_as_torch_has_it(bad, elsewhere, dtype, norm):
    """An inf becomes NaN and all else 0; a NaN makes NaN of all. An infinite bound lets everything be."""
    grads = {"a": torch.tensor([bad, 3.0], dtype=dtype), "b": torch.ones(1, dtype=dtype)}
    weights = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for w, g in zip(weights, grads.values(), strict=True):
        w.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(weights, 1.0, norm)
    g = gch.Tensors.of(grads)
    clip, measure = clip_by_norm(1.0, p=norm), clip_by_norm(INF, p=norm)
    u, _ = clip.update(g, clip.init(g), gch.Context())
    same = partial(torch.testing.assert_close, equal_nan=True, rtol=0, atol=0)
    same([*u.values()], [w.grad for w in weights])
    same(u["a"], torch.tensor([NAN, elsewhere], dtype=dtype))
    same(u["b"], torch.tensor([elsewhere], dtype=dtype))
    same([*measure.update(g, measure.init(g), gch.Context())[0].values()], [*grads.values()])
