"""What hooks of a recipe do to the weights: the averages of EMAHook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gradchain.adapters.mmengine.curves.hook_schedules import PLAIN
from gradchain.adapters.mmengine.entries import OWNER, Clock, Entry, listed, type_name
from gradchain.core.transform import Transform
from gradchain.schedules import Schedule, by, constant, ema_exponential, ema_warmup, inverse_time, join
from gradchain.transforms.average import average_params

__all__ = ["Averaging", "is_average", "is_of_chain", "read_hooks"]

KINDS: dict[str, tuple[str, ...]] = {
    "ExponentialMovingAverage": ("momentum",),
    **dict.fromkeys(("ExpMomentumEMA", "MomentumAnnealingEMA"), ("momentum", "gamma")),
    "StochasticWeightAverage": (),
}
KEYS = ("type", "ema_type", "interval", "begin_iter", "begin_epoch", "update_buffers")
# what does not change the average
ASIDE = ("strict_load", "device", "priority", "evaluate_on_origin", "evaluate_on_ema", "_scope_")
OLD: dict[str, tuple[str, ...]] = {
    "EMAHook": ("warm_up",),
    "ExpMomentumEMAHook": ("total_iter", "skip_buffers"),
    "LinearMomentumEMAHook": ("warm_up", "skip_buffers"),
}
OLD_KEYS = ("type", "momentum", "interval", "resume_from", "priority", "_scope_")
DEFAULT = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint", "visualization")
MOMENTUM = ("a number above 0 and below 1", lambda x: 0 < x < 1)
Averaging = Callable[[Clock, int], Transform]
"""(the run, micro-batches of a window) -> the link."""


def is_average(hook: Any, old: bool) -> bool:
    """Whether a hook averages the weights; `old`: as mmcv 1.x has it."""
    return isinstance(hook, Mapping) and type_name(hook.get("type")) in (OLD if old else ("EMAHook",))


def is_of_chain(key: str, hook: Any) -> bool:
    """Whether a hook of `default_hooks` has a part in the chain: it sets numbers, lets them never move, or averages."""
    if key == "param_scheduler":
        return hook is None or (isinstance(hook, Mapping) and type_name(hook.get("type", PLAIN)) != PLAIN)
    return key not in DEFAULT and is_average(hook, old=False)


def read_hooks(
    custom_hooks: Any, default_hooks: Mapping[str, Any], strict: bool, old: bool = False
) -> Averaging | None:
    """What averages of all hooks, or None; `old`: as mmcv 1.x has it. Every other hook is named in a warning.

    Of `default_hooks` those under names that are not MMEngine's own, which it registers as well.
    """
    read: Any = _average_1x if old else _average
    entry = Entry("custom_hooks", {}, strict, OWNER)
    if custom_hooks is not None and not isinstance(custom_hooks, (list, tuple)):
        entry.refuse(f"it must be a list of dicts, got {custom_hooks!r}.", TypeError)
    found, others = [], []
    named = {f"custom_hooks[{i}]": hook for i, hook in enumerate(custom_hooks or ())}
    named |= {f"default_hooks.{key}": hook for key, hook in default_hooks.items() if key not in DEFAULT and hook}
    for name, hook in named.items():
        kind = type_name(hook.get("type")) if isinstance(hook, Mapping) else type(hook).__name__
        if is_average(hook, old):
            found.append(partial(read, Entry(f"{name} ({kind})", hook, strict, OWNER)))
        else:
            others.append(str(kind))
    if len(found) > 1:
        entry.refuse(f"there must be at most one {' or '.join(OLD) if old else 'EMAHook'}, got {len(found)}.")
    if others:
        its = "is not read; what it does" if len(others) == 1 else "are not read; what they do"
        entry.remark(f"{', '.join(others)} {its} to the update is yours to add.")
    return found[0] if found else None


def _average(entry: Entry, clock: Clock, counts: int) -> Transform:
    """The average that an EMAHook keeps, in a chain whose windows have so many micro-batches."""
    kind = type_name(entry.items.get("ema_type", "ExponentialMovingAverage"))
    if kind not in KINDS:
        entry.refuse(f"ema_type must be one of {listed(KINDS)}, got {entry.items.get('ema_type')!r}.")
    entry.only((*KEYS, *ASIDE, *KINDS[kind]))
    begin, every, power = _times(entry, clock, counts)
    buffers = "average" if entry.flag("update_buffers", False) else "keep"
    if kind == "StochasticWeightAverage":
        return average_params("mean", start=begin, every=every, buffers=buffers)
    momentum = entry.number("momentum", 0.0002, *MOMENTUM)
    if momentum > 0.5:
        entry.remark(f"momentum must be small, as 0.0002: it is what the new weights count for, got {momentum!r}.")
    decay = (1.0 - momentum) ** power
    if kind == "ExponentialMovingAverage":
        if every == 1:  # before its start the average is the weights, as of MMEngine's first copy
            return average_params(decay, start=begin + 1, buffers=buffers)
        return average_params(_late(begin + 1, constant(decay)), begin, every, buffers)
    copies = kind == "ExpMomentumEMA"  # the first of its averagings is a copy
    gamma = entry.positive("gamma", 2000 if copies else 100)
    growing: Schedule = ema_exponential(decay, gamma) if copies else ema_warmup(decay, gamma)
    if copies and every > 1:
        growing = _late(1, constant(1.0)) * growing
    growing = _late(begin * counts, growing)
    if counts > 1:
        entry.object_to(
            f"ema_type {kind!r} must come without accumulation: MMEngine averages at every iteration, whose decays "
            "differ within a window. With strict=False (--no-strict) an update has the decay of its last iteration."
        )
        growing = by("micro", growing)
    return average_params(growing, begin + (copies and every == 1), every, buffers)


def _late(begin: int, decay: Schedule) -> Schedule:
    """A decay that begins at a step; until then the average is the weights."""
    return join((0, begin, constant(0.0)), (begin, None, decay)) if begin else decay


def _average_1x(entry: Entry, clock: Clock, counts: int) -> Transform:
    """The average of mmcv 1.x's EMAHook, and of MMDetection 2.x's two: from the weights before the first iteration.

    The momentum of an interval is a power, as it is there: the longer the interval, the less an average takes.
    """
    kind = str(type_name(entry.items["type"]))
    entry.only((*OLD_KEYS, *OLD[kind]))
    momentum = entry.number("momentum", 0.0002, *MOMENTUM)
    every = int(entry.whole_from(1, "interval", 1))
    if counts > 1:
        entry.object_to("it must come without accumulation: there it averages at iterations, whose decays differ.")
    if kind == "ExpMomentumEMAHook":
        decay: Schedule = ema_exponential(1.0 - momentum, entry.positive("total_iter", 2000))
    else:
        steps = entry.number("warm_up", 100, "a number of at least 1", lambda x: x >= 1)
        decay = inverse_time((steps - 1.0) / steps, 1.0 / steps).clip(low=1.0 - momentum**every)
    buffers = "keep" if kind == "EMAHook" or entry.flag("skip_buffers", False) else "average"
    if kind == "EMAHook" or every == 1:  # it averages at an interval's first iteration, the others at its last
        return average_params(decay, every=every, buffers=buffers)
    at = constant(0.0).take(every - 1).then(constant(1.0).take(1)).repeat()
    return average_params(1.0 - at * (1.0 - decay), buffers=buffers)


def _times(entry: Entry, clock: Clock, counts: int) -> tuple[int, int, int]:
    """The update it begins at, every how many it averages, and how many averagings of MMEngine's that stands for."""
    at, epoch = (int(entry.whole_from(0, key, 0)) for key in ("begin_iter", "begin_epoch"))
    if at and epoch:
        entry.refuse(f"begin_iter or begin_epoch must be given, not both, got {at!r} and {epoch!r}.")
    if epoch and clock.epochs is not None and epoch > clock.epochs:
        entry.refuse(f"begin_epoch must be at most the {clock.epochs} epochs of the run, got {epoch!r}.")
    if at > clock.iters:
        entry.refuse(f"begin_iter must be at most the {clock.iters} iterations of the run, got {at!r}.")
    begin = (epoch - 1) * clock.epoch_length if epoch else max(at - 1, 0)  # they count from 1
    every = int(entry.whole_from(1, "interval", 1))
    if counts % every and every % counts:
        entry.refuse(
            f"interval must be a multiple of the {counts} iterations of a window, or divide them, got {every!r}."
        )
    return begin // counts, max(every // counts, 1), max(counts // every, 1)
