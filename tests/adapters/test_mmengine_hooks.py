"""Hooks of MMYOLO that set the learning rate themselves, beside their formulas run as a Runner would run them."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
from mmengine_training import model
from torch import nn

from gradchain.adapters import mmengine

SGD = {"type": "SGD", "lr": 0.01, "momentum": 0.937, "weight_decay": 5e-4}
V5 = "YOLOv5OptimizerConstructor"


def interpolated(i: int, last: int, start: float, end: float) -> float:
    return start + (end - start) * min(i / last, 1.0)


def yolov5(hook: dict[str, Any], epochs: int | None, iters: int, length: int) -> list[list[float]]:
    """lr of weights, of biases, and momentum at each iteration: MMYOLO 0.6's YOLOv5ParamSchedulerHook, step by step."""
    foot, last = hook.get("lr_factor", 0.01), hook.get("max_epochs", 300)
    bias_lr, heavy = hook.get("warmup_bias_lr", 0.1), hook.get("warmup_momentum", 0.8)
    cosine = hook.get("scheduler_type") == "cosine"

    def value(x: int) -> float:
        half = (1 - math.cos(x * math.pi / last)) / 2
        return half * (foot - 1) + 1 if cosine else (1 - x / last) * (1 - foot) + foot

    warm = max(round(hook.get("warmup_epochs", 3) * length), hook.get("warmup_mim_iter", 1000))
    now, ended, seen = [0.01, 0.01, 0.937], False, []
    for i in range(iters):
        epoch = 0 if epochs is None else i // length
        if i <= warm:
            end = 0.01 * value(epoch)
            now = [interpolated(i, warm, 0.0, end), interpolated(i, warm, bias_lr, end), 0.0]
            now[2] = interpolated(i, warm, heavy, 0.937)
        else:
            ended = True
        seen.append(list(now))
        if epochs is not None and (i + 1) % length == 0 and ended:
            now[:2] = [0.01 * value(epoch)] * 2
    return seen


RUNS: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"warmup_mim_iter": 10}, {"max_epochs": 9, "epoch_length": 4}),
    ({"warmup_mim_iter": 3, "warmup_epochs": 2, "lr_factor": 0.2, "max_epochs": 9},
     {"max_epochs": 9, "epoch_length": 5}),
    ({"warmup_mim_iter": 1, "warmup_epochs": 0.8, "scheduler_type": "cosine", "max_epochs": 12},
     {"max_epochs": 12, "epoch_length": 5}),
    ({"warmup_mim_iter": 9, "warmup_epochs": 0, "warmup_bias_lr": 0.0}, {"max_epochs": 4, "epoch_length": 10}),
    ({"warmup_mim_iter": 1, "warmup_epochs": 1.5, "warmup_momentum": 0.5, "max_epochs": 40, "scheduler_type": "cosine"},
     {"max_epochs": 8, "epoch_length": 7}),
    ({}, {"max_epochs": 4, "epoch_length": 10}),
    ({"warmup_mim_iter": 8}, {"max_iters": 30, "epoch_length": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "length"), RUNS, ids=[f"run{i}" for i in range(len(RUNS))])
@pytest.mark.parametrize("bound", [True, False], ids=["model", "no model"])
def test_yolov5_warms_up_and_steps_at_the_ends_of_epochs(
    hook: dict[str, Any], length: dict[str, int], bound: bool
) -> None:
    """Each iteration's numbers, in any order; biases come down to the others, momentum comes up."""
    wrapper = {"optimizer": SGD, "constructor": V5}
    given = {"default_hooks": {"param_scheduler": {"type": "YOLOv5ParamSchedulerHook", **hook}}, **length}
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    if bound:
        chain = mmengine.from_config(net, wrapper, **given).chain
    else:
        [part] = mmengine.unbound(wrapper, **given)
        chain = part.chain
    epochs = length.get("max_epochs")
    iters = length.get("max_iters") or (epochs or 0) * length["epoch_length"]
    updater = chain.bind(net)
    for i, wanted in enumerate(yolov5(hook, epochs, iters, length["epoch_length"])):
        numbers = updater.hyperparams()
        rate = numbers["scale_by_learning_rate.learning_rate"]
        ours = [rate["0.weight"], rate["2.bias"], numbers["trace.decay"]]
        assert rate["1.bias"] == rate["0.bias"] == ours[1] and rate["1.weight"] == ours[0]
        for a, b in zip(ours, wanted, strict=True):
            assert math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-18), (i, ours, wanted)
        for parameter in net.parameters():
            parameter.grad = parameter.detach() * 0
        updater.step()


