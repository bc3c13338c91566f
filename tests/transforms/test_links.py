"""What the table of cases cannot say of a link: groups, windows of time, exceptions, other people's functions."""

import math

import pytest
import torch

import gradchain as gch
from gradchain import optimizers
from gradchain.combinators import freeze, skip_nonfinite
from gradchain.core.context import Run
from gradchain.transforms import (
    add_decayed_weights,
    clip_by_norm,
    clip_by_value,
    nan_to_num,
    project,
    sam,
    scale_by_lion,
    stateless,
    trace,
)

INF, NAN = math.inf, math.nan
DOUBLE = torch.float64
SHAPES = {"body.weight": (3, 4), "body.bias": (3,), "head.weight": (2, 3), "scale": ()}


def draw(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return gch.Tensors.of({n: size * torch.randn(s, dtype=DOUBLE, generator=generator) for n, s in SHAPES.items()})


def tensors(**entries):
    return gch.Tensors.of({n: torch.as_tensor(v, dtype=DOUBLE) for n, v in entries.items()})


def once(link, updates, **context):
    """One update from a fresh state: what comes out, and what was recorded."""
    params = context.pop("params", updates)
    run = Run(params=params, clocks={"step": context.pop("step", 0)}, **context)
    out, _ = link.update(updates, link.init(params), gch.Context.of(run))
    return out, run


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=0, check_dtype=False)


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
        ({"max_norm": 1.0, "p": 0.5}, ValueError, "clip_by_norm: p must be at least 1, or inf, got 0.5."),
        ({"max_norm": 1.0, "p": NAN}, ValueError, "clip_by_norm: p must be at least 1, or inf, got nan."),
        ({"max_norm": 1.0, "p": "2"}, TypeError, "clip_by_norm: p must be a number of at least 1, or inf, got '2'."),
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
        run = Run(params=GOOD)
        out, state = link.update(g, state, gch.Context.of(run).enter("skip_nonfinite"))
        assert (out is None) == (g is BAD)
        assert run.held == (("skip_nonfinite", "nonfinite") if g is BAD else None)
        assert ("'b'" in run.detail) == (g is BAD)
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
        "skip_nonfinite: at most 1 updates in a row may have inf or NaN, got 2; the first offending parameter is 'b'. "
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
    run = Run(params=GOOD, flushing=True)
    out, state = skip_nonfinite().update(empty, skip_nonfinite().init(GOOD).replace(consecutive=2), gch.Context.of(run))
    assert out is empty
    assert state.consecutive == 2


def test_skip_nonfinite_refuses_a_fraction():
    with pytest.raises(ValueError, match=r"skip_nonfinite: max_consecutive must be an integer in \[0, inf\], got 1.5"):
        skip_nonfinite(1.5)


# sam


