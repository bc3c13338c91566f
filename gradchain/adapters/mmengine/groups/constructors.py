"""Constructors that look at each parameter for itself: MMEngine's own and those that follow it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from gradchain.adapters.mmengine.groups.paramwise import DEFAULT, FORCED, OLD, Group, Paramwise
from gradchain.adapters.mmengine.groups.rules import Rule, Rules, containing, facts_of
from gradchain.selectors import Selector, bias, depthwise, named, ndim, owner, owner_named

__all__ = ["NORM", "YOLO", "by_pattern", "decay_kinds", "default", "of_key", "swin", "tsm", "yolo"]

# what MMEngine takes for a norm: not RMSNorm, nor whatever else has the name
NORM = owner(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
_DEFORMABLE = ("DeformConv2d", "ModulatedDeformConv2d")
# where no model is at hand, those of mmcv's deformable convolutions by what it calls them
_OFFSET = named("*conv_offset.*", missing_ok=True) & owner(nn.Conv2d)
Own = list[Tensor]
"""The parameters of one layer."""
YOLOV7 = "YOLOv7OptimWrapperConstructor"
YOLO = ("YOLOv5OptimizerConstructor", YOLOV7)
IMPLICIT = ("ImplicitA", "ImplicitM")


def default(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """DefaultOptimWrapperConstructor: the longest custom key that is part of the name, else the rules by kind.

    ForceDefaultOptimWrapperConstructor of MMPose and MMSegmentation has the rules also on top of a custom key, where it
    is told so, and keeps frozen parameters. DefaultOptimizerConstructor of mmcv 1.x keeps them too, and reads nothing
    but the multipliers of a custom key; norm > depthwise > bias there, and a rule that is not set takes its own too.
    """
    old = paramwise.constructor == OLD
    forced = paramwise.constructor == FORCED and paramwise.cfg.get("force_default_settings", False)
    kinds = _kinds(paramwise, model)
    custom = []
    for key, entry in paramwise.custom:
        # whatever the entry has becomes an item of the group, `lr` and `weight_decay` too
        items = {**of_key(paramwise, key, entry, "lr"), **of_key(paramwise, key, entry, "weight_decay")}
        items |= {} if old else entry
        silent = bool(entry) and not {"decay_mult", "weight_decay"} & entry.keys()
        who = containing(key, paramwise.missing_ok, paramwise.root)
        custom.append(Rule(who, items, key, closes=True, puts_off=silent and not old and not forced))
    rules = [*kinds, *custom] if forced else [*custom, *kinds]
    twice = bool(paramwise.cfg.get("bypass_duplicate", False))
    return Rules(paramwise, rules, frozen=paramwise.constructor != DEFAULT, once=twice)


def of_key(paramwise: Paramwise, key: str, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a custom key makes of the learning rate or the decay; nothing of a decay that the optimizer has not."""
    if name == "weight_decay" and not paramwise.decays:
        return {}
    mult = "lr_mult" if name == "lr" else "decay_mult"
    return {name: paramwise.base(name) * paramwise.factor(f"custom_keys[{key!r}][{mult!r}]", entry.get(mult, 1.0))}


def _kinds(paramwise: Paramwise, model: nn.Module | None) -> list[Rule]:
    """The rules by kind of parameter."""
    offset, free, flat = _offsets(paramwise, model)
    rates: list[tuple[str, Selector | None]] = [("dcn_offset_lr_mult", offset), ("bias_lr_mult", free & ~NORM)]
    found = [(paramwise.rule(name), who) for name, who in rates]
    rules = [Rule(who, {"lr": paramwise.base("lr") * f}) for f, who in found if f is not None and who is not None]
    given = {"norm": NORM, "bias": free, "dwconv": depthwise & owner(nn.Conv2d), "flat": flat}
    if paramwise.constructor == OLD:
        # each kind keeps its own from the rules after it, set or not
        apart: list[Selector] = []
        for kind in ("norm", "dwconv", "bias"):
            who = given.pop(kind)
            given[kind] = reduce(lambda one, other: one & ~other, apart, who)
            apart += [who] if paramwise.rule(f"{kind}_decay_mult") is None else []
        del given["flat"]
    return rules + decay_kinds(paramwise, given)


