"""Links that own weights or take a function: absent entries, arguments that are counted, what is refused."""

import math

import pytest
import torch
from one_link import draw, once, same, tensors

import gradchain as gch
from gradchain.transforms import (
    project,
    stateless,
)

INF, NAN = math.inf, math.nan


# project


def test_project_owns_the_weights_of_members_and_passes_the_others():
    params, u = draw(0), draw(1)
    out, _ = once(project(lambda w: w.clamp(-0.1, 0.1), gch.named("head.*")), u, params=params)
    assert isinstance(out, gch.Weights)
    new = gch.apply_updates(params, out)
    assert torch.equal(new["head.weight"], (params["head.weight"] + u["head.weight"]).clamp(-0.1, 0.1))
    assert torch.equal(new["body.weight"], params["body.weight"] + u["body.weight"])


def test_project_gives_the_old_weights_to_a_function_of_two():
    params, u = draw(0), draw(1)
    out, _ = once(project(lambda new, old: torch.maximum(new, old)), u, params=params)
    for name in params:
        assert torch.equal(out.tensors[name], torch.maximum(params[name] + u[name], params[name]))


def test_project_after_weights_and_with_absent_entries():
    params, u = draw(0), draw(1).select(["head.weight", "scale"])
    link = gch.chain(project(lambda w: w.clamp(min=0.0)), project(lambda w: w.clamp(max=0.5), gch.named("head.*")))
    out, _ = once(link, u, params=params)
    assert list(out.tensors) == ["head.weight", "scale"]
    assert torch.equal(out.tensors["head.weight"], (params["head.weight"] + u["head.weight"]).clamp(0.0, 0.5))
    assert torch.equal(out.tensors["scale"], (params["scale"] + u["scale"]).clamp(min=0.0))
    assert torch.equal(gch.apply_updates(params, out)["body.bias"], params["body.bias"])


def test_project_of_absent_members_only():
    params, u = draw(0), draw(1).select(["scale"])
    out, _ = once(project(torch.relu, gch.named("head.*")), u, params=params)
    assert list(out.tensors) == ["scale"]


@pytest.mark.parametrize(
    "fn",
    [torch.relu, torch.nn.functional.normalize, lambda w, low=0.0: w, lambda *w: w[0]],
    ids=["builtin", "normalize", "optional", "variadic"],
)
def test_project_counts_required_arguments_only(fn):
    w = tensors(a=[[3.0, 4.0]])
    out, _ = once(project(fn), tensors(a=[[0.0, 0.0]]), params=w)
    assert torch.equal(out.tensors["a"], fn(w["a"]))


def test_project_refuses_a_function_of_three_and_a_selector_of_nothing():
    with pytest.raises(TypeError, match=r"project: fn must be called as fn\(new\) or fn\(new, old\), got .*\(a, b"):
        project(lambda a, b, c: a)
    with pytest.raises(TypeError, match=r"project: fn must be a function, .* got 3"):
        project(3)
    with pytest.raises(TypeError, match="project: a selector must be a function"):
        project(torch.relu, "head.*")
    with pytest.raises(ValueError, match="matches"):
        project(torch.relu, gch.named("hed.*")).init(draw(0))


# stateless


def test_stateless_takes_functions_of_two_and_of_three():
    params, g = draw(0), draw(1)
    two, _ = once(stateless(lambda updates, w: updates + 2.0 * w), g, params=params)
    three, _ = once(stateless(lambda updates, w, ctx: updates + ctx.step * w), g, params=params, step=2)
    same(two, g + 2.0 * params)
    same(three, two)


def test_stateless_does_not_fill_an_optional_third():
    out, _ = once(stateless(lambda g, w, ctx=None: g if ctx is None else None), draw(0))
    same(out, draw(0))


@pytest.mark.parametrize(
    "fn", [lambda g: g, lambda a, b, c, d: a, lambda a, b, *, c: a], ids=["one", "four", "keyword"]
)
def test_stateless_refuses_other_functions(fn):
    with pytest.raises(TypeError, match=r"stateless: fn must be called as fn\(updates, params\) or fn\(up"):
        stateless(fn)


def test_stateless_refuses_what_is_no_tensors():
    with pytest.raises(TypeError, match=r"stateless: .* must return Tensors, got NoneType. Does it lack a return\?"):
        once(stateless(lambda g, w: None), draw(0))
    with pytest.raises(TypeError, match=r"must return Tensors, got dict. Tensors come from arithmetic or updates.map"):
        once(stateless(lambda g, w: dict(g)), draw(0))


def test_stateless_without_params_says_so():
    with pytest.raises(RuntimeError, match=r"Context.params was not given"):
        stateless(lambda g, w: g).update(draw(0), stateless(lambda g, w: g).init(draw(0)), gch.Context())
