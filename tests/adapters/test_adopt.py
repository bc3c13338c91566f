"""A live torch training and the chain that took it over in the middle take the same hundred steps from there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from little import largest
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import gradchain as gch

FIRST, THEN = 12, 100


class Net(nn.Module):
    """With every kind of parameter that groups are made by, one that is used now and then, and one that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.rare = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, step: int) -> torch.Tensor:
        x = self.body(self.embedding(torch.tensor([step % 5, (3 * step + 1) % 5])))
        x = x + self.rare(x) if step % 3 == 1 else x
        wanted = torch.tensor([(step + 2) % 5, step % 5])
        return nn.functional.cross_entropy(self.head(x), wanted) + 0.1 * (x * x).mean()


class Torch:
    """The loop that somebody has."""

    def __init__(
        self, optimizer: Callable[[nn.Module], Any], scheduler=None, average=None, scaler=None, per=1, clip=None
    ):
        torch.manual_seed(3)
        self.model = Net().double()
        self.optimizer = optimizer(self.model)
        self.scheduler = scheduler and scheduler(self.optimizer)
        self.average = average and average(self.model)
        self.scaler = scaler and scaler()
        self.per, self.clip, self.done = per, clip, 0

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.model(self.done)
        self.done += 1
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.scheduler is not None and self.done % self.per == 0:
            told = [seen(self.done)] if type(self.scheduler) is lr_scheduler.ReduceLROnPlateau else []
            self.scheduler.step(*told)


def seen(step: int) -> float:
    """What a validation says: the first is the best there ever is, but for one much later."""
    return 0.5 if step == 60 else 1.0 if step <= 4 else 1.3


def adopted(loop: Torch, **words: Any) -> tuple[nn.Module, Any]:
    """The model of a copy of the loop, and the updater that has taken it over."""
    twin = copy.deepcopy(loop)
    return twin.model, gch.adopt(twin.optimizer, twin.scheduler, twin.scaler, twin.average, model=twin.model, **words)


def go_on(loop: Torch, model: nn.Module, updater: Any, clock: str | None = None) -> None:
    for _ in range(THEN):
        step = loop.done
        loop.step()
        updater.update(model(step))
        if clock and loop.done % loop.per == 0:
            updater.tick(clock)


