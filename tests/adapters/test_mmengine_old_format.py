"""The format of mmcv 1.x: its constructor, its averages, its hooks and policies, beside twins of its formulas."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from later import later
from mmengine_training import batches, model
from torch import Tensor, nn

import gradchain as gch
from gradchain.adapters import mmengine

averaged_model = later("mmengine.model.averaged_model")
SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
RUN = {"max_epochs": 5, "epoch_length": 4}


def quiet(read: Callable[..., Any], *args: Any, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*args, **given)


# the constructor


def by_mmcv(net: nn.Module, cfg: dict[str, Any], lr: float, decay: float) -> dict[str, tuple[float, float]]:
    """What DefaultOptimizerConstructor of mmcv 1.7.2 makes of each parameter: lr and weight decay."""
    found: dict[str, tuple[float, float]] = {}
    keys = sorted(sorted(cfg.get("custom_keys", {})), key=len, reverse=True)
    for prefix, module in net.named_modules():
        norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm))
        depthwise = isinstance(module, nn.Conv2d) and module.in_channels == module.groups
        for name, _ in module.named_parameters(recurse=False):
            full, bias = f"{prefix}.{name}", name == "bias"
            key = next((key for key in keys if key in full), None)
            if key is not None:
                entry = cfg["custom_keys"][key]
                factors = entry.get("lr_mult", 1.0), entry.get("decay_mult", 1.0)
            else:
                kind = "norm" if norm else "dwconv" if depthwise else "bias" if bias else "no"
                rate = cfg.get("bias_lr_mult", 1.0) if bias and not norm else 1.0
                factors = rate, cfg.get(f"{kind}_decay_mult", 1.0)
            found[full.lstrip(".")] = (lr * factors[0], decay * factors[1])
    return found


RULES = [
    {"bias_decay_mult": 0.0},
    {"norm_decay_mult": 0.0},
    {"dwconv_decay_mult": 0.5},
    {"bias_decay_mult": 0.0, "dwconv_decay_mult": 0.5},
    {"bias_decay_mult": 0.25, "norm_decay_mult": 0.0, "bias_lr_mult": 2.0},
    {"norm_decay_mult": 0.0, "dwconv_decay_mult": 0.5, "bias_decay_mult": 0.25},
    {"bias_lr_mult": 2.0},
    {"bias_decay_mult": 0.0, "custom_keys": {"head": {"lr_mult": 0.1, "decay_mult": 2.0}}},
    {"custom_keys": {"head.1": {"lr_mult": 0.1, "decay_mult": 1.0}, "scale": {"decay_mult": 0.0}}},
]


@pytest.mark.parametrize("named", [False, True], ids=["no constructor", "its name"])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_parameters_are_those_of_mmcv(rules: dict[str, Any], named: bool) -> None:
    """Norm, then depthwise, then bias; a kind whose rule is not set takes its own too. With a model and without."""
    optimizer = {**SGD, "paramwise_cfg": rules, **({"constructor": "DefaultOptimizerConstructor"} if named else {})}
    config = {"optimizer": optimizer, "optimizer_config": None}
    wanted = by_mmcv(model(), rules, 0.05, 0.01)
    [part] = mmengine.unbound(copy.deepcopy(config), **RUN)
    for updater in (mmengine.from_config(model(), config, **RUN), part.chain.bind(model())):
        numbers = updater.hyperparams()
        for address, place in (("scale_by_learning_rate.learning_rate", 0), ("add_decayed_weights.weight_decay", 1)):
            given = numbers[address]
            for name, pair in wanted.items():
                ours = given[name] if isinstance(given, dict) else given
                assert math.isclose(ours, pair[place], rel_tol=1e-15), (address, name)


def test_each_of_several_old_optimizers_has_mmcvs_constructor() -> None:
    config = {"optimizer": {"body": {**SGD, "paramwise_cfg": RULES[0]}, "head": SGD}, "optimizer_config": None}
    updater = mmengine.from_config(model(), config, **RUN)["body"]
    # a norm's bias and a depthwise convolution's are the only ones, and keep theirs
    assert updater.hyperparams()["add_decayed_weights.weight_decay"] == 0.01


# the averages


def averaged(hook: dict[str, Any], i: int, before: Tensor, new: Tensor) -> Tensor:
    """An average after iteration i, by mmcv 1.7.2's EMAHook or MMDetection 2.28's ExpMomentum and LinearMomentum."""
    m, every = hook.get("momentum", 0.0002), hook.get("interval", 1)
    if hook["type"] == "EMAHook":
        acts, m = i % every == 0, min(m**every, (1 + i) / (hook.get("warm_up", 100) + i))
    elif hook["type"] == "ExpMomentumEMAHook":
        acts, m = (i + 1) % every == 0, (1 - m) * math.exp(-(1 + i) / hook.get("total_iter", 2000)) + m
    else:
        acts, m = (i + 1) % every == 0, min(m**every, (1 + i) / (hook.get("warm_up", 100) + i))
    return before * (1 - m) + new * m if acts else before


HOOKS = [
    {"type": "EMAHook"},
    {"type": "EMAHook", "momentum": 0.3, "warm_up": 5, "priority": 49},
    {"type": "EMAHook", "momentum": 0.9, "interval": 3, "warm_up": 10, "resume_from": None},
    {"type": "mmcls.EMAHook", "momentum": 0.5, "interval": 2, "warm_up": 1},
    {"type": "ExpMomentumEMAHook", "total_iter": 7, "momentum": 0.1},
    {"type": "ExpMomentumEMAHook", "total_iter": 7, "momentum": 0.1, "interval": 4, "skip_buffers": True},
    {"type": "LinearMomentumEMAHook", "warm_up": 4, "momentum": 0.8},
    {"type": "LinearMomentumEMAHook", "warm_up": 4, "momentum": 0.8, "interval": 3},
]


@pytest.mark.parametrize("hook", HOOKS, ids=str)
def test_averages_are_those_of_mmcv(hook: dict[str, Any]) -> None:
    """From the weights before the first iteration, by the momentum of each; buffers where the hook takes them."""
    plain = {**hook, "type": hook["type"].rpartition(".")[2]}
    net = model()
    updater = mmengine.from_config(
        net, {"optimizer": SGD, "lr_config": {"policy": "fixed"}}, custom_hooks=[hook], max_iters=30, epoch_length=5
    )
    buffers: list[str] = []
    if "skip_buffers" not in plain and plain["type"] != "EMAHook":
        buffers = [name for name, buffer in net.named_buffers() if buffer.is_floating_point()]
    names = [*(name for name, _ in net.named_parameters()), *buffers]
    theirs = {name: net.state_dict()[name].clone() for name in names}
    for i, (x, y) in enumerate(batches(30)):
        updater.update((net(x) - y).square().mean())
        live = {name: value.clone() for name, value in net.state_dict().items()}
        if i == 0:  # on purpose: averages of buffers begin here at those after the first iteration
            theirs |= {name: live[name] for name in buffers}
        theirs = {name: averaged(plain, i, theirs[name], live[name]) for name in names}
        ours = updater.averages()
        for name in names:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-14)
    assert (theirs["head.1.weight"] - net.head[1].weight).abs().max() > 1e-4


def test_each_format_reads_its_own_hooks() -> None:
    """MMEngine has no ExpMomentumEMAHook, mmcv no ema_type: what is no hook of the format is named, or a slip."""
    new, old = {"optimizer": SGD}, {"optimizer": SGD, "optimizer_config": None}
    with pytest.warns(UserWarning, match="ExpMomentumEMAHook are not read"):
        mmengine.from_config(model(), new, custom_hooks=[{"type": "ExpMomentumEMAHook"}], **RUN)
    with pytest.raises(TypeError, match="every key must be known, got 'ema_type'"):
        mmengine.from_config(model(), old, custom_hooks=[{"type": "EMAHook", "ema_type": "ExpMomentumEMA"}], **RUN)
    with pytest.raises(ValueError, match="warm_up must be a number of at least 1, got 0"):
        mmengine.from_config(model(), old, custom_hooks=[{"type": "EMAHook", "warm_up": 0}], **RUN)
    windows = {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 2}
    with pytest.raises(ValueError, match="it must come without accumulation"):
        mmengine.from_config(
            model(), {"optimizer": SGD, "optimizer_config": windows}, custom_hooks=[{"type": "EMAHook"}], **RUN
        )


# what was said poorly


@pytest.mark.parametrize("clip", [2.0, 0, "35", True, [35]], ids=str)
def test_a_clip_is_a_dict(clip: Any) -> None:
    sentence = f"grad_clip must be a dict such as dict(max_norm=35), or None, got {clip!r}."
    for kind in ("OptimizerHook", "Fp16OptimizerHook"):
        config = {"optimizer": SGD, "optimizer_config": {"type": kind, "grad_clip": clip}}
        with pytest.raises(TypeError, match=re.escape(sentence)):
            mmengine.from_config(model(), config, **RUN)


@pytest.mark.parametrize("kind", ["linear", "constant", "exp"])
@pytest.mark.parametrize(("by_epoch", "steps"), [(False, 21), (True, 6)])
def test_a_warm_up_longer_than_the_run_is_said_once(kind: str, by_epoch: bool, steps: int) -> None:
    lr = {"policy": "poly", "warmup": kind, "warmup_iters": steps, "warmup_by_epoch": by_epoch}
    with pytest.warns(UserWarning) as told:
        fields = mmengine.schedules(lr_config=lr, **RUN)
        fields["lr"](0.1), fields["lr"](0.2)
    length = steps * (4 if by_epoch else 1)
    assert [str(w.message) for w in told] == [
        f"mmengine.schedules: lr_config (Poly): the warm-up of {length} iterations is longer than the run, which has 20."
    ]


@pytest.mark.parametrize("policy", ["CosineAnnealing", "FlatCosineAnnealing", "LinearAnnealing", "CosineRestart"])
def test_a_floor_that_is_not_there_is_said(policy: str) -> None:
    with pytest.raises(ValueError, match=r"min_lr or min_lr_ratio must be given, got neither\."):
        mmengine.schedules(lr_config={"policy": policy, "periods": [5]} if "R" in policy else {"policy": policy}, **RUN)
