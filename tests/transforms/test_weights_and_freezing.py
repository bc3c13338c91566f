"""Links that own weights, take a function, freeze or skip: windows of time, exceptions, other people's functions."""

import math

import pytest
import torch
from one_link import draw, once, same, tensors

import gradchain as gch
from gradchain import optimizers
from gradchain.combinators import freeze, skip_nonfinite
from gradchain.core.step import Notes, Step
from gradchain.transforms import (
    add_decayed_weights,
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


# freeze


def test_freeze_takes_members_out_until():
    g, head = draw(0), gch.named("head.*")
    for step, names in ((0, 3), (1, 3), (2, 4), (3, 4)):
        out, _ = once(freeze(head, until=2), g, step=step)
        assert len(out) == names
        assert ("head.weight" in out) == (step >= 2)
    assert "head.weight" not in once(freeze(head), g, step=10**9)[0]


def test_frozen_parameters_keep_weight_moments_and_count():
    params = draw(0)
    tx = gch.chain(freeze(gch.named("head.*"), until=2), optimizers.adamw(0.1))
    state, weights = tx.init(params), params
    for step in range(3):
        updates, state = tx.update(draw(step), state, gch.Context(weights, step=step))
        weights = gch.apply_updates(weights, updates)
        adam = state.links["scale_by_adam"]
        assert adam.count.of("head.weight") == max(0, step - 1)
        assert adam.count.of("scale") == step + 1
        assert torch.equal(weights["head.weight"], params["head.weight"]) == (step < 2)
        assert bool(adam.mu["head.weight"].any()) == (step == 2)


def test_the_three_meanings_of_frozen_differ_as_documented():
    until, head = 3, gch.named("head.*")

    def steps(*links):
        weights = draw(0)
        tx = gch.chain(*links)
        state = tx.init(weights)
        for step in range(6):
            updates, state = tx.update(draw(step), state, gch.Context(weights, step=step))
            weights = gch.apply_updates(weights, updates)
        return weights["head.weight"]

    def twin(kind):
        weight = torch.nn.Parameter(draw(0)["head.weight"].clone())
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for step in range(6):
            frozen = step < until
            optimizer.param_groups[0]["lr"] = 0.0 if frozen and kind == "rate" else 0.1
            weight.grad = draw(step)["head.weight"].clone()
            if frozen and kind == "zero":
                weight.grad.zero_()
            if frozen and kind == "absent":
                weight.grad = None
            optimizer.step()
        return weight.detach()

    off = gch.masked(gch.scale(lambda step: float(step >= until)), head)
    rule = gch.scale_by_adam(), add_decayed_weights(0.01)
    lr = gch.scale_by_learning_rate(0.1)
    found = {
        "absent": steps(freeze(head, until=until), *rule, lr),
        "rate": steps(*rule, off, lr),
        "zero": steps(off, *rule, lr),
    }
    for kind, weight in found.items():
        torch.testing.assert_close(weight, twin(kind), rtol=1e-12, atol=0)
    assert not torch.allclose(found["absent"], found["rate"])
    assert not torch.allclose(found["absent"], found["zero"])


@pytest.mark.parametrize(
    ("until", "kind", "sentence"),
    [
        (-1, ValueError, "freeze: until must be at least 0, got -1."),
        (1.5, TypeError, "freeze: until must be a number of applied updates or None, got 1.5."),
        (True, TypeError, "freeze: until must be a number of applied updates or None, got True."),
    ],
)
def test_freeze_refuses(until, kind, sentence):
    with pytest.raises(kind) as caught:
        freeze(gch.bias, until=until)
    assert str(caught.value) == sentence


# skip_nonfinite

GOOD, BAD = tensors(a=[1.0, 2.0], b=3.0), tensors(a=[1.0, 2.0], b=INF)


def test_skip_nonfinite_counts_in_a_row_and_forgets():
    link = skip_nonfinite(2)
    state, counts = link.init(GOOD), []
    for g in (BAD, BAD, GOOD, BAD, GOOD):
        step = Step(params=GOOD)
        notes = Notes(step)
        out, state = link.update(g, state, gch.Context.of(step, notes).enter("skip_nonfinite"))
        assert (out is None) == (g is BAD)
        assert notes.held == (("skip_nonfinite", "nonfinite") if g is BAD else None)
        assert ("'b'" in notes.detail) == (g is BAD)
        counts.append(state.consecutive)
    assert counts == [1, 2, 0, 1, 0]


def test_skip_nonfinite_holds_the_links_behind_it():
    tx = gch.chain(skip_nonfinite(), gch.scale_by_adam())
    state = tx.init(GOOD)
    out, after = tx.update(BAD, state, gch.Context(GOOD, step=0))
    assert out is None
    assert after.links["scale_by_adam"] is state.links["scale_by_adam"]


def test_skip_nonfinite_raises_after_too_many_in_a_row():
    link, ctx = skip_nonfinite(1), gch.Context(GOOD)
    _, state = link.update(BAD, link.init(GOOD), ctx)
    with pytest.raises(FloatingPointError) as caught:
        link.update(BAD, state, ctx)
    assert str(caught.value) == (
        "skip_nonfinite: at most 1 updates in a row may have inf or NaN, got 2; the updates have inf or NaN, the first "
        "offending parameter is 'b'. "
        "Look at the loss and the data of this step, lower the learning rate, or raise max_consecutive."
    )


def test_skip_nonfinite_raises_at_the_first_or_never():
    with pytest.raises(FloatingPointError, match="'a'"):
        once(skip_nonfinite(0), tensors(a=[NAN], b=INF))
    link = skip_nonfinite(INF)
    state = link.init(GOOD)
    for _ in range(50):
        _, state = link.update(BAD, state, gch.Context(GOOD))
    assert state.consecutive == 50


def test_skip_nonfinite_lets_a_flush_pass():
    empty = GOOD.select(())
    ctx = gch.Context.of(Step(params=GOOD, flushing=True))
    out, state = skip_nonfinite().update(empty, skip_nonfinite().init(GOOD).replace(consecutive=2), ctx)
    assert out is empty
    assert state.consecutive == 2


def test_skip_nonfinite_refuses_a_fraction():
    with pytest.raises(ValueError, match=r"skip_nonfinite: max_consecutive must be an integer in \[0, inf\], got 1.5"):
        skip_nonfinite(1.5)
