"""A live torch training and the chain that took it over in the middle take the same hundred steps from there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import lr_scheduler as s
from trainings import (
    AVERAGES,
    CLASSES,
    FIRST,
    SCHEDULERS,
    THEN,
    WIDE,
    Net,
    Torch,
    a_part,
    adopted,
    check,
    distance,
    go_on,
    grouped,
    in_flags,
    seen,
)

import gradchain as gch

o = torch.optim


@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name):
    check(Torch(CLASSES[name]), rtol=WIDE.get(name.partition(",")[0], 1e-12))


@pytest.mark.parametrize("name", CLASSES)
def test_a_training_that_has_not_begun(name):
    check(Torch(CLASSES[name]), rtol=WIDE.get(name.partition(",")[0], 1e-12), first=0)


def test_asgd_hands_its_average_over():
    loop = Torch(CLASSES["asgd"])
    updater = check(loop, rtol=1e-5)
    averages = updater.averages()
    for name, parameter in loop.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(averages[name], loop.optimizer.state[parameter]["ax"], rtol=1e-6, atol=1e-9)


def _of_three(model, **more):
    """Groups that differ in all that ASGD has."""
    a, b, c = (list(model.parameters())[k::3] for k in range(3))
    return o.ASGD(
        [{"params": a, "t0": 5.0}, {"params": b, "alpha": 0.5, "t0": 50.0}, {"params": c, "lambd": 0.1} | more], lr=0.01
    )


@pytest.mark.parametrize("more", [{}, {"maximize": True, "lr": 1e-3}], ids=["numbers", "a flag"])
@pytest.mark.parametrize("plateau", [False, True], ids=["", "on a plateau"])
def test_groups_of_asgd_have_one_mean(more, plateau):
    """It is of final weights, so it is behind all groups, and begins for each where that says."""
    lower = (lambda opt: s.ReduceLROnPlateau(opt)) if plateau else None
    loop = Torch(lambda model: _of_three(model, **more), lower, per=1000)
    for _ in range(FIRST):
        loop.step()
    start = copy.deepcopy(loop.model)
    model, updater = adopted(loop)
    go_on(loop, model, updater)
    assert distance(model, loop.model, start) < 1e-5
    averages = updater.averages()
    for name, parameter in loop.model.named_parameters():
        mean = loop.optimizer.state[parameter].get("ax")
        if mean is not None:
            torch.testing.assert_close(averages[name], mean, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # torch's, of one in another
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name):
    check(Torch(grouped, SCHEDULERS[name]))


@pytest.mark.parametrize("name", ["step", "cosine", "sequential", "one cycle, momentum"])
def test_a_scheduler_of_epochs(name):
    check(Torch(in_flags, SCHEDULERS[name], per=5), clock="epoch")


def test_a_function_for_each_group():
    check(
        Torch(grouped, lambda opt: s.LambdaLR(opt, [lambda t: 1.0, lambda t: 0.9**t, lambda t: 0.99**t, lambda t: 0.0]))
    )


@pytest.mark.parametrize("make", [CLASSES["adam"], CLASSES["momentum"], grouped], ids=["adam", "momentum", "groups"])
def test_a_plateau(make):
    loop = Torch(make, lambda opt: s.ReduceLROnPlateau(opt, factor=0.7, patience=3, cooldown=2, min_lr=1e-4), per=4)
    for _ in range(FIRST):
        loop.step()
    assert (loop.scheduler.best, loop.scheduler.num_bad_epochs) == (1.0, 2)
    model, updater = adopted(loop)
    states = [state for address, state in updater.state_dict()["links"].items() if "plateau" in address]
    assert {(state["best"], state["num_bad"], state["cooldown_left"]) for state in states} == {(1.0, 2, 0)}
    start = copy.deepcopy(loop.model)
    for _ in range(THEN):
        step = loop.done
        loop.step()
        updater.update(model(step))
        if loop.done % 4 == 0:
            updater.observe("val_loss", seen(loop.done))
    assert loop.optimizer.param_groups[0]["lr"] < 0.5 * loop.optimizer.defaults["lr"]
    assert distance(model, loop.model, start) < 1e-12


@pytest.mark.parametrize("make", [in_flags, a_part, grouped], ids=["flags", "a part", "groups"])
def test_groups(make):
    check(Torch(make))


@pytest.mark.parametrize("first", [0, FIRST])
@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name, first):
    loop = Torch(CLASSES["adamw"], SCHEDULERS["cosine"], AVERAGES[name])
    updater = check(loop, clock=None if first else "step", first=first)
    averages = updater.averages()
    for n, parameter in loop.average.module.named_parameters():
        torch.testing.assert_close(averages[n], parameter.detach(), rtol=1e-12, atol=1e-14)


def test_a_scaler_and_what_was_done_by_hand():
    scaler = lambda: torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=9)  # noqa: E731
    loop = Torch(CLASSES["adamw"], SCHEDULERS["linear"], scaler=scaler, clip=0.3)
    updater = check(loop, front=[gch.clip_by_norm(0.3)])
    assert updater.state_dict()["links"]["amp_scale"]["scale"] == loop.scaler.get_scale() > 64.0
    assert updater.state_dict()["links"]["amp_scale"]["growth_tracker"] == loop.scaler._get_growth_tracker()


# from a file


@pytest.mark.parametrize("named", [False, True])
def test_a_state(named, tmp_path):
    """As a checkpoint has it, with the model's weights."""
    loop = Torch((lambda m: o.AdamW(m.named_parameters(), lr=0.01)) if named else CLASSES["adamw"])
    for _ in range(FIRST):
        loop.step()
    torch.save({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}, tmp_path / "file.pt")
    model, saved = Net().double(), torch.load(tmp_path / "file.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    start = copy.deepcopy(model)
    updater = gch.adopt(saved["optimizer"], model=model, kind="AdamW")
    go_on(loop, model, updater)
    assert distance(model, loop.model, start) < 1e-12


def test_the_code_that_one_would_write():
    warm_up = lambda opt: s.LinearLR(opt, 0.5, 1.0, 40)  # noqa: E731
    loop = Torch(grouped, warm_up, AVERAGES["ema"], lambda: torch.amp.GradScaler("cpu"))
    for _ in range(3):
        loop.step()
    _, updater = adopted(loop, front=[gch.clip_by_norm(1.0)])
    assert str(updater) == CODE


CODE = """\
chain(
    amp_scale(always=True),
    clip_by_norm(1.0),
    scale_by_adam(b1=choose((embedding, 0.7), rest=0.9), b2=choose((embedding, 0.9), rest=0.999)),
    add_decayed_weights(choose((min_ndim(2), 0.1), rest=0.0)),
    scale_by_learning_rate(choose((embedding, by('micro', linear(0.001, 0.002, 40))), \
rest=by('micro', linear(0.005, 0.01, 40)))),
    average_params(0.9),
).bind(<9 parameters>)"""