def decay_kinds(paramwise: Paramwise, kinds: Mapping[str, Selector]) -> list[Rule]:
    """The kinds that have a multiplier of the decay; one that has none leaves its parameters to the next."""
    factors = {kind: paramwise.rule(f"{kind}_decay_mult") for kind in kinds} if paramwise.decays else {}
    base = {kind: paramwise.base("weight_decay") for kind, factor in factors.items() if factor is not None}
    return [Rule(kinds[kind], {"weight_decay": base[kind] * factors[kind]}) for kind in base]


def _offsets(paramwise: Paramwise, model: nn.Module | None) -> tuple[Selector | None, Selector, Selector]:
    """The offsets of mmcv's deformable convolutions, the biases outside of these, and what is flat outside of these."""
    inside: Selector | None
    if model is None:
        inside = offset = _OFFSET if "dcn_offset_lr_mult" in paramwise.cfg else None
    else:
        around = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if _is_deformable(m)]
        below = {f"{name}.{child}" if name else child for name, m in around for child in m._modules}
        found = [entry for entry in facts_of(model) if entry[0].rpartition(".")[0] in below]
        offsets = [n for n, _, m in found if "conv_offset" in n.rpartition(".")[0] and isinstance(m, nn.Conv2d)]
        inside = named(*(escape(name) for name, _, _ in found)) if found else None
        offset = named(*map(escape, offsets)) if offsets else None
    return (offset, bias, ndim(1)) if inside is None else (offset, bias & ~inside, ndim(1) & ~inside)


def _is_deformable(module: nn.Module) -> bool:
    return any(c.__module__.startswith("mmcv.") and c.__name__ in _DEFORMABLE for c in type(module).__mro__)


