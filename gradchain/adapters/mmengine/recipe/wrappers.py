"""What stands around the optimizer in a config: accumulation, the loss scale, the clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradchain.adapters.mmengine.entries import OWNER, Entry, is_number, listed, type_name
from gradchain.adapters.mmengine.groups.params import MULTI, PATTERNS
from gradchain.adapters.mmengine.groups.paramwise import INSIDE, OLD, OUTSIDE
from gradchain.combinators.accumulate import accumulate
from gradchain.combinators.amp_scale import amp_scale
from gradchain.core.transform import Transform
from gradchain.schedules import by, constant, join
from gradchain.transforms.clip import clip_by_norm, clip_by_value

__all__ = ["SCHEDULES", "Around", "as_wrapper", "is_old", "read_wrapper", "window"]

COMMON = ("type", "optimizer", "constructor", "paramwise_cfg", "accumulative_counts", "clip_grad", "_scope_")
# of apex's own, what autocast has not
APEX = (
    "cast_model_type", "patch_torch_functions", "keep_batchnorm_fp32", "master_weights", "cast_model_outputs",
    "num_losses", "min_loss_scale", "max_loss_scale",
)  # fmt: skip
ELSEWHERE = {
    "DeepSpeedOptimWrapper": "DeepSpeed's engine makes the update, by a config of its own",
    "ColossalAIOptimWrapper": "ColossalAI's engine makes the update",
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None, "float64": None}
BELONGS = {"grad_clip": "did you mean 'clip_grad'?", "cumulative_iters": "did you mean 'accumulative_counts'?"}
Half = tuple["amp_scale | None", "torch.dtype | None"]
"""The loss scale, and the dtype of the forward."""


@dataclass(frozen=True)
class Around:
    """What a wrapper puts around the optimizer.

    counts: micro-batches to a window; amp: the loss scale; autocast: the dtype of the forward; clip: the clip.
    """

    counts: int = 1
    amp: amp_scale | None = None
    autocast: torch.dtype | None = None
    clip: Transform | None = None

    @property
    def counts_micro(self) -> bool:
        """Whether iterations and updates are not the same: a window, or an overflow, holds some."""
        return self.counts > 1 or self.amp is not None


def read_wrapper(config: Mapping[str, Any], name: str, strict: bool) -> Around:
    """The parts around the optimizer. ValueError or TypeError for what cannot be."""
    entry = Entry(name, config, strict, OWNER)
    kind = type_name(config.get("type", "OptimWrapper"))
    if kind in ELSEWHERE:
        entry.refuse(f"type {kind!r} is not read: {ELSEWHERE[kind]}. Use type='OptimWrapper'.")
    if kind not in KINDS:
        entry.refuse(f"type must be one of {listed(KINDS)}, got {config.get('type')!r}.")
    half, keys = KINDS[kind]
    entry.only((*COMMON, *keys, *INSIDE, *OUTSIDE), belongs=BELONGS)  # `param_settings` says where those belong
    counts = entry.whole_from(1, "accumulative_counts", 1)
    amp, autocast = (None, None) if half is None else half(entry)
    return Around(int(counts), amp, autocast, _clip(entry))


def window(counts: int, iters: int | None) -> Transform | None:
    """The accumulation; `iters` of the run for a last window that is shorter and averages what it has, or None."""
    if counts == 1:
        return None
    windows, ragged = divmod(iters or 0, counts)
    if not (windows and ragged):
        return accumulate(ragged or counts)
    full = windows * counts
    return accumulate(by("micro", join((0, full, constant(counts)), (full, None, constant(ragged)))))


def _amp(entry: Entry) -> Half:
    """AmpOptimWrapper's scaler and dtype."""
    given = entry.items.get("dtype")
    written = "float16" if given is None else str(given).removeprefix("torch.")
    if written not in DTYPES:
        entry.refuse(f"dtype must be one of {listed(DTYPES)}, or None, got {given!r}.")
    if DTYPES[written] is None:
        entry.remark(f"dtype={given!r} switches autocast off: neither autocast nor a loss scale is used.")
        return None, None
    scale = _scale(entry, entry.items.get("loss_scale", "dynamic"))
    if written == "bfloat16" and entry.items.get("loss_scale", "dynamic") != "dynamic":
        entry.remark("loss_scale is not used with bfloat16, which has the range of float32.")
    return (None if written == "bfloat16" else scale), DTYPES[written]


def _apex(entry: Entry) -> Half:
    """Apex's levels, as far as autocast has them."""
    level = entry.one_of("opt_level", "O1", "O0", "O2", "O3")
    if level in ("O2", "O3"):
        entry.refuse(
            f"opt_level {level!r} casts the model itself to float16, which no link does; use 'O1', which autocast is."
        )
    if level == "O0" or not entry.flag("enabled", True):
        return None, None
    if ignored := entry.items.keys() & {*APEX}:
        entry.object_to(f"{listed(ignored)} of apex must not be given: autocast has no such thing.")
    given = entry.items.get("loss_scale")
    return _scale(entry, "dynamic" if given is None else given), torch.float16


