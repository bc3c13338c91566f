"""What stands around the optimizer in a config: accumulation, the loss scale, the clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
AMP = ("loss_scale", "dtype", "use_fsdp")
APEX = (
    "opt_level", "loss_scale", "enabled", "cast_model_type", "patch_torch_functions", "keep_batchnorm_fp32",
    "master_weights", "cast_model_outputs", "num_losses", "verbosity", "min_loss_scale", "max_loss_scale",
)  # fmt: skip
KEYS = {"OptimWrapper": COMMON, "AmpOptimWrapper": (*COMMON, *AMP), "ApexOptimWrapper": (*COMMON, *APEX)}
ELSEWHERE = {
    "DeepSpeedOptimWrapper": "DeepSpeed's engine makes the update, by a config of its own",
    "ColossalAIOptimWrapper": "ColossalAI's engine makes the update",
}
BELONGS = {"grad_clip": "did you mean 'clip_grad'?", "cumulative_iters": "did you mean 'accumulative_counts'?"}


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
    if kind not in KEYS:
        entry.refuse(f"type must be one of {listed(KEYS)}, got {config.get('type')!r}.")
    entry.only((*KEYS[kind], *INSIDE, *OUTSIDE), belongs=BELONGS)  # `param_settings` says where those belong
    counts = entry.whole_from(1, "accumulative_counts", 1)
    half = {"ApexOptimWrapper": _apex, "AmpOptimWrapper": _amp}.get(kind)
    amp, autocast = (None, None) if half is None else half(entry)
    return Around(int(counts), amp, autocast, _clip(entry))


def window(counts: int, iters: int | None) -> Transform | None:
    """The accumulation; `iters` of the run for a last window that is shorter and averages what it has, or None."""
    if counts == 1:
        return None
    ragged = 0 if iters is None else iters % counts
    if not ragged or iters is None:
        return accumulate(counts)
    if iters < counts:
        return accumulate(ragged)
    full = iters - ragged
    return accumulate(by("micro", join((0, full, constant(counts)), (full, None, constant(ragged)))))


def _amp(entry: Entry) -> tuple[amp_scale | None, torch.dtype | None]:
    """AmpOptimWrapper's scaler and dtype."""
    given = entry.items.get("dtype")
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None, "float64": None}
    written = str(given).removeprefix("torch.") if isinstance(given, (str, torch.dtype)) else given
    if given is not None and written not in dtypes:
        entry.refuse(f"dtype must be one of {listed(dtypes)}, or None, got {given!r}.")
    autocast = torch.float16 if given is None else dtypes[str(written)]
    if autocast is None:
        entry.remark(f"dtype={given!r} switches autocast off: neither autocast nor a loss scale is used.")
        return None, None
    scale = _scale(entry, entry.items.get("loss_scale", "dynamic"))
    return (None if autocast is torch.bfloat16 else scale), autocast


def _scale(entry: Entry, given: Any) -> amp_scale | None:
    """The loss scale in each of its forms: "dynamic", a number, or the arguments of GradScaler."""
    if given == "dynamic":
        return amp_scale()
    if is_number(given):
        if isinstance(given, int):
            entry.remark(f"loss_scale must be a float, or MMEngine raises a TypeError, got {given!r}; read as a float.")
        given = {"init_scale": float(given), "dynamic": False}
    elif isinstance(given, Mapping):
        scaler = Entry(f"{entry.name}.loss_scale", given, entry.strict, OWNER)
        scaler.only(("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled", "device"))
        if not scaler.flag("enabled", True):
            return None
    else:
        entry.refuse(f"loss_scale must be 'dynamic', a number or a dict, got {given!r}.", TypeError)
    try:
        return amp_scale(**{key: value for key, value in given.items() if key not in ("enabled", "device")})
    except (TypeError, ValueError) as error:
        entry.refuse(f"loss_scale: {error}", type(error))


def _apex(entry: Entry) -> tuple[amp_scale | None, torch.dtype | None]:
    """Apex's levels, as far as autocast has them."""
    level = entry.get("opt_level", "O1", "'O0', 'O1', 'O2' or 'O3'", lambda x: x in ("O0", "O1", "O2", "O3"))
    if level in ("O2", "O3"):
        entry.refuse(
            f"opt_level {level!r} casts the model itself to float16, which no link does; use 'O1', which autocast is."
        )
    if level == "O0" or not entry.flag("enabled", True):
        return None, None
    ignored = [k for k in APEX if k not in ("opt_level", "loss_scale", "enabled", "verbosity") and k in entry.items]
    if ignored:
        entry.object_to(f"{listed(ignored)} of apex must not be given: autocast has no such thing.")
    given = entry.items.get("loss_scale")
    return _scale(entry, "dynamic" if given is None else given), torch.float16


def _clip(entry: Entry) -> Transform | None:
    """The clip, by norm or by value."""
    given = entry.items.get("clip_grad")
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        entry.refuse(f"clip_grad must be a dict such as dict(max_norm=1.0), got {given!r}.", TypeError)
    clip = Entry(f"{entry.name}.clip_grad", given, entry.strict, OWNER)
    kind = clip.get("type", "norm", "'norm' or 'value'", lambda x: x in ("norm", "value"))
    if kind == "value":
        clip.only(("type", "foreach"), ("clip_value",))
        return clip_by_value(clip.number("clip_value", None))
    if "clip_value" in given:
        clip.refuse("clip_value must come with type='value', without which the clip is by norm.", TypeError)
    clip.only(("type", "norm_type", "error_if_nonfinite", "foreach"), ("max_norm",))
    if clip.flag("error_if_nonfinite", False):
        clip.remark("error_if_nonfinite has no counterpart: put skip_nonfinite() in the chain to skip such updates.")
    is_order = lambda x: x in ("inf", math.inf) or (is_number(x) and x >= 1)  # noqa: E731
    order = clip.get("norm_type", 2.0, "a number of at least 1, or 'inf'", is_order)
    return clip_by_norm(clip.positive("max_norm", None), float(order))


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