def by_pattern(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """DefaultOptimizerConstructor of MMSelfSup 0.x: what patterns find, each over what the ones before it said."""
    rules = []
    for pattern, entry in reversed(paramwise.cfg["custom_keys"].items()):
        who = named(re.compile(f".*(?:{pattern}).*"), missing_ok=paramwise.missing_ok)
        items = {key.removesuffix("_mult"): _scaled(paramwise, pattern, key, entry[key]) for key in entry}
        rules.append(Rule(who, items, pattern))
    return Rules(paramwise, rules, frozen=True, once=True)


def _scaled(paramwise: Paramwise, pattern: str, key: str, value: Any) -> Any:
    """An option of a pattern: itself, or a multiple of the optimizer's own number."""
    if not key.endswith("_mult"):
        return value
    return paramwise.base(key.removesuffix("_mult")) * paramwise.factor(f"{pattern!r}[{key!r}]", value)


def swin(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """SwinOptimWrapperConstructor of MMAction2: every custom key that is part of the name multiplies.

    Its first form had the keys at the top of paramwise_cfg, and looked for them in names that begin with `base.`
    """
    mults = {"lr": "lr_mult", **({"weight_decay": "decay_mult"} if paramwise.decays else {})}
    rules = []
    for key, entry in paramwise.cfg.get("custom_keys", {}).items():
        items = {name: paramwise.factor(f"{key}[{mult!r}]", entry.get(mult, 1.0)) for name, mult in mults.items()}
        rules.append(Rule(containing(key, paramwise.missing_ok, paramwise.root), items, key))
    return Rules(paramwise, rules, {name: paramwise.base(name) for name in mults}, multiply=True, frozen=True)


def yolo(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """YOLOv5OptimizerConstructor of MMYOLO: weights decay, by the size of the batch; norms and biases do not.

    Norms and biases have the decay that the optimizer's class has by itself. LayerNorm and GroupNorm are no norms to
    it. To YOLOv7OptimWrapperConstructor its implicit knowledge goes with the norms.
    """
    decay, free = _yolo_decay(paramwise), paramwise.arguments.get("weight_decay")
    rest = {} if free is None else {"weight_decay": free.default}
    who = bias | owner(nn.modules.batchnorm._NormBase)
    seventh = paramwise.constructor == YOLOV7

    def groups(model: nn.Module) -> list[Group]:
        weights: list[Tensor] = []
        norms: list[Tensor] = []
        biases: list[Tensor] = []
        for module in model.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if seventh and type(module).__name__ in IMPLICIT:
                norms.append(module.implicit)  # type: ignore[arg-type]  # a parameter, in MMYOLO
            elif isinstance(weight, nn.Parameter):
                (norms if isinstance(module, nn.modules.batchnorm._NormBase) else weights).append(weight)
            if isinstance(bias, nn.Parameter):
                biases.append(bias)
        return [(weights, {"weight_decay": decay}), (norms, dict(rest)), (biases, dict(rest))]

    rules = [Rule(who | owner_named(*IMPLICIT) if seventh else who, {"weight_decay": rest.get("weight_decay", 0.0)})]
    return Rules(paramwise, rules, {"weight_decay": decay}, made=groups)


def _yolo_decay(paramwise: Paramwise) -> Any:
    """The decay of weights, for the size of the batch that they are trained with."""
    decay = paramwise.optimizer.get("weight_decay", 0)
    if paramwise.cfg and "base_total_batch_size" not in paramwise.cfg:
        paramwise.refuse("paramwise_cfg must have base_total_batch_size.", AssertionError)
    if "batch_size_per_gpu" in paramwise.optimizer:
        base = paramwise.number("base_total_batch_size", 64)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        total = world * paramwise.factor("batch_size_per_gpu", paramwise.optimizer["batch_size_per_gpu"])
        scale = total * max(round(base / total), 1) / base
        decay = decay * scale if scale != 1 else decay
    return decay


def tsm(paramwise: Paramwise, model: nn.Module | None) -> Rules:
    """TSMOptimWrapperConstructor of MMAction2: the biases learn twice as fast, the last layer five times."""
    if "fc_lr5" not in paramwise.cfg:
        paramwise.refuse("paramwise_cfg must have fc_lr5.", KeyError)
    lr, decay = paramwise.base("lr"), paramwise.base("weight_decay")
    last = 5 if paramwise.cfg["fc_lr5"] else 1

    def groups(model: nn.Module) -> list[Group]:
        first, rest, norms = _layers_of_tsm(paramwise, model)
        weights, biases = [own[0] for own in rest], [own[1] for own in rest if len(own) == 2]
        if not weights or not biases:
            paramwise.refuse(
                "the model must have a layer with a weight and one with a bias after its first convolution.", IndexError
            )
        return [
            ([own[0] for own in first], {"lr": lr, "weight_decay": decay}),
            ([own[1] for own in first if len(own) == 2], {"lr": lr * 2, "weight_decay": 0}),
            (weights[:-1], {"lr": lr, "weight_decay": decay}),
            (biases[:-1], {"lr": lr * 2, "weight_decay": 0}),
            (norms, {"lr": lr, "weight_decay": 0}),
            (weights[-1:], {"lr": lr * last, "weight_decay": decay}),
            (biases[-1:], {"lr": lr * 2 * last, "weight_decay": 0}),
        ]

    return Rules(paramwise, made=groups)


def _layers_of_tsm(paramwise: Paramwise, model: nn.Module) -> tuple[list[Own], list[Own], Own]:
    """The parameters of the first convolution, of the other layers one by one, and of the norms."""
    first: list[Own] = []
    rest: list[Own] = []
    norms: Own = []
    for module in model.modules():
        own: Own = list(module.parameters())
        if isinstance(module, nn.modules.conv._ConvNd) and not first:
            first.append(own)
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            rest.append(own)
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            norms += [p for p in own if p.requires_grad]
        elif not module._modules and own:
            paramwise.refuse(
                f"every layer must be a convolution, Linear or normalisation, got a {type(module).__name__}."
            )
    return first, rest, norms
