"""What hooks of a recipe do to the weights: the averages of EMAHook, and the schedulers that read a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gradchain.adapters.mmengine.entries import Clock, Entry, is_whole, listed, type_name
from gradchain.adapters.mmengine.wrappers import OWNER
from gradchain.core.transform import Transform
from gradchain.schedules import Schedule, by, constant, ema_exponential, ema_warmup, inverse_time, join
from gradchain.transforms.average import average_params
from gradchain.transforms.plateau import reduce_on_plateau

__all__ = ["Averaging", "average", "average_1x", "plateaus", "read_hooks", "read_plateau"]

KINDS: dict[str, tuple[str, ...]] = {
    "ExponentialMovingAverage": ("momentum",),
    "ExpMomentumEMA": ("momentum", "gamma"),
    "MomentumAnnealingEMA": ("momentum", "gamma"),
    "StochasticWeightAverage": (),
}
# what does not change the average
ASIDE = ("type", "ema_type", "strict_load", "device", "priority", "evaluate_on_origin", "evaluate_on_ema", "_scope_")
OLD: dict[str, tuple[str, ...]] = {
    "EMAHook": ("warm_up",),
    "ExpMomentumEMAHook": ("total_iter", "skip_buffers"),
    "LinearMomentumEMAHook": ("warm_up", "skip_buffers"),
}
ASIDE_1X = ("type", "resume_from", "priority", "_scope_")
Averaging = Callable[[Clock, int], Transform]
"""(the run, micro-batches of a window) -> the link."""
PLATEAU = (
    "monitor", "rule", "factor", "patience", "threshold", "threshold_rule", "cooldown", "min_value", "eps", "begin",
    "end", "by_epoch", "verbose", "last_step", "param_name", "type", "_scope_",
)  # fmt: skip
PURE = ("Linear", "Constant", "MultiStep", "Step", "Exponential")


def read_hooks(custom_hooks: Any, strict: bool, old: bool = False) -> Averaging | None:
    """What averages of the list, or None; `old`: as mmcv 1.x has it. Every other hook is named in a warning."""
    readers: dict[str, Any] = dict.fromkeys(OLD, average_1x) if old else {"EMAHook": average}
    entry = Entry("custom_hooks", {}, strict, OWNER)
    if custom_hooks is not None and not isinstance(custom_hooks, (list, tuple)):
        entry.refuse(f"it must be a list of dicts, got {custom_hooks!r}.", TypeError)
    found, others = [], []
    for i, hook in enumerate(custom_hooks or ()):
        kind = type_name(hook.get("type")) if isinstance(hook, Mapping) else type(hook).__name__
        if kind in readers and isinstance(hook, Mapping):
            found.append(partial(readers[kind], Entry(f"custom_hooks[{i}] ({kind})", hook, strict, OWNER)))
        else:
            others.append(str(kind))
    if len(found) > 1:
        entry.refuse(f"there must be at most one {' or '.join(readers)}, got {len(found)}.")
    if others:
        entry.remark(f"{', '.join(others)} are not read; what they do to the update is yours to add.")
    return found[0] if found else None


def average(entry: Entry, clock: Clock, counts: int) -> Transform:
    """The average that an EMAHook keeps, in a chain whose windows have so many micro-batches."""
    kind = type_name(entry.items.get("ema_type", "ExponentialMovingAverage"))
    if kind not in KINDS:
        entry.refuse(f"ema_type must be one of {listed(KINDS)}, got {entry.items.get('ema_type')!r}.")
    entry.only((*ASIDE, *KINDS[kind], "begin_iter", "begin_epoch", "interval", "update_buffers"))
    begin, every, power = _times(entry, clock, counts)
    buffers = "average" if entry.flag("update_buffers", False) else "keep"
    if kind == "StochasticWeightAverage":
        return average_params("mean", start=begin, every=every, buffers=buffers)
    momentum = entry.number("momentum", 0.0002, "a number above 0 and below 1", lambda x: 0 < x < 1)
    decay = (1.0 - momentum) ** power
    if kind == "ExponentialMovingAverage":
        if every == 1:  # before its start the average is the weights, as of MMEngine's first copy
            return average_params(decay, start=begin + 1, buffers=buffers)
        first = begin + 1
        return average_params(join((0, first, constant(0.0)), (first, None, constant(decay))), begin, every, buffers)
    gamma = entry.number("gamma", 2000 if kind == "ExpMomentumEMA" else 100, "a positive number", lambda x: x > 0)
    growing: Schedule = ema_exponential(decay, gamma) if kind == "ExpMomentumEMA" else ema_warmup(decay, gamma)
    if kind == "ExpMomentumEMA" and every > 1:  # the first of all copies
        growing = join((0, 1, constant(0.0)), (1, None, constant(1.0))) * growing
    if counts > 1:
        entry.object_to(
            f"ema_type {kind!r} must come without accumulation: MMEngine averages at every iteration, whose decays "
            "differ within a window."
        )
        begin *= counts
    if begin:
        growing = join((0, begin, constant(0.0)), (begin, None, growing))
    start = begin // counts + (kind == "ExpMomentumEMA" and every == 1)
    return average_params(by("micro", growing) if counts > 1 else growing, start, every, buffers)


def average_1x(entry: Entry, clock: Clock, counts: int) -> Transform:
    """The average of mmcv 1.x's EMAHook, and of MMDetection 2.x's two: from the weights before the first iteration.

    The momentum of an interval is a power, as it is there: the longer the interval, the less an average takes.
    """
    kind = str(type_name(entry.items["type"]))
    entry.only((*ASIDE_1X, *OLD[kind], "momentum", "interval"))
    momentum = entry.number("momentum", 0.0002, "a number above 0 and below 1", lambda x: 0 < x < 1)
    every = int(entry.number("interval", 1, "a whole number of at least 1", lambda x: is_whole(x) and x >= 1))
    if counts > 1:
        entry.object_to("it must come without accumulation: there it averages at iterations, whose decays differ.")
    if kind == "ExpMomentumEMAHook":
        gamma = entry.number("total_iter", 2000, "a positive number", lambda x: x > 0)
        decay: Schedule = ema_exponential(1.0 - momentum, gamma)
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
    whole = lambda x: is_whole(x) and x >= 0  # noqa: E731
    rule = "a whole number of at least 0"
    at, epoch = int(entry.number("begin_iter", 0, rule, whole)), int(entry.number("begin_epoch", 0, rule, whole))
    if at and epoch:
        entry.refuse(f"begin_iter or begin_epoch must be given, not both, got {at!r} and {epoch!r}.")
    if epoch and clock.epochs is not None and epoch > clock.epochs:
        entry.refuse(f"begin_epoch must be at most the {clock.epochs} epochs of the run, got {epoch!r}.")
    if at > clock.iters:
        entry.refuse(f"begin_iter must be at most the {clock.iters} iterations of the run, got {at!r}.")
    begin = max(at - 1, 0) if not epoch else (epoch - 1) * clock.epoch_length  # they count from 1
    every = int(entry.number("interval", 1, "a whole number of at least 1", lambda x: is_whole(x) and x >= 1))
    if counts % every and every % counts:
        entry.refuse(
            f"interval must be a multiple of the {counts} iterations of a window, or divide them, got {every!r}."
        )
    return begin // counts, max(every // counts, 1), max(counts // every, 1)


def plateaus(param_scheduler: Any) -> tuple[Any, list[tuple[str, Mapping[str, Any]]]]:
    """A scheduler or a list of them without those that read a metric, and these, with their places."""
    entries = param_scheduler if isinstance(param_scheduler, (list, tuple)) else [param_scheduler]
    found = [
        (f"param_scheduler[{i}] ({entry['type']})", entry)
        for i, entry in enumerate(entries)
        if isinstance(entry, Mapping) and str(type_name(entry.get("type"))).startswith("ReduceOnPlateau")
    ]
    reading = [id(entry) for _, entry in found]
    others = [entry for entry in entries if id(entry) not in reading]
    return (others or None) if found else param_scheduler, found


def read_plateau(
    found: Sequence[tuple[str, Mapping[str, Any]]], others: Any, base: float, differs: bool, strict: bool
) -> list[Transform]:
    """The link that a ReduceOnPlateauLR is, beside the other schedulers; `base` is the learning rate."""
    if not found:
        return []
    entry = Entry(found[-1][0], found[-1][1], strict, OWNER)
    if len(found) > 1:
        entry.refuse(f"there must be at most one scheduler that reads a metric, got {len(found)}.")
    given = entry.items
    entry.only(PLATEAU)
    field = given.get("param_name", "lr") if "ParamScheduler" in str(type_name(given["type"])) else "lr"
    if "Momentum" in str(type_name(given["type"])) or field != "lr":
        entry.refuse("only the learning rate can be reduced on a plateau: reduce_on_plateau scales the updates.")
    if not entry.flag("by_epoch", True):
        entry.refuse("by_epoch must be True, as in MMEngine, got False: it counts validations.")
    if given.get("last_step", -1) != -1:
        entry.refuse(f"last_step must be -1, got {given['last_step']!r}; what it has seen is in the checkpoint.")
    if given.get("begin", 0) != 0 or "end" in given:
        entry.refuse("begin and end must not be given: it reads every observation.")
    for other in others or ():
        kind = str(type_name(other.get("type")))
        if kind.endswith("LR") and kind.removesuffix("LR") not in PURE:
            entry.refuse(
                f"the other schedulers of the learning rate must only multiply, got {kind}, which acts on what a "
                "reduction leaves."
            )
    least = entry.number("min_value", 0.0)
    if least and differs:
        entry.refuse("min_value must be 0 where the learning rates of parameters differ: each group has that floor.")
    rule = entry.get("rule", "less", "'less' or 'greater'", lambda x: x in ("less", "greater"))
    return [
        reduce_on_plateau(
            given.get("monitor", "loss"),
            factor=entry.number("factor", 0.1),
            patience=entry.number("patience", 10),
            threshold=entry.number("threshold", 1e-4),
            threshold_mode=entry.get("threshold_rule", "rel", "'rel' or 'abs'", lambda x: x in ("rel", "abs")),
            cooldown=entry.number("cooldown", 0),
            min_value=least,
            eps=entry.number("eps", 1e-8),
            mode="min" if rule == "less" else "max",
            base=base,
            worst=1e9,
        )
    ]