def quadratic(seed):
    """Half w·A·w over two parameters together, and what `ctx.evaluate` gives of it."""
    root = torch.randn(5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    a = root @ root.T
    seen = []

    def gradient(w):
        flat = a @ torch.cat([w["x"], w["y"]])
        return gch.Tensors.of({"x": flat[:2], "y": flat[2:]})

    def evaluate(weights):
        seen.append(weights)
        return None, gradient(weights)

    return a, gradient, evaluate, seen


def test_sam_is_the_papers_formula():
    a, gradient, evaluate, seen = quadratic(0)
    w = tensors(x=[1.0, -2.0], y=[0.5, 3.0, 0.0])
    flat = torch.cat([w["x"], w["y"]])
    slope = a @ flat
    out, _ = sam(0.1).update(gradient(w), sam(0.1).init(w), gch.Context(w, evaluate=evaluate))
    expected = a @ (flat + 0.1 * slope / slope.norm())
    torch.testing.assert_close(torch.cat([out["x"], out["y"]]), expected, rtol=1e-12, atol=0)
    assert len(seen) == 1
    assert torch.equal(w["x"], torch.tensor([1.0, -2.0], dtype=DOUBLE))


def test_sam_at_a_zero_gradient_looks_at_the_weights_themselves():
    _, gradient, evaluate, seen = quadratic(0)
    w = tensors(x=[0.0, 0.0], y=[0.0, 0.0, 0.0])
    out, _ = sam().update(gradient(w), sam().init(w), gch.Context(w, evaluate=evaluate))
    assert torch.equal(seen[0]["x"], w["x"])
    assert torch.equal(out["y"], w["y"])


def test_sam_leaves_absent_parameters_where_they_are_and_absent():
    _, gradient, evaluate, seen = quadratic(0)
    w = tensors(x=[1.0, -2.0], y=[0.5, 3.0, 0.0])
    out, _ = sam().update(gradient(w).select(["y"]), sam().init(w), gch.Context(w, evaluate=evaluate))
    assert list(out) == ["y"]
    assert torch.equal(seen[0]["x"], w["x"])
    assert not torch.equal(seen[0]["y"], w["y"])


def test_sam_without_a_closure_says_what_to_do():
    w = tensors(x=[1.0])
    with pytest.raises(RuntimeError, match=r"updater.update\(closure\)"):
        sam().update(w, sam().init(w), gch.Context(w))


# trace, lion


def test_moments_are_used_unrounded_and_stored_in_their_dtype():
    g = gch.Tensors.of({"a": torch.tensor([1.0 + 2**-12])})
    momentum, lion = trace(0.9, accumulator_dtype=torch.bfloat16), scale_by_lion(mu_dtype=torch.bfloat16)
    for link, field in ((momentum, "trace"), (lion, "mu")):
        out, state = link.update(g, link.init(g), gch.Context(g))
        assert getattr(state, field)["a"].dtype == torch.bfloat16
        assert out["a"].dtype == torch.float32
    out, _ = momentum.update(g, momentum.init(g), gch.Context(g))
    assert torch.equal(out["a"], g["a"])


# aliases


@pytest.mark.parametrize(
    ("made", "written"),
    [
        (optimizers.sgd(0.1), "chain(scale_by_learning_rate(0.1))"),
        (
            optimizers.sgd(0.1, 0.9, True, 1e-4),
            "chain(add_decayed_weights(0.0001), trace(0.9, nesterov=True), scale_by_learning_rate(0.1))",
        ),
        (optimizers.adam(1e-3, eps_root=1e-9), "chain(scale_by_adam(eps_root=1e-09), scale_by_learning_rate(0.001))"),
        (optimizers.adamw(1e-3), "chain(scale_by_adam(), add_decayed_weights(0.01), scale_by_learning_rate(0.001))"),
        (
            optimizers.adamw(1e-3, mask=gch.min_ndim(2)),
            "chain(scale_by_adam(), masked(add_decayed_weights(0.01), min_ndim(2)), scale_by_learning_rate(0.001))",
        ),
        (
            optimizers.nadamw(1e-3, weight_decay=0.0),
            "chain(scale_by_adam(nesterov=True), scale_by_learning_rate(0.001))",
        ),
        (optimizers.lion(1e-4), "chain(scale_by_lion(), add_decayed_weights(0.001), scale_by_learning_rate(0.0001))"),
    ],
)
def test_an_alias_is_the_chain_one_would_write(made, written):
    assert repr(made) == written
    assert gch.from_config(gch.to_config(made)) == made


@pytest.mark.parametrize(
    ("tx", "optimizer", "arguments"),
    [
        (optimizers.sgd(0.1), torch.optim.SGD, {"lr": 0.1}),
        (optimizers.sgd(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (
            optimizers.sgd(0.1, 0.9, True, 0.01),
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ),
        (optimizers.adam(0.1), torch.optim.Adam, {"lr": 0.1}),
        (optimizers.adam(0.1, 0.8, 0.9, 1e-3), torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
        (optimizers.adamw(0.1), torch.optim.AdamW, {"lr": 0.1}),
        (optimizers.adamw(0.1, weight_decay=0.3), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
        (
            optimizers.nadamw(0.1, weight_decay=0.3),
            torch.optim.NAdam,
            {"lr": 0.1, "weight_decay": 0.3, "decoupled_weight_decay": True, "momentum_decay": 1e9},
        ),
    ],
)
def test_an_alias_equals_torch_over_ten_steps(tx, optimizer, arguments):
    weights = start = draw(0)
    twins = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    peer = optimizer(list(twins.values()), **arguments)
    state = tx.init(weights)
    for step in range(10):
        g = draw(100 + step)
        for name, twin in twins.items():
            twin.grad = g[name].clone()
        peer.step()
        updates, state = tx.update(g, state, gch.Context(weights, step=step))
        weights = gch.apply_updates(weights, updates)
    for name, twin in twins.items():
        # torch keeps NAdam's product of momenta in float32
        rtol = 2e-6 if optimizer is torch.optim.NAdam else 1e-11
        torch.testing.assert_close(weights[name] - start[name], twin.detach() - start[name], rtol=rtol, atol=1e-14)


def test_momentum_and_decay_take_schedules():
    tx = optimizers.sgd(0.1, momentum=lambda step: 0.5 + 0.1 * step, weight_decay=lambda step: 0.01 * step)
    w, g = tensors(a=[1.0]), tensors(a=[2.0])
    state, moved, slope = tx.init(w), 1.0, 0.0
    for step in range(3):
        updates, state = tx.update(g, state, gch.Context(w, step=step))
        w = gch.apply_updates(w, updates)
        slope = 2.0 + 0.01 * step * moved + (0.5 + 0.1 * step) * slope
        moved -= 0.1 * slope
    assert w["a"].item() == pytest.approx(moved, rel=1e-12)
