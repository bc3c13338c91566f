"""What stands around the optimizer in a config: accumulation, the loss scale, the clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradchain.adapters.mmengine.entries import OWNER, POSITIVE, WHOLE_FROM_1, Entry, is_number, listed, type_name
from gradchain.adapters.mmengine.groups.paramwise import INSIDE, OUTSIDE
from gradchain.combinators.accumulate import accumulate
from gradchain.combinators.amp_scale import amp_scale
from gradchain.core.transform import Transform
from gradchain.schedules import by, constant, join
from gradchain.transforms.clip import clip_by_norm, clip_by_value

__all__ = ["Around", "read_wrapper", "window"]

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
BELONGS = {
    "grad_clip": "did you mean 'clip_grad'?",
    "cumulative_iters": "did you mean 'accumulative_counts'?",
}


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
    counts = entry.number("accumulative_counts", 1, *WHOLE_FROM_1)
    amp, autocast = _apex(entry) if kind == "ApexOptimWrapper" else _amp(entry, kind == "AmpOptimWrapper")
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


def _amp(entry: Entry, on: bool) -> tuple[amp_scale | None, torch.dtype | None]:
    """AmpOptimWrapper's scaler and dtype."""
    if not on:
        return None, None
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
    return clip_by_norm(clip.number("max_norm", None, *POSITIVE), float(order))
