"""What `adopt` cannot say as a chain is refused by name, and what it took over stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as s
from torch.optim import swa_utils
from trainings import AVERAGES, CLASSES, SCHEDULERS, Torch, distance, everything, grouped

import gradchain as gch

o = torch.optim


# what cannot be said


class Own(o.AdamW):
    pass


def other_rate(loop: Torch) -> None:
    loop.optimizer.param_groups[0]["lr"] = 0.5


def other_model(loop: Torch) -> None:
    loop.model.body = nn.Identity()


def scheduler(make: Callable[[Any], Any]) -> Callable[[], Torch]:
    return lambda: Torch(CLASSES["adamw"], make)


def by_hand(ours: torch.Tensor, live: torch.Tensor, count: Any) -> torch.Tensor:
    return 0.5 * (ours + live)


REFUSED: dict[str, tuple[Callable[[], Torch], Callable[[Torch], None] | None, dict[str, Any], str]] = {
    "a class of one's own": (lambda: Torch(everything(Own)), None, {}, "must be a SGD, .* got a Own. gch.f"),
    "lbfgs": (lambda: Torch(everything(o.LBFGS)), None, {}, "got a LBFGS"),
    "multiplicative": (scheduler(lambda p: s.MultiplicativeLR(p, lambda t: 0.9)), None, {}, "got a MultiplicativeLR"),
    "triangular2": (
        scheduler(lambda p: s.CyclicLR(p, 0.1, 0.2, 5, mode="triangular2", cycle_momentum=False)),
        None, {}, "must be of mode 'triangular', got 'triangular2'",
    ),
    "a scale of one's own": (
        scheduler(lambda p: s.CyclicLR(p, 0.1, 0.2, 5, scale_fn=lambda x: 0.9**x, cycle_momentum=False)),
        None, {}, "must be of mode 'triangular', got a scale_fn of its own",
    ),
    "no warm-up": (
        scheduler(lambda p: s.OneCycleLR(p, 0.02, 200, pct_start=0.0, cycle_momentum=False)),
        None, {}, "scheduler must have a curve that a schedule can have, got a OneCycleLR .*warmup_steps .*Write its",
    ),
    "a part stepped by hand": (
        scheduler(SCHEDULERS["sequential"]), lambda loop: loop.scheduler._schedulers[0].step(),
        {}, "SequentialLR must have stepped the part at work 5 times .*, got a LinearLR after 6",
    ),
    "chained restarts": (
        scheduler(lambda p: s.ChainedScheduler([s.CosineAnnealingWarmRestarts(p, 5)])),
        None, {}, "got a CosineAnnealingWarmRestarts in it",
    ),
    "a rate set by hand": (scheduler(SCHEDULERS["step"]), other_rate, {}, "got 0.5 in group 0 where StepLR has 0.01"),
    "another model": (lambda: Torch(CLASSES["adamw"]), other_model, {}, "got none that is number 1 of group 0"),
    "no clock": (
        lambda: Torch(CLASSES["sgd"], SCHEDULERS["step"], scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0)),
        None, {}, "clock must be given, for nothing shows",
    ),
    "another step": (lambda: Torch(CLASSES["adamw"]), None, {"step": 7}, "are counted, 5 so far, got 7"),
    "a step beside a scheduler": (
        lambda: Torch(CLASSES["sgd"], SCHEDULERS["step"]), None, {"clock": "step", "step": 7}, "5 so far, got 7",
    ),
    "epochs": (lambda: Torch(grouped, SCHEDULERS["step"], per=5), None, {}, "done 5 updates, .* was stepped 1 times"),
    "an average of one's own": (
        lambda: Torch(grouped, average=lambda m: swa_utils.AveragedModel(m, avg_fn=by_hand)), None, {}, "by_hand",
    ),
    "a kind": (lambda: Torch(grouped), None, {"kind": "AdamW"}, "kind must be left out"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"scaler": 3}, "scaler must be a torch.amp.GradScaler or None, got int"),
        ({"average": nn.Linear(1, 1)}, "average must be a torch.optim.swa_utils.AveragedModel or None, got Linear"),
        ({"front": gch.clip_by_norm(1.0)}, "front must be a list of links, got clip_by_norm"),
        ({"front": [1.0]}, "front must be a list of links, got .1.0."),
        ({"clock": ""}, "clock must be the name of a clock or None, got ''"),
        ({"clock": 3}, "clock must be the name of a clock or None, got 3"),
        ({"step": -1}, "step must be a whole number of at least 0 or None, got -1"),
        ({"step": True}, "step must be a whole number of at least 0 or None, got True"),
    ],
)
def test_other_things_than_torch_has_are_refused(words, said):
    loop = Torch(CLASSES["adamw"])
    with pytest.raises((TypeError, ValueError), match=f"adopt: {said}"):
        gch.adopt(loop.optimizer, model=loop.model, **words)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_by_name(name):
    make, spoil, words, said = REFUSED[name]
    loop = make()
    for _ in range(0 if name == "lbfgs" else 5):
        loop.step()
    if spoil is not None:
        spoil(loop)
    with pytest.raises((TypeError, ValueError), match=f"adopt: .*{said}"):
        gch.adopt(loop.optimizer, loop.scheduler, loop.scaler, loop.average, model=loop.model, **words)


def test_a_schedulers_state_is_refused_with_the_way():
    loop = Torch(CLASSES["sgd"], SCHEDULERS["step"])
    with pytest.raises(ValueError, match=r"scheduler must be a scheduler, got a dict.* load_state_dict into each"):
        gch.adopt(loop.optimizer, loop.scheduler.state_dict(), model=loop.model)


def test_a_scheduler_of_another_optimizer():
    loop, other = Torch(grouped), Torch(grouped, SCHEDULERS["step"])
    with pytest.raises(ValueError, match="scheduler must be of the optimizer that is adopted, got a StepLR of another"):
        gch.adopt(loop.optimizer, other.scheduler, model=loop.model)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda saved: saved | {"kind": None}, "kind must name the class"),
        (lambda saved: {"model": {}, "kind": "SGD"}, "got a dict of .'model'."),
        (
            lambda saved: saved | {"param_groups": [saved["param_groups"][0] | {"params": [0, 1]}], "kind": "AdamW"},
            "one group of all 9 parameters",
        ),
        (lambda saved: saved | {"kind": "SGD"}, "the state of a SGD, got no 'dampening' in group 0"),
        (lambda saved: saved | {"kind": "Adam", "state": {0: {"exp_inf": 1}}}, "got 'exp_inf' of parameter 0"),
    ],
)
def test_a_state_that_says_too_little(spoil, said):
    loop = Torch(CLASSES["adamw"])
    saved = spoil(loop.optimizer.state_dict())
    kind = saved.pop("kind")
    with pytest.raises(ValueError, match=f"adopt: .*{said}"):
        gch.adopt(saved, model=loop.model, kind=kind)


def test_a_state_of_another_model():
    loop = Torch(CLASSES["adamw"])
    loop.step()
    other = nn.ParameterList([torch.zeros(2) for _ in range(9)])
    with pytest.raises(
        ValueError, match=r"got a parameter of shape .2,. where the state has 'exp_avg' of shape .5, 4."
    ):
        gch.adopt(loop.optimizer.state_dict(), model=other, kind="AdamW")


def test_what_is_adopted_goes_on_as_it_was():
    """Nothing of it is changed, nor shared."""
    loop = Torch(grouped, SCHEDULERS["cosine"], AVERAGES["ema"])
    for _ in range(5):
        loop.step()
    before = copy.deepcopy((loop.optimizer.state_dict(), loop.scheduler.state_dict(), loop.average.state_dict()))
    model = copy.deepcopy(loop.model)
    updater = gch.adopt(loop.optimizer, loop.scheduler, None, loop.average, model=loop.model)
    updater.update(loop.model(5))
    after = (loop.optimizer.state_dict(), loop.scheduler.state_dict(), loop.average.state_dict())
    assert str(before) == str(after)
    assert distance(model, loop.model, model) > 0