def distance(model: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """The worst difference, over the largest movement of the parameter."""
    three = zip(model.parameters(), other.parameters(), start.parameters(), strict=True)
    return largest((a - b).abs().max() / (b - before).abs().max().clamp_min(1e-12) for a, b, before in three)


def check(loop: Torch, clock: str | None = None, rtol: float = 1e-12, **words: Any) -> Any:
    for _ in range(FIRST):
        loop.step()
    start = copy.deepcopy(loop.model)
    words = {"clock": clock, **words} if clock else words
    model, updater = adopted(loop, **words)
    assert distance(model, loop.model, start) == 0
    go_on(loop, model, updater, clock if clock != "step" else None)
    found = distance(model, loop.model, start)
    assert found < rtol, found
    assert distance(start, loop.model, start) > 0.5
    return updater


def everything(kind: type, **words: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(model.parameters(), **words)


o = torch.optim
CLASSES = {
    "sgd": everything(o.SGD, lr=0.05),
    "momentum": everything(o.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "dampened": everything(o.SGD, lr=0.02, momentum=0.9, dampening=0.3),
    "ascent": everything(o.SGD, lr=1e-3, momentum=0.5, maximize=True),
    "adam": everything(o.Adam, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    "adam, L2": everything(o.Adam, lr=0.01, weight_decay=0.1),
    "adam, amsgrad": everything(o.Adam, lr=0.01, amsgrad=True),
    "adam, decoupled": everything(o.Adam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": everything(o.AdamW, lr=0.01, weight_decay=0.1),
    "adamw, foreach": everything(o.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw, fused": everything(o.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "adamw, a tensor": everything(o.AdamW, lr=torch.tensor(0.01, dtype=torch.float64), weight_decay=0.1),
    "nadam": everything(o.NAdam, lr=0.01, weight_decay=0.1),
    "nadam, decoupled": everything(o.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": everything(o.RAdam, lr=0.01),
    "radam, decoupled": everything(o.RAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamax": everything(o.Adamax, lr=0.01, weight_decay=0.1),
    "rmsprop": everything(o.RMSprop, lr=0.005),
    "rmsprop, all": everything(o.RMSprop, lr=0.002, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": everything(o.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1),
    "adadelta": everything(o.Adadelta, lr=1.0, weight_decay=0.1),
    "rprop": everything(o.Rprop, lr=0.001),
    "asgd": everything(o.ASGD, lr=0.01, t0=30.0, weight_decay=0.01),
}  # fmt: skip


# what torch keeps in float32, whatever the weights are: NAdam's product of momenta, ASGD's rate
IN_FLOAT32 = {"nadam": 1e-5, "asgd": 1e-5}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name):
    check(Torch(CLASSES[name]), rtol=IN_FLOAT32.get(name[:5], 1e-12))


@pytest.mark.parametrize("name", CLASSES)
def test_a_training_that_has_not_begun(name, monkeypatch):
    monkeypatch.setattr("test_adopt.FIRST", 0)
    check(Torch(CLASSES[name]), rtol=IN_FLOAT32.get(name[:5], 1e-12))


def test_asgd_hands_its_average_over():
    loop = Torch(CLASSES["asgd"])
    updater = check(loop, rtol=1e-5)
    averages = updater.averages()
    for name, parameter in loop.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(averages[name], loop.optimizer.state[parameter]["ax"], rtol=1e-6, atol=1e-9)


def grouped(model: nn.Module) -> Any:
    """As recipes have it: no decay for some, rates of their own for others, betas of their own for one."""
    small = [p for p in model.parameters() if p.ndim < 2]
    table = [model.embedding.weight]
    rest = [p for p in model.parameters() if p.ndim >= 2 and p is not model.embedding.weight]
    return o.AdamW(
        [
            {"params": small, "weight_decay": 0.0},
            {"params": table, "lr": 0.002, "betas": (0.7, 0.9)},
            {"params": rest},
            {"params": []},
        ],
        lr=0.01,
        weight_decay=0.1,
    )


def in_flags(model: nn.Module) -> Any:
    body = {"params": model.body.parameters(), "nesterov": True}
    others = [p for n, p in model.named_parameters() if not n.startswith("body.")]
    return o.SGD([body, {"params": others, "momentum": 0.5}], lr=0.02, momentum=0.9)


def a_part(model: nn.Module) -> Any:
    return o.Adam(model.body.parameters(), lr=0.01)


s = lr_scheduler
SCHEDULERS = {
    "step": lambda opt: s.StepLR(opt, 7, 0.5),
    "multi step": lambda opt: s.MultiStepLR(opt, [5, 20, 20, 60], 0.5),
    "constant": lambda opt: s.ConstantLR(opt, 0.5, 30),
    "linear": lambda opt: s.LinearLR(opt, 0.1, 0.9, 40),
    "exponential": lambda opt: s.ExponentialLR(opt, 0.98),
    "polynomial": lambda opt: s.PolynomialLR(opt, 90, 1.5),
    "cosine": lambda opt: s.CosineAnnealingLR(opt, 50, 1e-4),
    "restarts": lambda opt: s.CosineAnnealingWarmRestarts(opt, 10, 2, 1e-4),
    "cyclic": lambda opt: s.CyclicLR(opt, 0.001, 0.02, 9, 5, cycle_momentum=False),
    "cyclic, momentum": lambda opt: s.CyclicLR(opt, 0.001, 0.02, 9, 5),
    "one cycle": lambda opt: s.OneCycleLR(opt, 0.02, 130, cycle_momentum=False),
    "one cycle, momentum": lambda opt: s.OneCycleLR(opt, 0.02, 130, anneal_strategy="linear", three_phase=True),
    "lambda": lambda opt: s.LambdaLR(opt, lambda step: 1.0 / (1 + 0.1 * step)),
    "sequential": lambda opt: s.SequentialLR(
        opt, [s.LinearLR(opt, 0.1, 1.0, 20), s.CosineAnnealingLR(opt, 60), s.ConstantLR(opt, 0.5, 1000)], [20, 70]
    ),
    "chained": lambda opt: s.ChainedScheduler([s.LinearLR(opt, 0.1, 1.0, 20), s.StepLR(opt, 30, 0.5)]),
    "chained, a cosine": lambda opt: s.ChainedScheduler([s.LinearLR(opt, 0.1, 1.0, 20), s.CosineAnnealingLR(opt, 150)]),
}


@pytest.mark.parametrize("groups", [CLASSES["adamw"], grouped], ids=["one group", "groups"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name, groups):
    check(Torch(groups, SCHEDULERS[name]))


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


AVERAGES = {
    "mean": lambda model: swa_utils.AveragedModel(model),
    "ema": lambda model: swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
    "ema, one by one": lambda model: swa_utils.AveragedModel(model, avg_fn=swa_utils.get_ema_avg_fn(0.9)),
}


@pytest.mark.parametrize("first", [0, FIRST])
@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name, first, monkeypatch):
    monkeypatch.setattr("test_adopt.FIRST", first)
    loop = Torch(CLASSES["adamw"], SCHEDULERS["cosine"], AVERAGES[name])
    updater = check(loop, clock=None if first else "step")
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
    scale_by_learning_rate(choose((embedding, linear(0.001, 0.002, 40)), rest=linear(0.005, 0.01, 40))),
    average_params(0.9),
).bind(<9 parameters>)"""


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
    "chained restarts": (
        scheduler(lambda p: s.ChainedScheduler([s.CosineAnnealingWarmRestarts(p, 5)])),
        None, {}, "got a CosineAnnealingWarmRestarts in it",
    ),
    "a rate set by hand": (scheduler(SCHEDULERS["step"]), other_rate, {}, "got 0.5 in group 0 where StepLR has 0.01"),
    "another model": (lambda: Torch(CLASSES["adamw"]), other_model, {}, "got none that is number 1 of group 0"),
    "no clock": (lambda: Torch(CLASSES["sgd"], SCHEDULERS["step"]), None, {}, "clock must be given, for nothing shows"),
    "epochs": (lambda: Torch(grouped, SCHEDULERS["step"], per=5), None, {}, "done 5 updates, .* was stepped 1 times"),
    "an average of one's own": (
        lambda: Torch(grouped, average=lambda m: swa_utils.AveragedModel(m, avg_fn=by_hand)), None, {}, "by_hand",
    ),
    "a kind": (lambda: Torch(grouped), None, {"kind": "AdamW"}, "kind must be left out"),
}  # fmt: skip


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
            lambda saved: saved | {"param_groups": [{"params": [0, 1]}], "kind": "AdamW"},
            "one group of all 9 parameters",
        ),
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
