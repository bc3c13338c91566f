"""reduce_on_plateau through an updater: torch's and MMEngine's schedulers step by step, and what counts as new."""

import copy
import math
import random

import pytest
import torch
from torch import nn

import gradchain as gch

SETTINGS = {
    "plain": {},
    "patient": {"patience": 3, "factor": 0.5},
    "impatient": {"patience": 0, "factor": 0.7},
    "cooldown": {"patience": 1, "cooldown": 2, "factor": 0.5},
    "floor": {"patience": 1, "factor": 0.3, "min_value": 0.02},
    "eps": {"patience": 0, "factor": 0.5, "eps": 0.02},
    "abs": {"patience": 1, "factor": 0.5, "threshold": 0.1, "threshold_mode": "abs"},
    "rel": {"patience": 1, "factor": 0.5, "threshold": 0.2},
    "max": {"patience": 1, "factor": 0.5, "threshold": 0.2, "mode": "max"},
    "max-abs": {"patience": 1, "factor": 0.5, "threshold": 0.2, "threshold_mode": "abs", "mode": "max"},
}
LR = 0.3


def metrics(seed, n=80):
    """A noisy walk that goes below zero, with a NaN now and then."""
    draw = random.Random(seed)
    x, out = 1.0, []
    for _ in range(n):
        x += draw.gauss(-0.02, 0.1)
        out.append(math.nan if draw.random() < 0.03 else x)
    return out


def ours(**given):
    """An updater of one weight, with gradients of 1: what a step takes off is the learning rate."""
    model = nn.Linear(1, 1, bias=False).double()
    link = gch.reduce_on_plateau("val_loss", base=LR, **given)
    return gch.chain(gch.scale_by_learning_rate(LR), link).bind(model), model


def taken(updater, model):
    before = model.weight.item()
    updater.step({"weight": torch.ones(1, 1).double()})
    return before - model.weight.item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_torch(name, seed):
    """The learning rate of every update, with a validation after every third."""
    given = SETTINGS[name]
    updater, model = ours(**given)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    theirs = {("min_lr" if k == "min_value" else k): v for k, v in given.items()}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **theirs)
    for x in metrics(seed):
        for _ in range(3):
            assert taken(updater, model) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
            assert updater.metrics["reduce_on_plateau.value"] == optimizer.param_groups[0]["lr"]
        updater.observe("val_loss", x)
        scheduler.step(x)
    assert optimizer.param_groups[0]["lr"] < LR


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_mmengine(name, seed):
    """The same with its scheduler, which counts validations and begins at 1e9."""
    scheduler_of = pytest.importorskip("mmengine.optim").ReduceOnPlateauLR
    given = SETTINGS[name]
    updater, model = ours(worst=1e9, **given)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    names = {"threshold_mode": "threshold_rule", "mode": "rule"}
    theirs = {names.get(k, k): {"min": "less", "max": "greater"}.get(v, v) for k, v in given.items()}
    scheduler = scheduler_of(optimizer, monitor="loss", **theirs)
    values = [2e9, 1.5e9, 1.2e9, *metrics(seed)]
    for x in values:
        updater.observe("val_loss", x)
        taken(updater, model)
        scheduler.step()
        scheduler.step({"loss": x})
        assert updater.metrics["reduce_on_plateau.value"] == optimizer.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] < LR


def test_magnitude_has_the_right_sign_below_zero():
    """From -1.0, -0.95 is worse: "rel" takes it for better, "magnitude" does not."""
    for mode, value in (("rel", LR), ("magnitude", LR * 0.1)):
        updater, model = ours(patience=0, threshold=0.1, threshold_mode=mode)
        for x in (-1.0, -0.95):
            updater.observe("val_loss", x)
            taken(updater, model)
        assert updater.metrics["reduce_on_plateau.value"] == pytest.approx(value)


def test_each_observation_counts_once_and_none_is_lost():
    """Two before one update count twice; an update without a new one counts none; a window holds them back."""
    model = nn.Linear(1, 1, bias=False).double()
    link = gch.reduce_on_plateau("val_loss", factor=0.5, patience=1)
    updater = gch.chain(gch.accumulate(2), gch.scale_by_learning_rate(1.0), link).bind(model)
    micro = {"weight": torch.ones(1, 1).double()}

    def value():
        updater.step(micro)
        updater.step(micro)
        return updater.metrics["reduce_on_plateau.value"]

    assert value() == 1.0
    for x in (1.0, 2.0, 2.0):
        updater.observe("val_loss", x)
    updater.step(micro)  # held: nothing is read yet
    updater.observe("val_loss", 2.0)
    updater.step(micro)
    assert updater.metrics["reduce_on_plateau.value"] == 0.5
    assert value() == value() == 0.5
    updater.observe("val_loss", 2.0)
    assert value() == 0.25
    updater.observe("other", 2.0)
    updater.observe("other", 2.0)
    assert value() == 0.25


def test_saved_between_an_observation_and_its_update():
    """Nothing is lost, and nothing counts twice."""
    updater, model = ours(patience=1, factor=0.5)
    again, twin = ours(patience=1, factor=0.5)
    for t, x in enumerate(metrics(0, 30)):
        updater.observe("val_loss", x)
        if t % 4 == 0:
            again.load_state_dict(copy.deepcopy(updater.state_dict()))
            twin.load_state_dict(model.state_dict())
        else:
            again.observe("val_loss", x)
        assert taken(updater, model) == taken(again, twin)
    assert updater.metrics["reduce_on_plateau.value"] < LR
    bad = updater.state_dict()
    bad["news"] = {"val_loss": []}
    with pytest.raises(ValueError, match="news must be lists of numbers by name, got \\[\\] for 'val_loss'"):
        updater.load_state_dict(bad)
