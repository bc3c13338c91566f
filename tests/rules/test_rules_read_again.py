"""Faults that rules had: anchors at the wrong weights, numbers that stay broken, parts that are no matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradchain as gch

R = gch.rules


# what a link remembers of the weights is of those before the first update, not of those at bind

ANCHORED = {
    "madgrad": lambda: R.madgrad(1e-3),
    "cocob": lambda: R.cocob(),
    "lookahead": lambda: gch.chain(gch.sgd(0.1), R.lookahead(2)),
    "schedule_free": lambda: R.schedule_free_sgd(0.1),
    "asgd": lambda: gch.asgd(0.1, t0=0),
}


def stepped(updater, model, names=("weight",), steps=3):
    for _ in range(steps):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.full_like(parameter, 1e-3) if name in names else None
        updater.step()


@pytest.mark.parametrize("name", ANCHORED)
def test_weights_written_after_bind_are_where_a_rule_begins(name):
    """As if they had been there at bind."""
    late, early = nn.Linear(3, 2), nn.Linear(3, 2)
    updater = ANCHORED[name]().bind(late)
    with torch.no_grad():
        for model in (late, early):
            for parameter in model.parameters():
                parameter.fill_(7.0)
    other = ANCHORED[name]().bind(early)
    for one, model in ((updater, late), (other, early)):
        stepped(one, model)
    torch.testing.assert_close(late.weight, early.weight, rtol=0, atol=0)
    assert (late.weight - 7.0).abs().max() < 1.0


@pytest.mark.parametrize("name", ["lookahead", "schedule_free", "asgd"])
@pytest.mark.parametrize("steps", [1, 5])
def test_what_was_never_updated_is_evaluated_at_its_weights(name, steps):
    """A part that is frozen, and was loaded after bind."""
    model = nn.Linear(3, 2)
    updater = ANCHORED[name]().bind(model)
    with torch.no_grad():
        model.bias.fill_(7.0)
    stepped(updater, model, steps=steps)
    with updater.averaged():
        assert bool((model.bias == 7.0).all())


# norms that are not finite, or zero, leave nothing behind


def fed(link, gradients):
    """The updates of a link that meets these gradients of two parameters."""
    params = gch.Tensors.of({"a": torch.ones(4, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)})
    state, out = link.init(params), []
    for t, (a, b) in enumerate(gradients):
        given = {"a": torch.full((4,), a, dtype=torch.float64), "b": torch.full((3,), b, dtype=torch.float64)}
        u, state = link.update(gch.Tensors.of(given), state, gch.Context(params, step=t))
        out.append(u)
    return out, state


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_one_parameter_that_is_not_finite_spoils_no_other(bad, at):
    """Of AdaGC, whose first bound is one norm over all: in the warm-up, at the very first gradient too."""
    good = fed(R.clip_by_ema_norm(1.05, 1.0, 0.9, 5), [(0.1, 0.2)] * 40)[0]
    out, state = fed(R.clip_by_ema_norm(1.05, 1.0, 0.9, 5), [(bad if t == at else 0.1, 0.2) for t in range(40)])
    assert all(0 < value < 1.0 for value in state.gamma.values())
    torch.testing.assert_close(out[-1]["b"], good[-1]["b"], rtol=1e-2, atol=0)


def test_zero_gradients_at_first_are_no_average():
    """As of a LoRA matrix beside one that is zero: afterwards it learns."""
    out, state = fed(R.clip_by_ema_norm(1.05, 1.0, 0.9, 5), [(0.1, 0.0 if t < 20 else 0.2) for t in range(60)])
    assert state.gamma["b"] > 0.1
    assert bool((out[-1]["b"] > 0.1).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_statistics_of_zclip_have_no_norm_that_is_not_finite(bad):
    link = R.clip_by_zscore(warmup=2)
    _, state = fed(link, [(bad, 1.0), (1.0, 0.0), (1.0, 0.0)])
    assert (state.count, state.mean) == (2, 2.0)
    _, before = fed(link, [(1.0, 0.0), (1.1, 0.0), (0.9, 0.0)])
    _, after = fed(link, [(1.0, 0.0), (1.1, 0.0), (0.9, 0.0), (bad, 0.0), (bad, 1.0)])
    assert (after.count, after.mean, after.var) == (before.count, before.mean, before.var)


def test_a_snapshot_without_decay_forgets_a_nan():
    said = []
    link = gch.chain(R.snapshot("x", lambda u: u.norm()), gch.scale(-1.0))
    model = nn.Linear(1, 1, bias=False)
    updater = link.bind(model)
    for value in (1.0, math.nan, 3.0):
        model.weight.grad = torch.full((1, 1), value)
        updater.step()
        said.append(updater.metrics["snapshot.x"])
    assert said[0] == 1.0 and math.isnan(said[1]) and said[2] == 3.0


# parts of a matrix


@pytest.mark.parametrize("split", [3, (8, 40)])
@pytest.mark.parametrize("factor", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("rule", [R.scale_by_muon, R.scale_by_normuon, R.scale_by_adamuon], ids=lambda r: r.__name__)
def test_a_split_matrix_steps_as_far_as_its_parts_alone(rule, factor, split):
    torch.manual_seed(0)
    g = torch.randn(48, 16, dtype=torch.float64)
    params = gch.Tensors.of({"qkv": torch.zeros(48, 16, dtype=torch.float64)})
    given = {"shape_factor": factor, "dtype": None, "ns_steps": 12, "ns_coefficients": "polar_express"}
    link = rule(split=[(gch.named("qkv"), split)], **given)
    whole, _ = link.update(gch.Tensors.of({"qkv": g}), link.init(params), gch.Context(params, step=0))
    rows = [16] * 3 if split == 3 else list(split)
    parts = {f"p{i}": part.clone() for i, part in enumerate(g.split(rows))}
    alone, zeros = rule(**given), gch.Tensors.of({n: torch.zeros_like(p) for n, p in parts.items()})
    single, _ = alone.update(gch.Tensors.of(parts), alone.init(zeros), gch.Context(zeros, step=0))
    size = sum(float(single[n].square().sum()) for n in parts) ** 0.5
    assert float(whole["qkv"].norm()) == pytest.approx(size, rel=1e-5)


# what a link holds is checked at bind, and rows are refused where a rule needs whole tensors


def test_a_link_that_may_hold_is_refused_inside():
    for held in (gch.skip_nonfinite(), gch.accumulate(2)):
        with pytest.raises((TypeError, ValueError), match=r"drop_radial|outermost chain"):
            gch.chain(R.drop_radial(held), gch.scale_by_learning_rate(0.1)).bind(nn.Linear(3, 2))


@pytest.mark.parametrize("make", [R.orthogonalize_gradient, R.correct_gradient], ids=lambda m: m.__name__)
def test_rows_alone_are_refused(make):
    with pytest.raises(ValueError, match="it needs numbers of whole weights"):
        gch.chain(make(), gch.sgd(0.1)).bind(nn.Embedding(6, 4, sparse=True))
