"""MMEngine itself, stepped as its Runner does, and random lists of its schedulers."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import torch
from later import later

from gradchain.adapters.mmengine.entries import Entry
from gradchain.adapters.mmengine.groups.params import optimizers
from gradchain.adapters.mmengine.recipe.optimizers import Optimizer

optim, registry = later("mmengine.optim"), later("mmengine.registry")

FIELDS = ("lr", "momentum", "weight_decay")
MULTIPLIERS = ((1.0, 1.0), (0.1, 0.0), (2.5, 0.5))


def optimizer_of(kind: str, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Three groups, whose learning rates and weight decays are multiples."""
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": lr * a, "weight_decay": weight_decay * b}
        for a, b in MULTIPLIERS
    ]
    if kind == "SGD":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def values(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The numbers of each group that are in force."""
    return [
        {
            "lr": group["lr"],
            "momentum": group["betas"][0] if "betas" in group else group["momentum"],
            "weight_decay": group["weight_decay"],
        }
        for group in optimizer.param_groups
    ]


def trajectory(
    optimizer: torch.optim.Optimizer,
    schedulers: list[dict[str, Any]],
    epoch_length: int,
    max_epochs: int | None = None,
    max_iters: int | None = None,
) -> list[list[dict[str, float]]]:
    """The values at every iteration: built in list order, then by iteration, and at the end of an epoch by epoch."""
    total = max_iters if max_epochs is None else max_epochs * epoch_length
    assert total is not None
    wrapper = optim.OptimWrapper(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the order of step calls, which nothing here depends on
        built = []
        for scheduler in copy.deepcopy(schedulers):
            by_epoch = scheduler.get("by_epoch", True)
            scheduler.setdefault("end", (max_epochs or 1) if by_epoch else total)
            built.append(
                registry.PARAM_SCHEDULERS.build(
                    scheduler, default_args={"optimizer": wrapper, "epoch_length": epoch_length}
                )
            )
        seen = []
        for i in range(total):
            seen.append(values(optimizer))
            for scheduler in built:
                if not scheduler.by_epoch:
                    scheduler.step()
            if max_epochs is not None and (i + 1) % epoch_length == 0:
                for scheduler in built:
                    if scheduler.by_epoch:
                        scheduler.step()
    return seen


class Run:
    """A random list of schedulers, and the run that it is for."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.epoch_length = self.random.choice([1, 2, 3, 5, 7, 10])
        epochs = self.random.randint(1, 9)
        self.length = (
            {"max_epochs": epochs} if self.random.random() < 0.8 else {"max_iters": self.random.randint(5, 60)}
        )
        self.epochs = self.length.get("max_epochs", 1)
        self.iters = self.length.get("max_iters", epochs * self.epoch_length)
        self.schedulers = [self.scheduler() for _ in range(self.random.choice([1, 1, 2, 2, 2, 3, 4]))]
        if self.random.random() < 0.1:
            self.schedulers.insert(self.random.randint(0, len(self.schedulers)), self.one_cycle())

    def window(self) -> tuple[dict[str, Any], int]:
        """Where a scheduler acts, and about how many steps of its own that is."""
        draw = self.random
        window: dict[str, Any] = {}
        clock = draw.choice(["epoch", "iteration", "converted"])
        longest = self.iters if clock == "iteration" else self.epochs
        if clock == "iteration" or draw.random() < 0.5:
            window["by_epoch"] = clock != "iteration"
        if clock == "converted":
            window["convert_to_iter_based"] = True
        begin: float = draw.choice([0, 0, 0, draw.randint(0, longest)])
        if clock == "converted" and draw.random() < 0.2:
            begin += draw.choice([0.5, 0.3, 0.75])
        if begin or draw.random() < 0.5:
            window["begin"] = begin
        if draw.random() < 0.7 or begin >= longest:
            window["end"] = begin + draw.randint(1, longest + 3)
        end = window.get("end", longest)
        return window, max(int(end - begin), 1)

    def scheduler(self) -> dict[str, Any]:
        draw = self.random
        window, n = self.window()
        families = [
            "Constant",
            "CosineAnnealing",
            "CosineRestart",
            "Exponential",
            "Linear",
            "MultiStep",
            "Poly",
            "Step",
        ]
        family = draw.choice(families)
        suffix = draw.choice(["LR", "LR", "LR", "LR", "Momentum", "ParamScheduler"])
        scheduler = {"type": family + suffix, **self.numbers(family, n, bool(window.get("convert_to_iter_based")))}
        if suffix == "ParamScheduler":
            scheduler["param_name"] = draw.choice(["lr", "weight_decay"])
        return scheduler | window

    def one_cycle(self) -> dict[str, Any]:
        draw = self.random
        n = draw.randint(8, 20)
        return {
            "type": "OneCycleLR", "eta_max": draw.uniform(0.01, 1.0), "pct_start": draw.uniform(0.2, 0.45),
            "anneal_strategy": draw.choice(["cos", "linear"]), "three_phase": draw.random() < 0.5,
            "by_epoch": False, "begin": draw.randint(0, 5), "end": n, "total_steps": n,
        }  # fmt: skip

    def numbers(self, family: str, n: int, converted: bool) -> dict[str, Any]:
        """Arguments of a scheduler over about n steps."""
        draw = self.random
        gamma = draw.choice([0.1, 0.5, 0.9, 1.1, round(draw.uniform(0.2, 1.2), 3)])
        floor = draw.choice([{}, {"eta_min": 0.0}, {"eta_min": draw.uniform(0.0, 0.02)}, {"eta_min_ratio": 0.05}])
        if family == "Constant":
            return {"factor": draw.choice([0.1, 0.5, 1.0, draw.uniform(0.01, 1.0)])}
        if family == "Linear":
            return {
                "start_factor": draw.choice([0.001, 0.1, 1.0, draw.uniform(0.001, 1.0)]),
                "end_factor": draw.choice([1.0, 1.0, 0.0, draw.uniform(0.0, 1.0)]),
            }
        if family == "Exponential":
            return {"gamma": gamma}
        if family == "MultiStep":
            milestones: list[float] = [draw.randint(0, n + 1) for _ in range(draw.randint(1, 4))]
            if converted:
                milestones.append(draw.randint(0, n) + 0.5)
            return {"gamma": gamma, "milestones": milestones}
        if family == "Step":
            return {"gamma": gamma, "step_size": draw.randint(1, n + 1)}
        if family == "Poly":
            return {"power": draw.choice([0.9, 1.0, 2.0]), "eta_min": floor.get("eta_min", 0.0)}
        if family == "CosineRestart":
            periods = [draw.randint(1, n) for _ in range(draw.randint(1, 3))]
            floor = floor or {"eta_min": 0.0}
            return {"periods": periods, "restart_weights": [draw.uniform(0.1, 1.0) for _ in periods], **floor}
        half = draw.choice([None, n, n, draw.randint(1, n + 2), *([n + 0.5, n / 2] if converted else [])])
        return floor if half is None else {**floor, "T_max": half}


def constructed(model: torch.nn.Module, wrapper: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What its own constructor makes of a paramwise_cfg: by name, the settings of the group."""
    config = copy.deepcopy(wrapper)
    groups = optim.DefaultOptimWrapperConstructor(config, config.pop("paramwise_cfg"))(model).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings: dict[str, Any] = dict.fromkeys(names.values())
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in names:  # not the group that stands for the base values
                keys = ("lr", "weight_decay", "lr_mult", "decay_mult", "decay_multi")
                settings[names[id(parameter)]] = {key: group[key] for key in keys if key in group}
    return settings


def value_of(model: Any, wrapper: Any, field: str, curve: Any = float, proportional: bool = True) -> Any:
    """One field of a config as a value for a chain; without a model where that is None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [one] = optimizers(model, Entry("optim_wrapper", wrapper, False))
    base = Optimizer(one.config["optimizer"], "optimizer", False).base(field)
    return one.parameters.value(field, base, curve, proportional=proportional)
