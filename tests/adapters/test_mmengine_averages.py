"""average_params against MMEngine's averaged models, driven as its EMAHook drives them."""

import pytest
import torch
from mmengine_training import averaged_model, exp_momentum_ema
from torch import nn

import gradchain as gch

STEPS = 40


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def after(begin, decay):
    """A decay that begins at an update."""
    return gch.join((0, begin, gch.constant(0.0)), (begin, None, decay)) if begin else decay


def copied_first(decay):
    """A decay of 0 at first: MMEngine's first averaging copies."""
    return gch.join((0, 1, gch.constant(0.0)), (1, None, gch.constant(1.0))) * decay


KINDS = {
    "exponential": (lambda m, **o: averaged_model.ExponentialMovingAverage(m, momentum=0.1, **o), gch.constant(0.9)),
    "annealing": (
        lambda m, **o: averaged_model.MomentumAnnealingEMA(m, momentum=0.1, gamma=5, **o),
        gch.schedules.ema_warmup(0.9, 5),
    ),
    "exp-momentum": (
        lambda m, **o: exp_momentum_ema()(m, momentum=0.1, gamma=7, **o),
        gch.schedules.ema_exponential(0.9, 7),
    ),
    "mean": (lambda m, **o: averaged_model.StochasticWeightAverage(m, **o), "mean"),
}  # fmt: skip


@pytest.mark.parametrize("buffers", ["keep", "average"])
@pytest.mark.parametrize("begin", [0, 6])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_mmengine(kind, interval, begin, buffers):
    """Weights and buffers after every iteration, at 1e-12: with an interval, a begin, and buffers averaged or not."""
    make, decay = KINDS[kind]
    model = net()
    if decay != "mean":
        decay = after(begin, copied_first(decay))
    link = gch.average_params(decay, start=begin, every=interval, buffers=buffers)
    updater = gch.chain(gch.sgd(0.1, momentum=0.9), link).bind(model)
    theirs = make(model, interval=interval, update_buffers=buffers == "average")
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for t in range(STEPS):
        rows = torch.randn(8, 3, generator=generator).double()
        updater.update(model(rows).square().mean())
        if t >= begin:  # the hook: before it a copy of everything, later the model's own rule
            theirs.update_parameters(model)
        else:
            theirs.module.load_state_dict(model.state_dict())
        ours, expected = updater.averages(), theirs.module.state_dict()
        assert set(ours) == set(expected)
        for name, value in expected.items():
            # averaging buffers, MMEngine leaves counters at their first copy; ours are those of the last averaging
            if value.is_floating_point() or buffers == "keep":
                torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-14)
        moved += bool((ours["0.weight"] - model[0].weight).abs().max() > 1e-4)
    assert moved > 20


def test_an_update_is_a_window_here_and_an_iteration_there():
    """On purpose: inside a window of accumulation the weights do not move, and our average does not either."""
    model = net()
    updater = gch.chain(gch.accumulate(4), gch.sgd(0.1), gch.average_params(0.9, start=1)).bind(model)
    before = updater.averages()["0.weight"].clone()
    for _ in range(3):
        assert not updater.update(model(torch.ones(4, 3).double() * torch.rand(4, 1).double()).square().mean())
    assert torch.equal(updater.averages()["0.weight"], before)
