"""sam, stored moments and aliases: what the table of cases cannot say of them."""

import pytest
import torch
from one_link import DOUBLE, draw, tensors

import gradchain as gch
from gradchain import optimizers
from gradchain.transforms import (
    sam,
    scale_by_lion,
    trace,
)

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
