"""amp_scale beside torch.amp.GradScaler, and when it does nothing."""

import warnings

import pytest
import torch
from little import data, distance, loss_of, net, same, weights
from torch import nn

import gradchain as gch


def overflowing(loss, step, bad):
    """`loss`, or in chosen steps one whose gradient is infinite."""
    return loss * torch.inf if step in bad else loss


@pytest.mark.parametrize(("growth", "backoff", "interval", "init"), [
    (2.0, 0.5, 4, 2.0**10), (4.0, 0.25, 1, 1.0), (2.0, 0.5, 7, 2.0**126), (1.5, 0.75, 2, 3.0)
])  # fmt: skip
def test_equals_grad_scaler_step_by_step(growth, backoff, interval, init):
    """Weights, scale, growth tracker, skips and unscaled gradients equal GradScaler's over 120 steps with overflows."""
    generator = torch.Generator().manual_seed(interval)
    bad = {i for i in range(120) if torch.rand((), generator=generator) < 0.15} | {5, 6, 7}
    ours, theirs = net(dtype=torch.float32), net(dtype=torch.float32)
    unscaled = {}

    def look(g, w):
        unscaled.update({n: g[n].clone() for n in g})
        return g

    updater = gch.chain(
        gch.amp_scale(init, growth, backoff, interval, always=True), gch.stateless(look), gch.sgd(0.01)
    ).bind(ours)
    scaler = torch.amp.GradScaler("cpu", init, growth, backoff, interval)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01)
    exact = growth in (2.0, 4.0)
    for i, rows in enumerate(data(120, dtype=torch.float32)):
        optimizer.zero_grad()
        scaler.scale(overflowing(loss_of(theirs, rows), i, bad)).backward()
        scaler.unscale_(optimizer)
        before = scaler.get_scale()
        true = {n: p.grad.clone() for n, p in theirs.named_parameters()}
        scaler.step(optimizer)
        scaler.update()
        info = updater.update(overflowing(loss_of(ours, rows), i, bad))
        assert info["scale"] == pytest.approx(before, rel=0 if exact else 1e-5)
        finite = all(g.isfinite().all() for g in true.values())
        assert info.reason == ("applied" if finite else "overflow")
        state = updater.state_dict()["links"]["amp_scale"]
        theirs_now = scaler.state_dict()
        assert state["scale"] == pytest.approx(theirs_now["scale"], rel=0 if exact else 1e-5)
        assert state["growth_tracker"] == theirs_now["_growth_tracker"]
        if finite and exact:
            assert same(unscaled, true)
        assert distance(ours, theirs) < 1e-7
        theirs.load_state_dict(ours.state_dict())
    assert 10 < updater.num_skipped < 110


def test_static_scale():
    """dynamic=False keeps its scale; an overflow still skips the update."""
    model = net()
    updater = gch.chain(gch.amp_scale(16.0, dynamic=False, growth_interval=1, always=True), gch.sgd(0.1)).bind(model)
    reasons = [updater.update(overflowing(loss_of(model, r), i, {1})).reason for i, r in enumerate(data(4))]
    assert reasons == ["applied", "overflow", "applied", "applied"]
    assert updater.state_dict()["links"]["amp_scale"]["scale"] == 16.0


def test_an_overflow_advances_nothing_else():
    """On overflow the schedule, Adam's count, the average and `step` stay; `micro` and num_skipped go on."""
    model = net()
    updater = gch.chain(
        gch.amp_scale(16.0, always=True), gch.adam(gch.linear(0.1, 0.0, 10)), gch.average_params(0.9)
    ).bind(model)
    rows = data(2)
    updater.update(loss_of(model, rows[0]))
    before, kept = updater.state_dict(), weights(model)
    info = updater.update(loss_of(model, rows[1]) * torch.inf)
    assert (info.applied, info.reason, bool(info)) == (False, "overflow", False)
    after = updater.state_dict()
    assert after["clocks"] == {"step": 1, "micro": 2} and updater.num_skipped == 1
    assert after["links"].pop("amp_scale") == {"scale": 8.0, "growth_tracker": 0}
    before["links"].pop("amp_scale")
    assert same(before["links"], after["links"]) and same(kept, weights(model))
    assert updater.hyperparams()["scale_by_learning_rate.learning_rate"] == pytest.approx(0.09)


def test_a_nan_loss_is_an_overflow_where_it_is_active_only():
    """With amp_scale active a NaN loss skips the update; inactive it does not gate, so the loss is refused."""
    model = net(dtype=torch.float32)
    active = gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(model, autocast=torch.float16)
    assert active.update(loss_of(model, data(1, dtype=torch.float32)[0]) * torch.nan).reason == "overflow"
    inactive = gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(model, autocast=torch.bfloat16)
    with pytest.raises(FloatingPointError, match="update: loss is nan"):
        inactive.update(loss_of(model, data(1, dtype=torch.float32)[0]) * torch.nan)


