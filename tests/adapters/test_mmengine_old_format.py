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
    with pytest.warns(UserWarning, match="ExpMomentumEMAHook is not read"):
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
        f"mmengine.schedules: lr_config (Poly): the warm-up of {length} iterations is longer than the run, which has "
        "20."
    ]


@pytest.mark.parametrize("policy", ["CosineAnnealing", "FlatCosineAnnealing", "LinearAnnealing", "CosineRestart"])
def test_a_floor_that_is_not_there_is_said(policy: str) -> None:
    with pytest.raises(ValueError, match=r"min_lr or min_lr_ratio must be given, got neither\."):
        mmengine.schedules(lr_config={"policy": policy, "periods": [5]} if "R" in policy else {"policy": policy}, **RUN)


# kinds of MMDetection, MMAction2, MMSelfSup and MMFlow


@pytest.mark.parametrize(
    "lr",
    [
        {"warmup_iters": 1, "warmup_by_epoch": True, "num_last_epochs": 2, "min_lr_ratio": 0.05, "warmup_ratio": 1},
        {"warmup_iters": 1, "num_last_epochs": 0, "min_lr": 0.01},
        {"warmup_iters": 6, "num_last_epochs": 3, "min_lr_ratio": 0.5, "warmup_ratio": 0.5},
    ],
    ids=str,
)
def test_the_policy_of_yolox(lr: dict[str, Any]) -> None:
    """MMDetection 2.28's YOLOXLrUpdaterHook: its progress is a step ahead, its warm-up quadratic."""
    config = {"policy": "YOLOX", "warmup": "exp", "by_epoch": False, **lr}
    schedule = mmengine.schedules(lr_config=config, max_epochs=8, epoch_length=5)["lr"](0.2)
    warm = lr["warmup_iters"] * (5 if lr.get("warmup_by_epoch") else 1)
    last, foot = 5 * lr["num_last_epochs"], lr.get("min_lr", 0.2 * lr.get("min_lr_ratio", 0.0))
    for i in reversed(range(40)):
        wanted = foot
        if i < warm:
            wanted = 0.2 * lr.get("warmup_ratio", 0.1) * ((i + 1) / warm) ** 2
        elif i + 1 < 40 - last:
            wanted = foot + 0.5 * (0.2 - foot) * (math.cos(math.pi * (i + 1 - warm) / (40 - warm - last)) + 1)
        assert math.isclose(schedule(i), wanted, rel_tol=1e-12), i


