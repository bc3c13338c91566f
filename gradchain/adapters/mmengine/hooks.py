"""What hooks of a recipe do to the weights: the averages of EMAHook, and the schedulers that read a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradchain.adapters.mmengine.entries import Clock, Entry, is_whole, listed
from gradchain.adapters.mmengine.wrappers import OWNER, type_name
from gradchain.core.transform import Transform
from gradchain.schedules import Schedule, by, constant, ema_exponential, ema_warmup, join
from gradchain.transforms.average import average_params
from gradchain.transforms.plateau import reduce_on_plateau

__all__ = ["average", "plateaus", "read_plateau"]

KINDS: dict[str, tuple[str, ...]] = {
    "ExponentialMovingAverage": ("momentum",),
    "ExpMomentumEMA": ("momentum", "gamma"),
    "MomentumAnnealingEMA": ("momentum", "gamma"),
    "StochasticWeightAverage": (),
}
# what does not change the average
ASIDE = ("type", "ema_type", "strict_load", "device", "priority", "evaluate_on_origin", "evaluate_on_ema", "_scope_")
PLATEAU = (
    "monitor", "rule", "factor", "patience", "threshold", "threshold_rule", "cooldown", "min_value", "eps", "begin",
    "end", "by_epoch", "verbose", "last_step", "param_name", "type", "_scope_",
)  # fmt: skip
PURE = ("Linear", "Constant", "MultiStep", "Step", "Exponential")


def average(custom_hooks: Any, clock: Clock, counts: int, strict: bool) -> list[Transform]:
    """The average that an EMAHook keeps, one link or none. Every other hook is named in a warning."""
    if custom_hooks is not None and not isinstance(custom_hooks, (list, tuple)):
        Entry("custom_hooks", {}, strict, OWNER).refuse(f"it must be a list of dicts, got {custom_hooks!r}.", TypeError)
    found: list[Transform] = []
    others = []
    for i, hook in enumerate(custom_hooks or ()):
        kind = type_name(hook.get("type")) if isinstance(hook, Mapping) else type(hook).__name__
        if kind == "EMAHook" and isinstance(hook, Mapping):
            found.append(_average(Entry(f"custom_hooks[{i}] (EMAHook)", hook, strict, OWNER), clock, counts))
        else:
            others.append(str(kind))
    entry = Entry("custom_hooks", {}, strict, OWNER)
    if len(found) > 1:
        entry.refuse(f"there must be at most one EMAHook, got {len(found)}.")
    if others:
        entry.remark(f"{', '.join(others)} are not read; what they do to the update is yours to add.")
    return found


def _average(entry: Entry, clock: Clock, counts: int) -> Transform:
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