def test_yolov5_has_no_momentum_for_adam_and_no_biases_in_one_group() -> None:
    hook = {"param_scheduler": {"type": "mmyolo.YOLOv5ParamSchedulerHook", "warmup_mim_iter": 2, "warmup_epochs": 0}}
    wrapper: dict[str, Any] = {"optimizer": {"type": "AdamW", "lr": 0.01}}
    updater = mmengine.from_config(model(), wrapper, default_hooks=hook, max_epochs=3, epoch_length=4)
    numbers = updater.hyperparams()
    assert numbers["scale_by_adam.b1"] == 0.9 and numbers["scale_by_learning_rate.learning_rate"] == 0.0
    with pytest.raises(ValueError, match="constructor must be YOLOv5's or v7's"):
        wrapper["paramwise_cfg"] = {"bias_lr_mult": 2.0}
        mmengine.from_config(model(), wrapper, default_hooks=hook, max_epochs=3, epoch_length=4)


@pytest.mark.parametrize("hook", [
    {"warmup_min_iter": 5, "warmup_epochs": 2, "total_epochs": 12},
    {"warmup_min_iter": 17, "start_factor": 0.25, "min_lr_ratio": 0.1, "total_epochs": 11, "warmup_epochs": 0},
    {"warmup_min_iter": 1, "warmup_epochs": 1.5, "total_epochs": 36},
    {},
], ids=str)  # fmt: skip
def test_ppyoloe_warms_up_to_a_cosine_longer_than_the_run(hook: dict[str, Any]) -> None:
    given = {"default_hooks": {"param_scheduler": {"type": "PPYOLOEParamSchedulerHook", **hook}}, "max_epochs": 10}
    net = model()
    rules = {"custom_keys": {"head": {"lr_mult": 0.1, "decay_mult": 1.0}}}
    wrapper = {"optimizer": SGD, "paramwise_cfg": rules}
    updater = mmengine.from_config(net, wrapper, **given, epoch_length=4)
    warm = max(round(hook.get("warmup_epochs", 5) * 4), hook.get("warmup_min_iter", 1000))
    total, foot = hook.get("total_epochs", 360) * 4, hook.get("min_lr_ratio", 0.0)
    for i in range(40):
        alpha = i / warm
        factor = hook.get("start_factor", 0.0) * (1 - alpha) + alpha
        if i > warm:
            factor = foot + (1 - foot) * 0.5 * (math.cos((i - warm) * math.pi / (total - warm)) + 1)
        rate = updater.hyperparams()["scale_by_learning_rate.learning_rate"]
        for name, mult in (("body.0.weight", 1.0), ("head.1.weight", 0.1)):
            assert math.isclose(rate[name], 0.01 * mult * factor, rel_tol=1e-12, abs_tol=1e-18), (i, name)
        for parameter in net.parameters():
            parameter.grad = parameter.detach() * 0
        updater.step()


FAULTS = [
    ({"type": "YOLOv5ParamSchedulerHook", "warmup_epoch": 3}, "got 'warmup_epoch'; did you mean 'warmup_epochs'?"),
    ({"type": "YOLOv5ParamSchedulerHook", "scheduler_type": "step"}, "scheduler_type must be 'linear' or 'cosine'"),
    ({"type": "YOLOv5ParamSchedulerHook", "max_epochs": 3}, "max_epochs must be a number of at least the 4 epochs"),
    ({"type": "PPYOLOEParamSchedulerHook", "total_epochs": 3}, "total_epochs must be longer than the warm-up of 1000"),
    ({"type": "ReduceLRSchedulerHook", "val_metric": "MAE"}, "type must be one of PPYOLOEParamSchedulerHook, "),
]


@pytest.mark.parametrize(("hook", "sentence"), FAULTS)
def test_what_a_hook_cannot_be_is_named(hook: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)) as caught:
        mmengine.unbound({"optimizer": SGD}, max_epochs=5, epoch_length=4, default_hooks={"param_scheduler": hook})
    assert str(caught.value).startswith(f"mmengine.from_config: default_hooks.param_scheduler ({hook['type']}): ")


def test_a_hook_and_a_list_set_the_same_numbers() -> None:
    hooks = {"param_scheduler": {"type": "PPYOLOEParamSchedulerHook"}, "timer": {"type": "IterTimerHook"}}
    with pytest.raises(ValueError, match="param_scheduler must be None beside it"):
        mmengine.unbound({"optimizer": SGD}, {"type": "PolyLR"}, max_epochs=5, epoch_length=4, default_hooks=hooks)
    for plain in (None, {}, {"param_scheduler": {"type": "ParamSchedulerHook"}}, {"param_scheduler": None}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mmengine.unbound({"optimizer": SGD}, max_epochs=5, epoch_length=4, default_hooks=plain)
    with pytest.raises(TypeError, match="default_hooks: it must be a dict"):
        mmengine.unbound({"optimizer": SGD}, max_epochs=5, epoch_length=4, default_hooks=[1])