def test_inactive_under_bfloat16():
    """Under bfloat16 autocast amp_scale does nothing: the loss is not scaled, the state stays, weights are the same."""
    with_it, without = nn.Linear(3, 2), nn.Linear(3, 2)
    without.load_state_dict(with_it.state_dict())
    a = gch.chain(gch.amp_scale(growth_interval=1), gch.sgd(0.1)).bind(with_it, autocast=torch.bfloat16)
    b = gch.sgd(0.1).bind(without, autocast=torch.bfloat16)
    for rows in data(3, dtype=torch.float32):
        for model, updater in ((with_it, a), (without, b)):
            with updater.context():
                loss = loss_of(model, rows)
            updater.backward(loss.float())
        assert torch.equal(with_it.weight.grad, without.weight.grad)
        a.step(), b.step()
    assert same(weights(with_it), weights(without))
    assert a.state_dict()["links"]["amp_scale"] == {"scale": 65536.0, "growth_tracker": 0}


def test_active_for_a_float16_parameter():
    """A float16 parameter makes amp_scale active without any autocast."""
    weight = torch.ones(3, dtype=torch.float16, requires_grad=True)
    updater = gch.chain(gch.amp_scale(8.0), gch.sgd(0.1)).bind({"w": weight})
    updater.backward((weight * 2).sum())
    assert torch.equal(weight.grad, torch.full((3,), 16.0, dtype=torch.float16))


def test_warnings_at_bind():
    """float16 autocast without amp_scale, and amp_scale without float16, are said once; sensible chains are silent."""
    with pytest.warns(UserWarning, match=r"bind: float16 autocast without amp_scale\(\): small gradients underflow to"):
        gch.sgd(0.1).bind(net(), autocast=torch.float16)
    with pytest.warns(UserWarning, match="bind: amp_scale does nothing: neither the autocast nor a parameter is float"):
        gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(net(), autocast=torch.float16)
        gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(net(), autocast=torch.bfloat16)
        gch.chain(gch.amp_scale(always=True), gch.sgd(0.1)).bind(net())
        gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(net(dtype=torch.float16))
        gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(net(dtype=torch.bfloat16))  # one recipe for both


@pytest.mark.parametrize("backoff", [0.5, 1e-300])
@pytest.mark.parametrize("init", [65536.0, 3e38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_scale_has_a_floor(backoff, init, dtype):
    """However many overflows in a row: one over the scale is a number in float32, and the next good step is right."""
    tiny = torch.finfo(torch.float32).tiny
    weight = torch.ones(2, dtype=dtype, requires_grad=True)
    tx = gch.chain(gch.amp_scale(init, backoff_factor=backoff, always=True), gch.sgd(1.0))
    updater = tx.bind({"w": weight})
    for _ in range(1100 if backoff == 0.5 else 300):
        updater.backward(weight.sum())
        weight.grad.fill_(torch.inf)
        assert not updater.step()
    scale = updater.state_dict()["links"]["amp_scale"]["scale"]
    assert scale == tiny and torch.tensor(scale).reciprocal().isfinite()
    assert updater.update(weight.sum())
    # in float16 the scaled gradient is zero
    assert weight.tolist() == ([1.0, 1.0] if dtype is torch.float16 else [0.0, 0.0])


def test_a_checkpoint_with_a_scale_of_zero_is_refused():
    """It would divide by zero. strict=False keeps the scale there is, and the run goes on."""
    weight = torch.ones(2, requires_grad=True)
    updater = gch.chain(gch.amp_scale(always=True), gch.sgd(1.0)).bind({"w": weight})
    saved = updater.state_dict()
    saved["links"]["amp_scale"]["scale"] = 0.0
    with pytest.raises(ValueError, match=r"amp_scale.scale: expected a number in \(0, inf\), found 0.0. strict=False"):
        updater.load_state_dict(saved)
    assert updater.load_state_dict(saved, strict=False).mismatched
    assert updater.update(weight.sum()) and weight.tolist() == [0.0, 0.0]


def test_a_scale_at_its_floor_grows_again():
    """A run that overflowed for long recovers, under each executor."""
    weight = torch.ones(2, requires_grad=True)
    updater = gch.chain(gch.amp_scale(growth_interval=1, always=True), gch.sgd(0.0)).bind({"w": weight})
    for _ in range(200):
        updater.update((weight * torch.inf).sum())
    for _ in range(130):
        assert updater.update(weight.sum())
    assert updater.metrics["scale"] == 2.0**3


def test_a_loss_that_no_link_scales_keeps_its_graph():
    """An amp_scale without anything in float16 is not there: nothing is multiplied by 1."""
    model = net()
    with pytest.warns(UserWarning, match="amp_scale"):
        updater = gch.chain(gch.amp_scale(), gch.sgd(0.1)).bind(model)
    loss = loss_of(model, data(1)[0])
    assert updater._bound.scaled(loss, None) is loss
