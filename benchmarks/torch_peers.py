"""torch.optim, each way, with torch's own helpers around it; and rules by hand on torch._foreach.

By hand are R7's rule, which nobody ships, and Lion where GRADCHAIN_NATIVE=0 makes that the measure, or where
lion_pytorch is not installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.candidate import Candidate, Unable
from benchmarks.recipes import B1, B2, DECAY, EMA, EPS, LION_B2, MOMENTUM, Cell, factor, multipliers, rates
from benchmarks.workloads import decays


class _ByHand(torch.optim.Optimizer):
    """A rule as one writes it for speed today: in place, on lists."""

    keys = ""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {key: torch.zeros_like(p) for key in self.keys}
            slots = [[self.state[p][key] for p in params] for key in self.keys]
            self.rule(params, grads, *slots, lr=group["lr"], decay=group["weight_decay"])

    def rule(self, params: Any, grads: Any, *slots: Any, lr: float, decay: float) -> None:
        raise NotImplementedError


class OwnForeach(_ByHand):
    """R7's rule, with two scratch lists."""

    keys = "ms"

    def rule(self, params: Any, grads: Any, *slots: Any, lr: float, decay: float) -> None:
        m, s = slots
        torch._foreach_lerp_(m, grads, 1 - B1)
        torch._foreach_mul_(s, B2)
        scratch = torch._foreach_abs(grads)
        torch._foreach_maximum_(s, scratch)
        gate = torch._foreach_mul(m, grads)
        torch._foreach_sign_(gate)
        torch._foreach_mul_(gate, 0.25)
        torch._foreach_add_(gate, 0.75)
        torch._foreach_mul_(gate, m)
        torch._foreach_copy_(scratch, s)
        torch._foreach_add_(scratch, EPS)
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_addcdiv_(params, gate, scratch, -lr)


class LionForeach(_ByHand):
    """Lion, with one scratch list."""

    keys = "m"

    def rule(self, params: Any, grads: Any, *slots: Any, lr: float, decay: float) -> None:
        (m,) = slots
        direction = torch._foreach_lerp(m, grads, 1 - B1)
        torch._foreach_sign_(direction)
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_add_(params, direction, alpha=-lr)
        torch._foreach_lerp_(m, grads, 1 - LION_B2)


class Stepper(Candidate):
    """Any torch.optim.Optimizer with clip_grad_norm_, LambdaLR, GradScaler and AveragedModel around it."""

    def __init__(self, cell: Cell, make: Callable[..., Any], foreach: bool | None = True, clips: bool = True) -> None:
        super().__init__(cell)
        recipe = self.recipe = cell.recipe
        self.foreach, self.clips = foreach, clips and recipe.clip
        self.params = list(self.model.parameters())
        self.optimizer = make(self._groups(), lr=rates(recipe), weight_decay=DECAY)
        self.schedule = LambdaLR(self.optimizer, partial(factor, recipe)) if recipe.scheduled else None
        self.scaler = torch.amp.GradScaler("cpu", init_scale=recipe.loss_scale) if recipe.scaled else None
        self.ema = self._averaged_model() if recipe.scaled else None
        self._norm: Tensor | None = None

    def _averaged_model(self) -> AveragedModel | None:
        model = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
        if self.recipe.first:
            model.n_averaged.fill_(1)  # the weights it was made with count, and are not copied over
        return model

    def _groups(self) -> list[Any]:
        recipe = self.recipe
        if recipe.scaled:
            plain = [p for p in self.params if not decays(p)]
            return [{"params": [p for p in self.params if decays(p)]}, {"params": plain, "weight_decay": 0.0}]
        if not recipe.multipliers:
            return self.params
        by_number: dict[float, list[Tensor]] = {}
        for number, p in zip(multipliers(recipe, self.model).values(), self.params, strict=True):
            by_number.setdefault(number, []).append(p)
        return [{"params": ps, "lr": x * rates(recipe)} for x, ps in by_number.items()]

    def backward(self, loss: Tensor) -> None:
        super().backward(loss if self.scaler is None else self.scaler.scale(loss))

    def step(self, last: bool) -> None:
        if not last:
            return
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clips:
            self._norm = torch.nn.utils.clip_grad_norm_(self.params, self.cell.max_norm, foreach=self.foreach)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.optimizer.zero_grad()

    def norm(self) -> float | None:
        return None if self._norm is None else float(self._norm)

    def average(self) -> dict[str, Tensor] | None:
        return None if self.ema is None else dict(self.ema.module.named_parameters())


class _Torch(Stepper):
    """torch.optim itself."""

    ways: dict[str, bool]

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, self._make, foreach=True if self.ways else None)

    def _make(self, params: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        if self.cell.recipe.rule == "adamw":
            return torch.optim.AdamW(params, lr=lr, betas=(B1, B2), eps=EPS, weight_decay=weight_decay, **self.ways)
        if self.cell.recipe.rule == "sgd":
            return torch.optim.SGD(
                params, lr=lr, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay, **self.ways
            )
        raise Unable("torch.optim has no Lion" if self.cell.recipe.rule == "lion" else "nobody ships the rule of R7")


class TorchFused(_Torch):
    name, ways = "torch fused", {"fused": True}


class TorchByHand(TorchFused):
    """README's first recipe as a loop written for speed: the average is one call over lists, without AveragedModel."""

    name = "torch by hand"

    def __init__(self, cell: Cell) -> None:
        if not cell.recipe.first:
            raise Unable("it is the measure of README's first recipe")
        super().__init__(cell)
        self.averages = [p.detach().clone() for p in self.params]

    def _averaged_model(self) -> None:
        return None

    def step(self, last: bool) -> None:
        super().step(last)
        if last:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.params, 1 - EMA)

    def average(self) -> dict[str, Tensor]:
        names = (name for name, _ in self.model.named_parameters())
        return dict(zip(names, self.averages, strict=True))


class TorchForeach(_Torch):
    name, ways = "torch foreach", {"foreach": True}


class TorchDefault(_Torch):
    """No arguments: on the CPU a loop over tensors."""

    name, ways = "torch default", {}


class Handwritten(Stepper):
    name = "foreach by hand"

    def __init__(self, cell: Cell) -> None:
        rules = {"own": OwnForeach}
        if os.environ.get("GRADCHAIN_NATIVE") == "0" or importlib.util.find_spec("lion_pytorch") is None:
            rules["lion"] = LionForeach
        if cell.recipe.rule not in rules:
            raise Unable("it is the peer of rules that nobody ships, and of Lion without lion_pytorch or a compiler")
        super().__init__(cell, rules[cell.recipe.rule])


PEERS = (TorchFused, TorchByHand, TorchForeach, TorchDefault, Handwritten)
