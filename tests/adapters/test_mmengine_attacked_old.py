"""The old format over several groups: every policy and warm-up beside a twin of mmcv 1.7.2's hooks, group by group."""

from __future__ import annotations

import math
import os
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from gradchain.adapters import mmengine

CASES = range(3000 if os.environ.get("GRADCHAIN_LONG") else 150)
MULTIPLIERS = {"0.weight": 0.1, "2.bias": 2.5, "2.weight": 0.0, "0.bias": 1.0}
BASE = 0.2


def cosine(start: float, end: float, at: float, weight: float = 1.0) -> float:
    return end + 0.5 * weight * (start - end) * (math.cos(math.pi * at) + 1)


def regular(config: dict[str, Any], at: int, last: int, base: float) -> float:
    """A policy's value, from a group's own base, at an epoch or an iteration of so many."""
    policy = config["policy"].lower()
    floor = config.get("min_lr", base * config.get("min_lr_ratio", 0.0))
    if policy == "step":
        steps = config["step"]
        count = at // steps if isinstance(steps, int) else sum(at >= step for step in steps)
        return base * config.get("gamma", 0.1) ** count
    if policy == "exp":
        return base * config["gamma"] ** at
    if policy == "inv":
        return base * (1 + config["gamma"] * at) ** -config.get("power", 1.0)
    if policy == "poly":
        return (base - floor) * (1 - at / last) ** config.get("power", 1.0) + floor
    if policy == "cosineannealing":
        return cosine(base, floor, at / last)
    if policy == "linearannealing":
        return base + at / last * (floor - base)
    if policy == "flatcosineannealing":
        flat = round(last * config["start_percent"])
        return base if at < flat else cosine(base, floor, (at - flat) / (last - flat))
    assert policy == "cosinerestart"
    begin = 0
    for period, weight in zip(config["periods"], config["restart_weights"], strict=True):
        if at < begin + period:
            return cosine(base, floor, (at - begin) / period, weight)
        begin += period
    raise AssertionError("the periods reach the end")


def value(config: dict[str, Any], i: int, run: dict[str, Any], base: float) -> float:
    """What the hooks have put into the group at iteration i: the policy's value, or less while it warms up."""
    every, epochs = run["epoch_length"], run.get("max_epochs")
    by_epoch = config.get("by_epoch", epochs is not None)
    total = run.get("max_iters") or epochs * every
    if by_epoch and epochs is None:
        return base  # no epoch ever begins
    found = regular(config, i // every if by_epoch else i, epochs if by_epoch else total, base)
    warm = config.get("warmup_iters", 0) * (every if config.get("warmup_by_epoch") else 1)
    if "warmup" not in config or i >= warm:
        return found
    ratio, left = config["warmup_ratio"], 1 - i / warm
    return found * {"constant": ratio, "linear": 1 - left * (1 - ratio), "exp": ratio**left}[config["warmup"]]


def random_config(draw: random.Random, run: dict[str, Any]) -> dict[str, Any]:
    last = run.get("max_epochs") or run["max_iters"]
    policies: list[dict[str, Any]] = [
        {"policy": "step", "step": draw.choice([draw.randint(1, last), sorted(draw.sample(range(1, 40), 3))])},
        {"policy": "exp", "gamma": draw.choice([0.9, 0.5])},
        {"policy": "inv", "gamma": 0.1, "power": 0.75},
        {"policy": "poly", "power": draw.choice([0.9, 2.0]), "min_lr": draw.choice([0.0, 1e-3, 0.05])},
        {"policy": "FlatCosineAnnealing", "start_percent": draw.choice([0.0, 0.3, 0.75])},
        {"policy": "CosineRestart", "periods": [2, 3, 200], "restart_weights": [1, 0.5, 1]},
        {"policy": "CosineAnnealing"},
        {"policy": "LinearAnnealing"},
    ]
    config = draw.choice(policies)
    if config["policy"][0].isupper():
        config |= draw.choice([{"min_lr": 0.0}, {"min_lr": 0.01}, {"min_lr_ratio": 0.1}, {"min_lr_ratio": 0.0}])
    if draw.random() < 0.5:
        warm: dict[str, Any] = {
            "warmup": draw.choice(["constant", "linear", "exp"]),
            "warmup_iters": draw.randint(1, 9),
        }
        if "max_epochs" in run and draw.random() < 0.3:
            warm |= {"warmup_by_epoch": True, "warmup_iters": draw.randint(1, 3)}
        config |= warm | {"warmup_ratio": draw.choice([0.001, 0.1, 1.0])}
    return config | draw.choice([{}, {}, {"by_epoch": False}, {"by_epoch": True}])


@pytest.mark.parametrize("bound", [True, False], ids=["from_config", "unbound"])
def test_every_group_has_the_rates_of_mmcv(bound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor is every group's own, a ratio of it follows the multiplier, and a warm-up scales what the policy says."""
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")
    keys = {name: {"lr_mult": factor} for name, factor in MULTIPLIERS.items()}
    apart = 0
    for seed in CASES:
        draw = random.Random(seed)
        every = draw.choice([1, 3, 5])
        run: dict[str, Any] = {"max_epochs": draw.randint(2, 7), "epoch_length": every}
        if draw.random() < 0.3:
            run = {"max_iters": draw.randint(6, 25), "epoch_length": every}
        config = random_config(draw, run)
        optimizer = {"type": "SGD", "lr": BASE, "paramwise_cfg": {"custom_keys": keys}}
        whole = {"optimizer": optimizer, "optimizer_config": {"grad_clip": None}, "lr_config": config}
        model = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1), nn.Linear(1, 1)).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if bound:
                updater = mmengine.from_config(model, whole, **run)
            else:
                updater = mmengine.unbound(whole, **run)[0].chain.bind(model)
        for i in range(run.get("max_iters") or run["max_epochs"] * every):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            updater.step(grads={name: torch.ones_like(p) for name, p in model.named_parameters()})
            for name, parameter in model.named_parameters():
                wanted = value(config, i, run, BASE * MULTIPLIERS.get(name, 1.0))
                assert math.isclose(-parameter.item(), wanted, rel_tol=1e-9, abs_tol=1e-15), (seed, config, name, i)
                apart += name == "2.weight" and wanted != 0.0
    assert apart > 100  # a floor that lifts what was to stay
