"""Constructors that look at each parameter for itself: MMEngine's own and those that follow it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gradchain.adapters.mmengine.groups.layers import of_timm
from gradchain.adapters.mmengine.groups.paramwise import Group, Paramwise, Visit, visits

__all__ = ["DEFAULT", "FORCED", "OLD", "by_depth", "by_pattern", "default", "scaled", "swin"]

DEFAULT, OLD = "DefaultOptimWrapperConstructor", "DefaultOptimizerConstructor"
FORCED = f"Force{DEFAULT}"


def default(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """DefaultOptimWrapperConstructor: the longest custom key that is part of the name, else the rules by kind.

    ForceDefaultOptimWrapperConstructor of MMPose and MMSegmentation has the rules also on top of a custom key, where it
    is told so, and keeps frozen parameters. DefaultOptimizerConstructor of mmcv 1.x keeps them too, and reads nothing
    but the multipliers of a custom key; norm > depthwise > bias there, and a rule that is not set takes its own too.
    """
    frozen, old = paramwise.constructor != DEFAULT, paramwise.constructor == OLD
    forced = paramwise.constructor == FORCED and paramwise.cfg.get("force_default_settings", False)
    groups: list[Group] = []
    taken: set[int] = set()
    undone: dict[str, str] = {}
    for visit in visits(model):
        trained = visit.parameter.requires_grad
        again = paramwise.cfg.get("bypass_duplicate", False) and id(visit.parameter) in taken
        if (again and (trained or not old)) or not (frozen or trained):
            continue
        items: dict[str, Any] = {}
        if trained:
            found = paramwise.winner(visit.tested)
            if found is not None:
                # whatever the entry has becomes an item of the group, `lr` and `weight_decay` too
                items = {**_by_key(paramwise, *found), **({} if old else found[1])}
            if found is None or forced:
                items |= _by_kind(paramwise, visit, old)
            elif not old and not {"decay_mult", "weight_decay"} & found[1].keys() and found[1]:
                rule = _by_kind(paramwise, visit).get("weight_decay", items.get("weight_decay"))
                if rule != items.get("weight_decay"):
                    undone.setdefault(found[0], visit.full)
        taken.add(id(visit.parameter))
        groups.append(([visit.parameter], items))
    for key, name in undone.items():
        paramwise.say_undone(key, f"{name!r} has its whole weight decay back")
    return groups


def _by_key(paramwise: Paramwise, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    place = f"custom_keys[{key!r}]"
    items = {"lr": paramwise.base("lr") * paramwise.factor(f"{place}['lr_mult']", entry.get("lr_mult", 1.0))}
    if paramwise.decays:
        factor = paramwise.factor(f"{place}['decay_mult']", entry.get("decay_mult", 1.0))
        items["weight_decay"] = paramwise.base("weight_decay") * factor
    return items


def _by_kind(paramwise: Paramwise, visit: Visit, old: bool = False) -> dict[str, Any]:
    items: dict[str, Any] = {}
    bias, free = visit.name == "bias", not visit.deformable
    if bias and free and not visit.norm and paramwise.rule("bias_lr_mult") is not None:
        items["lr"] = paramwise.base("lr") * paramwise.rule("bias_lr_mult")
    conv = visit.module if isinstance(visit.module, nn.Conv2d) else None
    depthwise = conv is not None and conv.in_channels == conv.groups
    offset = not free and "conv_offset" in visit.prefix and conv is not None
    if offset and paramwise.rule("dcn_offset_lr_mult") is not None:
        items["lr"] = paramwise.base("lr") * paramwise.rule("dcn_offset_lr_mult")
    if paramwise.decays:
        kinds = {"norm": visit.norm, "bias": bias and free, "dwconv": depthwise}
        order = ("norm", "dwconv", "bias") if old else (*kinds, "flat")
        kinds["flat"] = visit.parameter.ndim == 1 and free
        _decay(paramwise, [kind for kind in order if kinds[kind]][: 1 if old else None], items)
    return items


def _decay(paramwise: Paramwise, kinds: list[str], items: dict[str, Any]) -> None:
    """The first kind that has a multiplier; a rule that is not set leaves the parameter to the next."""
    factor = next((f for f in (paramwise.rule(f"{kind}_decay_mult") for kind in kinds) if f is not None), None)
    if factor is not None:
        items["weight_decay"] = paramwise.base("weight_decay") * factor


def by_pattern(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """DefaultOptimizerConstructor of MMSelfSup 0.x: what patterns find, each over what the ones before it said."""
    groups: list[Group] = []
    for name, parameter in model.named_parameters():
        items: dict[str, Any] = {}
        for pattern, entry in paramwise.cfg["custom_keys"].items() if parameter.requires_grad else ():
            if re.search(pattern, name):
                paramwise.used.add(pattern)
                items |= {key.removesuffix("_mult"): scaled(paramwise, pattern, key, entry[key]) for key in entry}
        groups.append(([parameter], items))
    return groups


def scaled(paramwise: Paramwise, pattern: str, key: str, value: Any) -> Any:
    """An option of a pattern: itself, or a multiple of the optimizer's own number."""
    if not key.endswith("_mult"):
        return value
    return paramwise.base(key.removesuffix("_mult")) * paramwise.factor(f"{pattern!r}[{key!r}]", value)


