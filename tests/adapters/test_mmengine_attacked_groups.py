"""Random models of every kind under random paramwise_cfg: MMEngine's own constructor, the settings, and `unbound`."""

from __future__ import annotations

import copy
import os
import random
import warnings
from typing import Any

import pytest
import torch
from attacked_models import loss, random_model, random_optimizer, random_rules
from later import later
from torch import nn

from gradchain.adapters import mmengine
from gradchain.updater.target import Target

optim = later("mmengine.optim")
SEEDS = range(4000 if os.environ.get("GRADCHAIN_LONG") else 160)


def constructed(model: nn.Module, wrapper: dict[str, Any]) -> dict[str, Any]:
    """By the name that we give a parameter, the group that MMEngine's own constructor puts it into."""
    config = copy.deepcopy(wrapper)
    optimizer = optim.DefaultOptimWrapperConstructor(config, config.pop("paramwise_cfg"))(model).optimizer
    names = {id(parameter): name for name, parameter, _ in Target(model).index.entries}
    found: dict[str, Any] = dict.fromkeys(names.values())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in names:  # not the group that stands for the base values
                found[names[id(parameter)]] = {key: value for key, value in group.items() if key != "params"}
    return found


def case(seed: int) -> tuple[nn.Module, dict[str, Any]]:
    draw, model = random.Random(7 * seed + 1), random_model(seed)
    return model, {"optimizer": random_optimizer(draw), "paramwise_cfg": random_rules(draw, model)}


def outcome(make: Any, *given: Any, **named: Any) -> Any:
    """What it returns, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make(*given, **named)
        except (TypeError, ValueError) as error:
            return error


def test_random_models_have_mmengines_groups() -> None:
    """To the bit: what each parameter begins with, which are not optimised, and an error where MMEngine has one."""
    told, raised, apart = 0, 0, 0
    for seed in SEEDS:
        model, wrapper = case(seed)
        before = copy.deepcopy(wrapper)
        theirs = outcome(constructed, model, wrapper)
        ours = outcome(mmengine.param_settings, model, wrapper, strict=False)
        assert wrapper == before
        if isinstance(theirs, Exception) or isinstance(ours, Exception):
            assert isinstance(theirs, Exception) and isinstance(ours, Exception), (seed, theirs, ours)
            raised += 1
            continue
        told += 1
        apart += len({s and s["lr"] for s in ours.values()}) > 1
        assert theirs.keys() == ours.keys()
        for name, group in theirs.items():
            mine = ours[name]
            assert (group is None) == (mine is None), (seed, name)
            for key, value in (mine or {}).items():
                assert group[key] == value, (seed, name, key, group, mine)
            assert group is None or mine.get("weight_decay", 0.0) == group["weight_decay"], (seed, name)
    assert told > 0.6 * len(SEEDS) and raised > 0.05 * len(SEEDS) and apart > 0.2 * len(SEEDS), (told, raised, apart)


def test_unbound_is_the_same_once_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three updates of the chain made with the model and of that made without it; else a refusal that says why."""
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")  # a program for each of these models would be compiled
    equal = refused = 0
    for seed in SEEDS[: len(SEEDS) // 2]:
        model, wrapper = case(seed)
        if isinstance(model, nn.DataParallel):
            continue
        twin = copy.deepcopy(model)
        run = {"max_iters": 3, "epoch_length": 3, "strict": False}
        whole = outcome(mmengine.from_config, model, wrapper, **run)
        parts = outcome(mmengine.unbound, wrapper, **run)
        made = parts if isinstance(parts, Exception) else outcome(parts[0].chain.bind, twin)
        if isinstance(whole, Exception) or isinstance(made, Exception):
            why = made if isinstance(made, Exception) else whole
            assert str(why).startswith("mmengine.") or "matches none" in str(why), (seed, why)
            refused += 1
            continue
        for step in range(3):
            whole.update(loss(model, step))
            made.update(loss(twin, step))
        for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=f"{seed}, {name}, {wrapper}")
        equal += 1
    assert equal > refused > 0


OLD: list[tuple[str, Any, dict[str, float], dict[str, float]]] = [
    # the rule, the layer, and the weight decay of its parameters in units of the optimizer's, by mmcv 1.7.2's source
    ("bias only, LayerNorm", nn.LayerNorm(2), {"bias_decay_mult": 0.0}, {"weight": 1.0, "bias": 1.0}),
    ("bias only, GroupNorm", nn.GroupNorm(1, 2), {"bias_decay_mult": 0.0}, {"weight": 1.0, "bias": 1.0}),
    ("bias only, RMSNorm", nn.RMSNorm(2), {"bias_decay_mult": 0.0}, {"weight": 1.0}),
    ("bias only, one channel", nn.Conv2d(1, 2, 1), {"bias_decay_mult": 0.0}, {"weight": 1.0, "bias": 1.0}),
    ("bias only, Conv1d", nn.Conv1d(2, 2, 1, groups=2), {"bias_decay_mult": 0.0}, {"weight": 1.0, "bias": 0.0}),
    ("bias, depthwise", nn.Conv2d(2, 2, 1, groups=2), {"bias_decay_mult": 0.0, "dwconv_decay_mult": 0.5},
     {"weight": 0.5, "bias": 0.5}),
    ("norm unset, depthwise set", nn.BatchNorm2d(2), {"dwconv_decay_mult": 0.5}, {"weight": 1.0, "bias": 1.0}),
    ("all three, norm", nn.SyncBatchNorm(2), {"norm_decay_mult": 0.2, "dwconv_decay_mult": 0.5, "bias_decay_mult": 0.0},
     {"weight": 0.2, "bias": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "rules", "wanted"), OLD, ids=[row[0] for row in OLD])
def test_decay_in_the_old_format(
    name: str, layer: nn.Module, rules: dict[str, float], wanted: dict[str, float]
) -> None:
    """mmcv 1.x: norm, depthwise, bias, where a kind keeps its parameters from the next, whether its rule is set or not;
    the same with the model and without it."""
    model = nn.Sequential(layer, nn.Linear(2, 2), nn.Conv2d(2, 2, 1, groups=2), nn.BatchNorm1d(2))
    config = {
        "optimizer": {"type": "SGD", "lr": 0.5, "weight_decay": 0.1, "paramwise_cfg": rules},
        "optimizer_config": None,
    }
    run = {"max_iters": 1, "epoch_length": 1}
    for make in (
        lambda: mmengine.from_config(model, config, **run),
        lambda: mmengine.unbound(config, **run)[0].chain.bind(model),
    ):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        make().step(grads={key: torch.zeros_like(p) for key, p in model.named_parameters()})
        for key, factor in wanted.items():
            moved = 1.0 - getattr(layer, key).detach()
            torch.testing.assert_close(moved, torch.full_like(moved, 0.5 * 0.1 * factor), msg=f"{name}: {key}")
