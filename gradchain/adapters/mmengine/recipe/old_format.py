"""The format of mmcv 1.x, `optimizer` and `optimizer_config`, written as an `optim_wrapper`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradchain.adapters.mmengine.entries import OWNER, Entry, listed, type_name
from gradchain.adapters.mmengine.groups.params import MULTI, OLD, PATTERNS

__all__ = ["SCHEDULES", "as_wrapper", "is_old"]

SCHEDULES = ("lr_config", "momentum_config")
KEYS = ("optimizer", "optimizer_config", "fp16", *SCHEDULES)
DIST = ("update_interval", "frozen_layers_cfg", "use_fp16")
HOOKS: dict[str, tuple[str, ...]] = {
    "OptimizerHook": (),
    "GradientCumulativeOptimizerHook": ("cumulative_iters",),
    "DistOptimizerHook": DIST,
    "Fp16OptimizerHook": ("loss_scale",),
    "GradAccumFp16OptimizerHook": ("update_interval", "frozen_layers_cfg", "loss_scale"),
    "GradientCumulativeFp16OptimizerHook": ("cumulative_iters", "loss_scale"),
}
# what says how the gradients travel, not what becomes of them
ASIDE = ("type", "coalesce", "bucket_size_mb", "distributed", "detect_anomalous_params")


def is_old(config: Mapping[str, Any]) -> bool:
    """Whether this is the format of mmcv 1.x."""
    return any(key in config for key in KEYS[1:])


def as_wrapper(config: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """The same as MMEngine's `optim_wrapper`, without the schedules."""
    entry = Entry("config", config, strict, OWNER)
    entry.only(KEYS, ("optimizer",))
    optimizer = config["optimizer"]
    if not isinstance(optimizer, Mapping):
        entry.refuse(f"optimizer must be a dict with a type, got {optimizer!r}.", TypeError)
    around = _around(config.get("optimizer_config"), config.get("fp16"), strict)
    if "type" not in optimizer:
        each = {name: {**_split(one, entry), **around} for name, one in optimizer.items()}
        return {"constructor": MULTI, **each}
    return {**_split(optimizer, entry), **around}


def _split(optimizer: Any, entry: Entry) -> dict[str, Any]:
    """paramwise_cfg and constructor stand in the optimizer's dict there, and beside it here."""
    if not isinstance(optimizer, Mapping):
        entry.refuse(f"optimizer must be a dict with a type, or a dict of those, got {optimizer!r}.", TypeError)
    options = optimizer.get("paramwise_options")
    if options is not None:
        rest = {key: value for key, value in optimizer.items() if key != "paramwise_options"}
        if not isinstance(options, Mapping) or {"paramwise_cfg", "constructor"} & rest.keys():
            entry.refuse(f"paramwise_options must be a dict by patterns, without paramwise_cfg, got {options!r}.")
        return {"constructor": PATTERNS, "optimizer": rest, "paramwise_cfg": options}
    beside = ("paramwise_cfg", "constructor")
    out = {key: optimizer[key] for key in beside if optimizer.get(key) is not None}
    return {"constructor": OLD, "optimizer": {k: v for k, v in optimizer.items() if k not in beside}, **out}


def _around(config: Any, fp16: Any, strict: bool) -> dict[str, Any]:
    """The optimizer's hook as keys of a wrapper."""
    if config is not None and not isinstance(config, Mapping):
        Entry("optimizer_config", {}, strict, OWNER).refuse(f"it must be a dict, got {config!r}.", TypeError)
    given: dict[str, Any] = dict(config or {})
    plain = "DistOptimizerHook" if set(DIST) & given.keys() else "OptimizerHook"
    half = "GradAccumFp16OptimizerHook" if set(DIST) & given.keys() else "Fp16OptimizerHook"
    kind = type_name(given.get("type", plain if fp16 is None else half))
    entry = Entry("optimizer_config" if kind is None else f"optimizer_config ({kind})", given, strict, OWNER)
    if kind not in HOOKS:
        entry.refuse(f"type must be one of {listed(HOOKS)}, got {given.get('type')!r}.")
    if fp16 is not None:
        if not isinstance(fp16, Mapping):
            entry.refuse(f"fp16 must be a dict such as dict(loss_scale=512.0), got {fp16!r}.", TypeError)
        given = {**given, **fp16}
        entry = Entry(entry.name, given, strict, OWNER)
    entry.only((*ASIDE, "grad_clip", *HOOKS[kind]))
    out: dict[str, Any] = {}
    clip = given.get("grad_clip")
    if clip is not None and not isinstance(clip, Mapping):
        entry.refuse(f"grad_clip must be a dict such as dict(max_norm=35), or None, got {clip!r}.", TypeError)
    if clip:
        out["clip_grad"] = dict(clip)
    if given.get("frozen_layers_cfg"):
        entry.object_to(
            "frozen_layers_cfg must not be given: freeze what it names by requires_grad, and thaw it later."
        )
    for key in {"cumulative_iters", "update_interval"} & {*HOOKS[kind]}:
        out["accumulative_counts"] = given.get(key, 1)
    if given.get("use_fp16"):
        out |= {"type": "ApexOptimWrapper"}
    if "loss_scale" in HOOKS[kind]:
        out |= {"type": "AmpOptimWrapper", "loss_scale": given.get("loss_scale", 512.0)}
    return out