def _asked(paramwise: Paramwise, model: nn.Module) -> Callable[[str], tuple[int, int]]:
    """What says how deep a parameter is, and how many depths there are: the model, or its names if they are timm's."""
    ask = getattr(model, "get_layer_depth", None)
    timm = of_timm([name for name, _ in model.named_parameters()]) if ask is None else None
    if timm is not None:
        return lambda name: (timm(name), timm.total)
    if ask is None:
        paramwise.refuse(
            f"the model must have a method get_layer_depth, {type(model).__name__} has none.", NotImplementedError
        )
    return ask  # type: ignore[no-any-return]


def by_depth(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """LearningRateDecayOptimWrapperConstructor of MMPretrain: the model says how deep, rules say what decays."""
    ask = _asked(paramwise, model)
    if not paramwise.decays:
        paramwise.refuse("optimizer must have weight_decay.")
    rate = paramwise.number("layer_decay_rate", 1.0)
    groups: list[Group] = []
    trained = [visit for visit in visits(model) if visit.parameter.requires_grad]
    if trained:
        paramwise.check_layers({v.full: ask(v.full)[0] for v in trained}, ask(trained[0].full)[1] - 1)
    for visit in trained:
        found = paramwise.winner(visit.full)
        items: dict[str, Any] = {"weight_decay": paramwise.base("weight_decay")}
        if found is not None:
            place = f"custom_keys[{found[0]!r}]['decay_mult']"
            items["weight_decay"] *= paramwise.factor(place, found[1].get("decay_mult", 1.0))
            items |= {key: value for key, value in found[1].items() if key != "decay_mult"}
        else:
            kinds = {"norm": visit.norm, "bias": visit.name == "bias", "flat": visit.parameter.ndim == 1}
            _decay(paramwise, [kind for kind, there in kinds.items() if there], items)
        depth, total = ask(visit.full)
        scale = rate ** (total - depth - 1)
        items |= {"lr": paramwise.base("lr") * scale, "lr_scale": scale, "layer_id": depth}
        groups.append(([visit.parameter], items))
    return groups


def swin(paramwise: Paramwise, model: nn.Module) -> list[Group]:
    """SwinOptimWrapperConstructor of MMAction2: every custom key that is part of the name multiplies.

    Its first form had the keys at the top of paramwise_cfg, and looked for them in names that begin with `base.`
    """
    entries = paramwise.cfg.get("custom_keys", {})
    groups: list[Group] = []
    for visit in visits(model, paramwise.root):
        items: dict[str, Any] = {}
        if visit.parameter.requires_grad:
            keys = [key for key in entries if key in visit.tested]
            paramwise.used.update(keys)
            items["lr"] = paramwise.base("lr") * _product(paramwise, entries, keys, "lr_mult")
            if paramwise.decays:
                decay = _product(paramwise, entries, keys, "decay_mult")
                items["weight_decay"] = paramwise.base("weight_decay") * decay
        groups.append(([visit.parameter], items))
    return groups


def _product(paramwise: Paramwise, entries: Mapping[str, Any], keys: list[str], name: str) -> Any:
    return math.prod(paramwise.factor(f"{key}[{name!r}]", entries[key].get(name, 1.0)) for key in keys)
