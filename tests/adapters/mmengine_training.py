"""MMEngine's own training of a small model, driven as its Runner drives it, and ours beside it."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from later import later
from mmengine_live import optim, registry
from torch import Tensor, nn

from gradchain.adapters import mmengine

averaged_model, hooks = later("mmengine.model.averaged_model"), later("mmengine.hooks")


@functools.cache
def exp_momentum_ema() -> Any:
    """mmdet's average, which is no part of MMEngine: its formula, as notes have it. MMEngine then knows it by name."""

    class ExpMomentumEMA(averaged_model.ExponentialMovingAverage):  # type: ignore[misc]  # mmengine has no types
        def __init__(self, model: nn.Module, momentum: float = 0.0002, gamma: int = 2000, **given: Any) -> None:
            super().__init__(model, momentum=momentum, **given)
            self.gamma = gamma

        def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
            momentum = (1 - self.momentum) * math.exp(-float(1 + steps) / self.gamma) + self.momentum
            averaged_param.lerp_(source_param, momentum)

    return registry.MODELS.register_module(force=True)(ExpMomentumEMA)


class Small(nn.Module):
    """Two parts that can be trained apart, of several kinds of layers; no gradient is 0 but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten()
        )
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.body(x))  # type: ignore[no-any-return]


def model() -> Small:
    torch.manual_seed(0)
    return Small().double()


def batches(n: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        x = torch.randn(6, 2, 3, 3, generator=generator).double()
        yield x, torch.randn(6, 3, generator=generator).double()


@dataclass(frozen=True)
class Training:
    """A recipe, and the run that it is for."""

    optim_wrapper: Mapping[str, Any]
    param_scheduler: Any = None
    epoch_length: int = 20
    max_epochs: int | None = 10
    max_iters: int | None = None
    hooks: Any = None
    batch_size: int | None = None
    base_batch_size: int | None = None
    prepare: Callable[[Small], object] = field(default=lambda model: None)
    metric: Callable[[int], float] | None = None  # by epoch; in a loop of iterations each so many of them
    left: int = 0  # iterations at the end that are not run

    @property
    def steps(self) -> int:
        return self.max_iters or (self.max_epochs or 0) * self.epoch_length

    def theirs(self) -> tuple[Small, dict[str, Tensor] | None]:
        """The model after the run, and its averages."""
        net = model()
        self.prepare(net)
        wrapper = self._wrapper(net)
        wrapper.initialize_count_status(net, 0, self.steps)
        if self.batch_size is not None and self.base_batch_size is not None:
            for group in wrapper.optimizer.param_groups:
                group["lr"] = group["lr"] * (float(self.batch_size) / float(self.base_batch_size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the order of step calls, which is the Runner's
            schedulers = self._schedulers(wrapper)
            exp_momentum_ema()
            hook = next((hooks.EMAHook(**{k: v for k, v in h.items() if k != "type"}) for h in self.hooks or ()), None)
            runner = SimpleNamespace(model=net, iter=0, epoch=0, max_iters=self.steps, max_epochs=self.max_epochs or 1)
            if hook is not None:
                hook.before_run(runner)
                hook.before_train(runner)
            for i, (x, y) in enumerate(batches(self.steps - self.left)):
                runner.iter, runner.epoch = i, i // self.epoch_length if self.max_epochs else 0
                self._train_step(net, wrapper, x, y)
                if hook is not None:
                    hook.after_train_iter(runner, i)
                self._advance(schedulers, i)
        return net, None if hook is None else hook.ema_model.module.state_dict()

    def _wrapper(self, net: Small) -> Any:
        config = copy.deepcopy(dict(self.optim_wrapper))
        if config.get("constructor") != "MultiOptimWrapperConstructor":
            return optim.build_optim_wrapper(net, config)
        del config["constructor"]
        made = {key: optim.build_optim_wrapper(getattr(net, key), one) for key, one in config.items()}
        return optim.OptimWrapperDict(**made)

    def _schedulers(self, wrapper: Any) -> list[Any]:
        """In the Runner's order; one list is built for each of several optimizers."""
        given = self.param_scheduler or []
        several = isinstance(wrapper, optim.OptimWrapperDict)
        pairs = [(wrapper, given)]
        if several:
            by_key = given if isinstance(given, dict) and "type" not in given else dict.fromkeys(wrapper.keys(), given)
            pairs = [(one, by_key.get(key, [])) for key, one in wrapper.items()]
        built = []
        for of, entries in pairs:
            for entry in copy.deepcopy(entries if isinstance(entries, list) else [entries]):
                if not entry["type"].startswith("ReduceOnPlateau"):
                    end = (self.max_epochs or 1) if entry.get("by_epoch", True) else self.steps
                    entry.setdefault("end", end)
                default = {"optimizer": of, "epoch_length": self.epoch_length}
                built.append(registry.PARAM_SCHEDULERS.build(entry, default_args=default))
        return built

    def _advance(self, schedulers: list[Any], i: int) -> None:
        for scheduler in schedulers:
            if not scheduler.by_epoch:
                scheduler.step()
        if (i + 1) % self.epoch_length:
            return
        for scheduler in schedulers:
            if scheduler.by_epoch and self.max_epochs is not None:
                scheduler.step()
        for scheduler in schedulers:
            if self.metric is not None and getattr(scheduler, "need_val_args", False):
                scheduler.step({"val": self.metric(i // self.epoch_length)})

    @staticmethod
    def _train_step(net: Small, wrapper: Any, x: Tensor, y: Tensor) -> None:
        if not isinstance(wrapper, optim.OptimWrapperDict):
            wrapper.update_params((net(x) - y).square().mean())
            return
        for one in wrapper.values():
            one.update_params((net(x) - y).square().mean())
            for other in wrapper.values():  # as a GAN's step does for what another loss left, outside a window
                if other is not one and other._accumulative_counts == 1:
                    other.zero_grad()

    def ours(self) -> tuple[Small, Any]:
        """The model after the run, and its updater."""
        net = model()
        self.prepare(net)
        updater = self.updater(net)
        for i, (x, y) in enumerate(batches(self.steps - self.left)):
            for one in updater.values() if isinstance(updater, Mapping) else [updater]:
                with one.context():
                    loss = (net(x) - y).square().mean()
                one.update(loss)
            if self.metric is not None and (i + 1) % self.epoch_length == 0:
                updater.observe("val", self.metric(i // self.epoch_length))
        return net, updater

    def updater(self, net: nn.Module) -> Any:
        scale = None
        if self.batch_size is not None:
            scale = {"enable": True, "base_batch_size": self.base_batch_size, "batch_size": self.batch_size}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return mmengine.from_config(
                net,
                self.optim_wrapper,
                self.param_scheduler,
                max_epochs=self.max_epochs,
                max_iters=self.max_iters,
                epoch_length=self.epoch_length,
                auto_scale_lr=scale,
                custom_hooks=self.hooks,
            )
