"""Schedules that a hook of MMYOLO sets in place of the schedulers: YOLOv5's and PP-YOLOE's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradchain.adapters.mmengine.curves.shapes import after
from gradchain.adapters.mmengine.entries import OWNER, Clock, Entry, listed, type_name
from gradchain.schedules import Schedule, constant, cosine_wave, join, linear, per_epoch

__all__ = ["PLAIN", "HookSchedules", "read_scheduler_hook"]


@dataclass(frozen=True)
class HookSchedules:
    """What a hook makes of base values.

    entry: the hook; lr: of the learning rate; biases: of that of the third group, which YOLOv5's constructor gives the
    biases; momentum: of the momentum, where groups have an item of that name.
    """

    entry: Entry
    lr: Callable[[float], Schedule]
    biases: Callable[[float], Schedule] | None = None
    momentum: Callable[[float], Schedule] | None = None


def read_scheduler_hook(
    default_hooks: Mapping[str, Any], clock: Clock, strict: bool, scheduled: bool
) -> HookSchedules | None:
    """What `default_hooks.param_scheduler` does to the optimizer beyond stepping schedulers, if there are some."""
    hook = default_hooks.get("param_scheduler", PLAIN)
    if hook is None and scheduled:
        Entry("default_hooks.param_scheduler", {}, strict, OWNER).object_to(
            "it must not be None, without which schedulers never move in MMEngine; for a constant rate leave out "
            "param_scheduler."
        )
    config = hook if isinstance(hook, Mapping) else {"type": hook if isinstance(hook, str) else type(hook)}
    kind = type_name(config.get("type", PLAIN))
    if hook is None or kind == PLAIN:
        return None
    entry = Entry(f"default_hooks.param_scheduler ({kind})", config, strict, OWNER)
    if kind not in HOOKS:
        entry.object_to(
            f"type must be one of {listed((PLAIN, *HOOKS))}; what another does to the update is yours to add."
        )
        return None
    if scheduled:
        entry.refuse("param_scheduler must be None beside it: both set the same numbers.")
    read, keys = HOOKS[kind]
    entry.only(("type", "priority", "_scope_", "warmup_epochs", *keys))
    return read(entry, clock)


def _warm_up(entry: Entry, clock: Clock, epochs: float, least: str) -> int:
    """The iterations of the warm-up, which is no shorter than a least number of them."""
    length = round(entry.from_0("warmup_epochs", epochs) * clock.epoch_length)
    return max(length, int(entry.whole_from(1, least, 1000)))


def _yolov5(entry: Entry, clock: Clock) -> HookSchedules:
    """A warm-up along the epochs' value; after it, the value of an epoch comes at its end."""
    kind = entry.one_of("scheduler_type", "linear", "cosine")
    before = (clock.epochs or 1) - 1
    rule = f"a number of at least the {before} epochs before the last"
    last = entry.number("max_epochs", 300, rule, lambda x: x > 0 and x >= before)
    curve = (linear if kind == "linear" else cosine_wave)(1.0, entry.number("lr_factor", 0.01), last)
    warm = _warm_up(entry, clock, 3, "warmup_mim_iter")
    at_epochs: Schedule = constant(1.0) if clock.epochs is None else per_epoch(curve, clock.epoch_length)
    # An epoch's value is set at its end; until that of the epoch of the warm-up's end comes, its own stays.
    first = (warm // clock.epoch_length + 2) * clock.epoch_length
    late = after(clock.epoch_length, 1.0, at_epochs)
    ramp = linear(0.0, 1.0, warm)

    def lr(base: float, start: float = 0.0) -> Schedule:
        warming = base * at_epochs * ramp
        if start:
            warming = warming + start * (1.0 - ramp)
        if warm >= clock.iters:
            return warming
        stays = constant(base * at_epochs(warm))
        return join((0, warm + 1, warming), (warm + 1, first, stays), (first, None, base * late), absolute=True)

    bias_lr, from_momentum = entry.number("warmup_bias_lr", 0.1), entry.number("warmup_momentum", 0.8)
    return HookSchedules(entry, lr, lambda base: lr(base, bias_lr), lambda base: linear(from_momentum, base, warm))


def _ppyoloe(entry: Entry, clock: Clock) -> HookSchedules:
    """A warm-up by iterations, then half a cosine that lasts longer than the training."""
    warm = _warm_up(entry, clock, 5, "warmup_min_iter")
    rule = f"longer than the warm-up of {warm} iterations, {warm / clock.epoch_length:g} epochs"
    total = entry.number("total_epochs", 360, rule, lambda x: x * clock.epoch_length > warm) * clock.epoch_length
    start, foot = entry.number("start_factor", 0.0), entry.number("min_lr_ratio", 0.0)
    curve = linear(start, 1.0, warm).take(warm).then(cosine_wave(1.0, foot, total - warm))
    return HookSchedules(entry, lambda base: base * curve)


PLAIN = "ParamSchedulerHook"
V5 = ("scheduler_type", "lr_factor", "max_epochs", "warmup_bias_lr", "warmup_momentum", "warmup_mim_iter")
HOOKS: dict[str, tuple[Callable[[Entry, Clock], HookSchedules], tuple[str, ...]]] = {
    "YOLOv5ParamSchedulerHook": (_yolov5, V5),
    "PPYOLOEParamSchedulerHook": (_ppyoloe, ("warmup_min_iter", "start_factor", "min_lr_ratio", "total_epochs")),
}
