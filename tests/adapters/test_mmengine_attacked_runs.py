"""Random recipes over random models, run beside MMEngine's own wrapper, schedulers and EMAHook: the same weights."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attacked_models import loss, random_model, random_optimizer, random_rules
from later import later
from mmengine_live import Run, optim, registry
from mmengine_training import exp_momentum_ema
from torch import Tensor, nn

from gradchain.adapters import mmengine

hooks = later("mmengine.hooks")
LONG = bool(os.environ.get("GRADCHAIN_LONG"))
RECIPES = 1500 if LONG else 14
"""So many with an average, so many with windows of several micro-batches, and so many with neither."""


@dataclass
class Recipe:
    """One random recipe, and its model."""

    seed: int

    def __post_init__(self) -> None:
        draw = random.Random(11 * self.seed + 5)
        self.run = Run(self.seed)
        self.net = random_model(self.seed)
        self.wrapper: dict[str, Any] = {"optimizer": random_optimizer(draw)}
        if draw.random() < 0.6:
            self.wrapper["paramwise_cfg"] = random_rules(draw, self.net)
        self.hook = self._average(draw) if draw.random() < 0.4 else None
        if self.hook is None and draw.random() < 0.5:  # an average counts updates here, and iterations there
            self.wrapper["accumulative_counts"] = draw.choice([1, 2, 3, 7])
        clips = [{"max_norm": 0.3}, {"max_norm": 35, "norm_type": 1}, {"max_norm": 0.1, "norm_type": "inf"}]
        clip = draw.choice([None, None, *clips, {"type": "value", "clip_value": 0.3}])
        if clip is not None:
            self.wrapper["clip_grad"] = clip
        self.schedulers = self.run.schedulers if draw.random() < 0.8 else []

    def _average(self, draw: random.Random) -> dict[str, Any]:
        kind = draw.choice(
            ["ExponentialMovingAverage", "StochasticWeightAverage", "MomentumAnnealingEMA", "ExpMomentumEMA"]
        )
        hook: dict[str, Any] = {"type": "EMAHook", "ema_type": kind}
        if kind != "StochasticWeightAverage":
            hook["momentum"] = draw.choice([0.1, 0.5, 0.02])
        if kind in ("MomentumAnnealingEMA", "ExpMomentumEMA"):
            hook["gamma"] = draw.choice([3, 10])
        hook |= draw.choice([{}, {"interval": 2}, {"interval": 3}])
        return hook | draw.choice([{}, {"begin_iter": draw.randint(0, self.run.iters)}, {"begin_epoch": 1}])

    def theirs(self, net: nn.Module) -> tuple[list[list[Tensor]], Any]:
        """The weights after each iteration, and the averages, as the Runner drives them."""
        run, epochs = self.run, self.run.length.get("max_epochs")
        wrapper = optim.build_optim_wrapper(net, copy.deepcopy(self.wrapper))
        wrapper.initialize_count_status(net, 0, run.iters)
        built = []
        for entry in copy.deepcopy(self.schedulers):
            entry.setdefault("end", (epochs or 1) if entry.get("by_epoch", True) else run.iters)
            default = {"optimizer": wrapper, "epoch_length": run.epoch_length}
            built.append(registry.PARAM_SCHEDULERS.build(entry, default_args=default))
        exp_momentum_ema()
        hook = self.hook and hooks.EMAHook(**{key: value for key, value in self.hook.items() if key != "type"})
        runner = SimpleNamespace(model=net, iter=0, epoch=0, max_iters=run.iters, max_epochs=epochs or 1)
        if hook:
            hook.before_run(runner)
            hook.before_train(runner)
        seen = []
        for i in range(run.iters):
            runner.iter, runner.epoch = i, i // run.epoch_length if epochs else 0
            move_buffers(net, i)
            wrapper.update_params(loss(net, i))
            if hook:
                hook.after_train_iter(runner, i)
            seen.append([parameter.detach().clone() for parameter in net.parameters()])
            ended = bool(epochs) and (i + 1) % run.epoch_length == 0
            for scheduler in [s for s in built if not s.by_epoch] + [s for s in built if s.by_epoch and ended]:
                scheduler.step()
        return seen, hook and hook.ema_model.module.state_dict()

    def ours(self, net: nn.Module, bound: bool) -> tuple[list[list[Tensor]], Any]:
        """The same by the chain: read with the model, or without it and bound after."""
        given = {"epoch_length": self.run.epoch_length, "custom_hooks": self.hook and [self.hook], "strict": False}
        given |= self.run.length
        if bound:
            updater = mmengine.from_config(net, self.wrapper, self.schedulers, **given)
        else:
            [part] = mmengine.unbound(self.wrapper, self.schedulers, **given)
            updater = part.chain.bind(net)
        seen = []
        for i in range(self.run.iters):
            move_buffers(net, i)
            updater.update(loss(net, i))
            seen.append([parameter.detach().clone() for parameter in net.parameters()])
        if self.hook is None:
            return seen, None
        averaged = copy.deepcopy(net)
        updater.copy_average_to(averaged)
        return seen, averaged.state_dict()


def recipes() -> Iterator[Recipe]:
    """Random ones, of each kind as many, none of them long."""
    left = dict.fromkeys(("average", "window", "neither"), RECIPES)
    for seed in itertools.count():
        recipe = Recipe(seed)
        kind = "average" if recipe.hook else "window" if recipe.wrapper.get("accumulative_counts", 1) > 1 else "neither"
        if recipe.run.iters <= 24 and left[kind]:
            left[kind] -= 1
            yield recipe
        if not any(left.values()):
            return


def move_buffers(net: nn.Module, step: int) -> None:
    for name, buffer in net.named_buffers():
        buffer.add_(math.sin(step + len(name)) if buffer.is_floating_point() else 1)


def outcome(make: Any, *given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make(*given)
        except (TypeError, ValueError, KeyError) as error:
            return error


# what ours refuses and theirs runs: the table of differences has the first, `unbound` the second
REFUSED = ("interval must be a multiple", "matches none", "must be in [0, ")


@pytest.mark.parametrize("bound", [True, False], ids=["from_config", "unbound"])
def test_random_recipes_train_the_same(bound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight after every iteration at 1e-9, and the averages at the end; else both refuse, or we say why."""
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")  # a program for each of these models would be compiled
    equal = averaged = 0
    for recipe in recipes():
        seed = recipe.seed
        kept, twin = copy.deepcopy(recipe.net), copy.deepcopy(recipe.net)
        theirs, ours = outcome(recipe.theirs, kept), outcome(recipe.ours, twin, bound)
        if isinstance(ours, Exception):
            assert isinstance(theirs, Exception) or any(why in str(ours) for why in REFUSED), (seed, ours)
            continue
        if isinstance(
            theirs, Exception
        ):  # a tied weight, which `unbound` cannot know of; a momentum where there is none
            assert not bound or "must support momentum" in str(theirs), (seed, theirs)
            continue
        names = [name for name, _ in kept.named_parameters()]
        for i, (one, other) in enumerate(zip(theirs[0], ours[0], strict=True)):
            for name, a, b in zip(names, one, other, strict=True):
                torch.testing.assert_close(
                    b, a, rtol=1e-9, atol=1e-11, msg=f"{seed}: {name} after {i}: {recipe.wrapper}"
                )
        equal += 1
        for name, value in (theirs[1] or {}).items():
            torch.testing.assert_close(ours[1][name], value, rtol=1e-9, atol=1e-11, msg=f"{seed}: average of {name}")
            averaged += 1
    assert equal > 1.5 * RECIPES and averaged > 3 * RECIPES