def test_what_yolox_cannot_be_is_named() -> None:
    lr = {"policy": "YOLOX", "warmup": "exp", "warmup_iters": 2, "num_last_epochs": 1, "min_lr": 0.0}
    for change, sentence in (
        ({}, "by_epoch must be False"),
        ({"by_epoch": False, "warmup": None}, "warmup must be given"),
        ({"by_epoch": False, "warmup": "quadratic"}, "warmup must be 'constant', 'linear' or 'exp'"),
        ({"by_epoch": False, "warmup_iters": 2.5}, "warmup_iters must be whole in iterations, got 2.5"),
        ({"by_epoch": False, "warmup_ratio": 2}, "warmup_ratio must be a number above 0 and up to 1"),
        ({"by_epoch": False, "num_last_epochs": 5}, "must leave two iterations"),
        ({"by_epoch": False, "last_epochs": 5}, "got 'last_epochs'"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            mmengine.schedules(lr_config={**lr, **change}, **RUN)


def test_the_old_name_of_tsms_constructor() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Linear(2, 2), nn.Linear(2, 3))
    rules = {"constructor": "TSMOptimizerConstructor", "paramwise_cfg": {"fc_lr5": True}}
    config = {"optimizer": {**SGD, **rules}, "optimizer_config": {"grad_clip": {"max_norm": 20}}}
    rate = mmengine.from_config(net, config, **RUN).hyperparams()["scale_by_learning_rate.learning_rate"]
    ours = {name: round(value / 0.05, 9) for name, value in rate.items()}
    assert ours == {
        "0.weight": 1, "0.bias": 2, "1.weight": 1, "1.bias": 1, "2.weight": 1, "2.bias": 2, "3.weight": 1, "3.bias": 2,
        "4.weight": 5, "4.bias": 10,
    }  # fmt: skip


@pytest.mark.parametrize("hook", [
    {"update_interval": 3},
    {"type": "DistOptimizerHook", "update_interval": 3, "grad_clip": {"max_norm": 5}, "coalesce": True},
    {"type": "mmselfsup.DistOptimizerHook", "update_interval": 3, "frozen_layers_cfg": {}},
    {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 3},
], ids=str)  # fmt: skip
def test_windows_of_old_hooks(hook: dict[str, Any]) -> None:
    """Each update is of three micro-batches, the last of what is left."""
    updater = mmengine.from_config(model(), {"optimizer": SGD, "optimizer_config": hook}, **RUN)
    twin = mmengine.from_config(model(), {"optimizer": SGD, "accumulative_counts": 3}, **RUN)
    assert updater.chain.links[0] == twin.chain.links[0]
    if "type" not in hook:
        half = {"optimizer": SGD, "optimizer_config": hook, "fp16": {"loss_scale": 512.0}}
        assert mmengine.from_config(model().float(), half, **RUN).chain.links[0] == twin.chain.links[0]


def test_old_hooks_that_freeze_or_have_apex() -> None:
    config = {"optimizer": SGD, "optimizer_config": {"frozen_layers_cfg": {"head": 100}}}
    with pytest.raises(ValueError, match="frozen_layers_cfg must not be given"):
        mmengine.from_config(model(), config, **RUN)
    config["optimizer_config"] = {"update_interval": 2, "use_fp16": True}
    assert "amp_scale()" in repr(mmengine.from_config(model().float(), config, **RUN).chain)


OPTIONS = [
    {"bias": {"weight_decay": 0.0}},
    {r"(bn|norm|\d)\.(weight|bias)": {"weight_decay_mult": 0.5}, "bias": {"weight_decay": 0.0, "lr_mult": 2.0}},
    {"head": {"lr": 0.3, "momentum": 0.5}, "head.1.bias": {"lr_mult": 0.1}},
    {"^scale$": {"weight_decay": 0.0}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_paramwise_options_by_patterns(options: dict[str, Any]) -> None:
    """MMSelfSup 0.x: searched for in the name, each over what the ones before it said. With a model and without."""
    config = {"optimizer": {**SGD, "paramwise_options": options}, "optimizer_config": {"update_interval": 1}}
    [part] = mmengine.unbound(copy.deepcopy(config), **RUN)
    for updater in (mmengine.from_config(model(), config, **RUN), part.chain.bind(model())):
        numbers = updater.hyperparams()
        for name, _ in model().named_parameters():
            wanted = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
            for pattern, entry in options.items():
                if re.search(pattern, name):
                    for key, value in entry.items():
                        plain = key.removesuffix("_mult")
                        wanted[plain] = value if plain == key else SGD[plain] * value
            for field, address in (
                ("lr", "scale_by_learning_rate.learning_rate"), ("momentum", "trace.decay"),
                ("weight_decay", "add_decayed_weights.weight_decay"),
            ):  # fmt: skip
                given = numbers[address]
                ours = given[name] if isinstance(given, dict) else given
                assert math.isclose(ours, wanted[field], rel_tol=1e-15), (name, field)


def test_a_pattern_that_finds_nothing_is_named() -> None:
    config = {"optimizer": {**SGD, "paramwise_options": {"bn": {"weight_decay": 0.0}}}, "optimizer_config": None}
    with pytest.raises(ValueError, match="got 'bn', which takes none"):
        mmengine.from_config(model(), config, **RUN)
    config["optimizer"]["paramwise_options"] = ["bn"]
    with pytest.raises(ValueError, match="paramwise_options must be a dict by patterns"):
        mmengine.from_config(model(), config, **RUN)


@pytest.mark.parametrize("none", ["paramwise_options", "paramwise_cfg", "constructor"])
def test_none_says_nothing(none: str) -> None:
    """A key of the optimizer's dict that is None is as if it were not there, whatever stands beside it."""
    beside = {} if none == "paramwise_options" else {"paramwise_options": OPTIONS[2]}
    wanted, config = ({"optimizer": {**SGD, **beside, **more}, "optimizer_config": None} for more in ({}, {none: None}))
    read = [mmengine.from_config(model(), one, **RUN).chain for one in (wanted, config)]
    assert read[0] == read[1]
