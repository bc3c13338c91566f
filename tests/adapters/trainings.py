"""Trainings by torch's own objects, and what takes each over in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

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


def go_on(loop: Torch, model: nn.Module, updater: Any, clock: str | None = None, steps: int = THEN) -> None:
    for _ in range(steps):
        step = loop.done
        loop.step()
        updater.update(model(step))
        if clock and loop.done % loop.per == 0:
            updater.tick(clock)


def distance(model: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """The worst difference, over the largest movement of the parameter."""
    three = zip(model.parameters(), other.parameters(), start.parameters(), strict=True)
    return largest((a - b).abs().max() / (b - before).abs().max().clamp_min(1e-12) for a, b, before in three)


def check(loop: Torch, clock: str | None = None, rtol: float = 1e-12, first: int = FIRST, **words: Any) -> Any:
    for _ in range(first):
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


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


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
    "adafactor": everything(o.Adafactor, lr=0.05, weight_decay=0.1, d=1.5),
    "adafactor, its numbers": everything(o.Adafactor, lr=0.05, beta2_decay=-0.5, eps=(1e-6, 1e-2)),
    "muon": lambda model: o.Muon(matrices(model), lr=0.02),
    "muon, its numbers": lambda model: o.Muon(
        matrices(model), 0.02, 0.0, 0.8, False, (2.0, -1.5, 0.5), ns_steps=3, adjust_lr_fn="match_rms_adamw"
    ),
}  # fmt: skip


# what torch keeps in float32, whatever the weights are: NAdam's product of momenta, ASGD's rate
IN_FLOAT32 = {"nadam": 1e-5, "asgd": 1e-5}
WIDE = IN_FLOAT32 | {"muon": 0.1}  # and what it computes in bfloat16


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
    "sequential, one without a step": lambda opt: s.SequentialLR(
        opt, [s.LinearLR(opt, 0.1, 1.0, 20), s.ConstantLR(opt, 0.5, 9), s.StepLR(opt, 9, 0.8)], [20, 20]
    ),
    "sequential, of a chain": lambda opt: s.SequentialLR(
        opt, [s.ChainedScheduler([s.LinearLR(opt, 0.1, 1.0, 20)]), s.StepLR(opt, 9, 0.8)], [30]
    ),
    "chained": lambda opt: s.ChainedScheduler([s.LinearLR(opt, 0.1, 1.0, 20), s.StepLR(opt, 30, 0.5)]),
    "chained, a cosine": lambda opt: s.ChainedScheduler([s.LinearLR(opt, 0.1, 1.0, 20), s.CosineAnnealingLR(opt, 150)]),
}


AVERAGES = {
    "mean": lambda model: swa_utils.AveragedModel(model),
    "ema": lambda model: swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
    "ema, one by one": lambda model: swa_utils.AveragedModel(model, avg_fn=swa_utils.get_ema_avg_fn(0.9)),
}