def _scale(entry: Entry, given: Any) -> amp_scale | None:
    """The loss scale in each of its forms: "dynamic", a number, or the arguments of GradScaler."""
    if given == "dynamic":
        return amp_scale()
    if is_number(given):
        if isinstance(given, int):
            entry.remark(f"loss_scale must be a float, or MMEngine raises a TypeError, got {given!r}; read as a float.")
        given = {"init_scale": float(given), "dynamic": False}
    else:
        scaler = entry.inner("loss_scale", "'dynamic', a number or a dict")
        scaler.only(("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled", "device"))
        if not scaler.flag("enabled", True):
            return None
    try:
        return amp_scale(**{key: value for key, value in given.items() if key not in ("enabled", "device")})
    except (TypeError, ValueError) as error:
        entry.refuse(f"loss_scale: {error}", type(error))


def _clip(entry: Entry) -> Transform | None:
    """The clip, by norm or by value."""
    if entry.items.get("clip_grad") is None:
        return None
    clip = entry.inner("clip_grad", "a dict such as dict(max_norm=1.0)")
    if clip.one_of("type", "norm", "value") == "value":
        clip.only(("type", "foreach"), ("clip_value",))
        return clip_by_value(clip.number("clip_value", None))
    if "clip_value" in clip.items:
        clip.refuse("clip_value must come with type='value', without which the clip is by norm.", TypeError)
    clip.only(("type", "norm_type", "error_if_nonfinite", "foreach"), ("max_norm",))
    if clip.flag("error_if_nonfinite", False):
        clip.remark("error_if_nonfinite has no counterpart: put skip_nonfinite() in the chain to skip such updates.")
    is_order = lambda x: x in ("inf", math.inf) or (is_number(x) and x >= 1)  # noqa: E731
    order = clip.get("norm_type", 2.0, "a number of at least 1, or 'inf'", is_order)
    return clip_by_norm(clip.positive("max_norm", None), float(order))


KINDS: dict[str, tuple[Callable[[Entry], Half] | None, tuple[str, ...]]] = {
    "OptimWrapper": (None, ()),
    "AmpOptimWrapper": (_amp, ("loss_scale", "dtype", "use_fsdp")),
    "ApexOptimWrapper": (_apex, ("loss_scale", "opt_level", "enabled", "verbosity", *APEX)),
}
"""By type: what reads its half precision, and its keys."""


# the format of mmcv 1.x, `optimizer` and `optimizer_config`, written as an `optim_wrapper`

SCHEDULES = ("lr_config", "momentum_config")
OLD_KEYS = ("optimizer", "optimizer_config", "fp16", *SCHEDULES)
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
    return any(key in config for key in OLD_KEYS[1:])


def as_wrapper(config: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """The same as MMEngine's `optim_wrapper`, without the schedules."""
    entry = Entry("config", config, strict, OWNER)
    entry.only(OLD_KEYS, ("optimizer",))
    optimizer = entry.inner("optimizer", "a dict with a type, or a dict of those")
    around = _around(entry)
    if "type" in optimizer.items:
        return {**_split(optimizer), **around}
    each = {name: {**_split(optimizer.inner(name, "a dict with a type")), **around} for name in optimizer.items}
    return {"constructor": MULTI, **each}


def _split(optimizer: Entry) -> dict[str, Any]:
    """paramwise_cfg and constructor stand in the optimizer's dict there, and beside it here."""
    items, inside = dict(optimizer.items), ("paramwise_cfg", "constructor", "paramwise_options")
    beside = {key: value for key in inside if (value := items.pop(key, None)) is not None}
    if "paramwise_options" not in beside:
        return {"constructor": OLD, "optimizer": items, **beside}
    options = beside.pop("paramwise_options")
    if beside or not isinstance(options, Mapping):
        optimizer.refuse(f"paramwise_options must be a dict by patterns, without paramwise_cfg, got {options!r}.")
    return {"constructor": PATTERNS, "optimizer": items, "paramwise_cfg": options}


def _around(config: Entry) -> dict[str, Any]:
    """The optimizer's hook as keys of a wrapper."""
    hook, half = config.inner("optimizer_config", absent={}).items, config.items.get("fp16") is not None
    fp16 = config.inner("fp16", "a dict such as dict(loss_scale=512.0)", {}).items
    usual = ("GradAccumFp16" if half else "Dist") if {*DIST} & hook.keys() else ("Fp16" if half else "")
    kind = type_name(hook.get("type", f"{usual}OptimizerHook"))
    entry = replace(config, name=f"optimizer_config ({kind})", items={**hook, **fp16})
    if kind not in HOOKS:
        entry.refuse(f"type must be one of {listed(HOOKS)}, got {hook.get('type')!r}.")
    if fp16 and "loss_scale" not in HOOKS[kind]:
        halves = listed(name for name, keys in HOOKS.items() if "loss_scale" in keys)
        entry.refuse(f"type must be one of {halves} beside fp16, got {kind!r}.")
    entry.only((*ASIDE, "grad_clip", *HOOKS[kind]))
    clip = entry.inner("grad_clip", "a dict such as dict(max_norm=35), or None", {}).items
    if entry.items.get("frozen_layers_cfg"):
        entry.object_to(
            "frozen_layers_cfg must not be given: freeze what it names by requires_grad, and thaw it later."
        )
    out = {"type": "ApexOptimWrapper" if entry.items.get("use_fp16") else "OptimWrapper", "clip_grad": clip or None}
    for key in {"cumulative_iters", "update_interval"} & entry.items.keys():
        out["accumulative_counts"] = entry.items[key]
    if "loss_scale" in HOOKS[kind]:
        out |= {"type": "AmpOptimWrapper", "loss_scale": entry.items.get("loss_scale", 512.0)}
    return out
