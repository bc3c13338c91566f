"""Other libraries' optimizers on the same models, each at its own best settings as its documentation has them.

What a library does not have it gets from torch (clip_grad_norm_, LambdaLR, GradScaler, AveragedModel), where its
optimizer is one that those accept.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.candidate import Candidate, Unable
from benchmarks.recipes import B1, B2, DECAY, EPS, LION_B2, MOMENTUM, STEPS, Cell, Recipe, factor, rates
from benchmarks.torch_peers import Stepper


def library(name: str) -> ModuleType:
    """The library, or why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise Unable(f"{name} cannot be imported: {error}") from error


def _adamw_of_torch(name: str) -> Unable:
    return Unable(f"{name} ships no AdamW or SGD of its own: it hands out torch's, which is here already")


class PytorchOptimizer(Stepper):
    """pytorch_optimizer's Lion, by its default on foreach."""

    name = "pytorch_optimizer"

    def __init__(self, cell: Cell) -> None:
        lib = library("pytorch_optimizer")
        if cell.recipe.rule in ("adamw", "sgd"):
            raise _adamw_of_torch(self.name)
        if cell.recipe.rule != "lion":
            raise Unable("nobody ships the rule of R7")
        super().__init__(cell, lambda params, **kw: lib.Lion(params, betas=(B1, LION_B2), **kw))


class LionPytorch(Stepper):
    """lion_pytorch's Lion: a loop over tensors."""

    name, module = "lion_pytorch", "lion_pytorch"

    def __init__(self, cell: Cell) -> None:
        lib = library(self.module)
        if cell.recipe.rule != "lion":
            raise Unable("it has Lion only")
        super().__init__(cell, lambda params, **kw: lib.Lion(params, betas=(B1, LION_B2), **kw))


class LionPytorchForeach(LionPytorch):
    """The same library's Lion on foreach."""

    name, module = "lion_pytorch foreach", "lion_pytorch.foreach"


class HeavyBall(Stepper):
    """HeavyBall, compiled as it is by default; its norm clip is per group, so torch clips."""

    name = "heavyball"
    traced = False

    def __init__(self, cell: Cell) -> None:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        lib = library("heavyball")
        if cell.recipe.rule != "adamw":
            what = {"sgd": "its SGD has no Nesterov momentum", "lion": "it has no Lion"}
            raise Unable(what.get(cell.recipe.rule, "nobody ships the rule of R7"))
        super().__init__(cell, lambda params, **kw: lib.AdamW(params, betas=(B1, B2), eps=EPS, **kw))


class TorchZero(Stepper):
    """torchzero: a chain of modules, its own ClipNorm, torch's LambdaLR around it."""

    name = "torchzero"

    def __init__(self, cell: Cell) -> None:
        self.tz = library("torchzero")
        if cell.recipe.rule == "own":
            raise Unable("nobody ships the rule of R7")
        super().__init__(cell, self._make, clips=False)

    def _make(self, params: Any, lr: float, weight_decay: float) -> Any:
        m, recipe = self.tz.m, self.cell.recipe
        decay = m.WeightDecay(weight_decay)
        modules = {
            "adamw": lambda: [m.Adam(B1, B2, EPS), decay],
            "lion": lambda: [m.Lion(B1, LION_B2), decay],
            "sgd": lambda: [decay, m.NAG(MOMENTUM)],
        }[recipe.rule]()
        clip = [m.ClipNorm(self.cell.max_norm, dim="global")] if recipe.clip else []
        return self.tz.Optimizer(params, *clip, *modules, m.LR(lr))


class TorchOpt(Candidate):
    """torchopt.Optimizer around a torchopt.chain."""

    name, accelerated = "torchopt", False

    def __init__(self, cell: Cell) -> None:
        lib, recipe = library("torchopt"), cell.recipe
        if recipe.rule in ("lion", "own"):
            raise Unable("it has no Lion" if recipe.rule == "lion" else "nobody ships the rule of R7")
        if recipe.scaled:
            raise Unable("its Optimizer has no param_groups of the form that GradScaler and LambdaLR read")
        if recipe.multipliers:
            raise Unable("one transformation serves all parameters: it has no multipliers")
        if self.accelerated and recipe.rule != "adamw":
            raise Unable("only its Adam has such an operator")
        super().__init__(cell)
        rate: Any = rates(recipe)
        if recipe.scheduled:
            rate = _schedule(recipe)
        if recipe.rule == "adamw":
            fast = {"use_accelerated_op": self.accelerated}
            rule = lib.adamw(lr=rate, betas=(B1, B2), eps=EPS, weight_decay=DECAY, **fast)
        else:
            rule = lib.sgd(lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
        if recipe.clip:
            rule = lib.combine.chain(lib.clip.clip_grad_norm(cell.max_norm), rule)
        self.optimizer = lib.Optimizer(self.model.parameters(), rule)

    def step(self, last: bool) -> None:
        if last:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


class TorchOptAccelerated(TorchOpt):
    """The same with the operator it brings in C++."""

    name, accelerated = "torchopt accelerated", True


def _schedule(recipe: Recipe) -> Callable[[Any], Any]:
    rate = rates(recipe)

    def at(count: Any) -> Any:
        if isinstance(count, Tensor):
            return rate * (0.1 + 0.45 * (1 + torch.cos(math.pi * count / STEPS)))
        return rate * factor(recipe, int(count))

    return at


PEERS = (PytorchOptimizer, LionPytorch, LionPytorchForeach, TorchOpt, TorchOptAccelerated, TorchZero, HeavyBall)
