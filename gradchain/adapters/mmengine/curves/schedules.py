"""MMEngine's parameter schedulers as functions of the micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

from gradchain.adapters.mmengine.curves.kinds import TYPES, Kind
from gradchain.adapters.mmengine.curves.legacy import read_legacy
from gradchain.adapters.mmengine.curves.shapes import Shape, Span, after, in_clock, last_stays
from gradchain.adapters.mmengine.entries import Clock, Entry, is_whole, listed, near, whole
from gradchain.schedules import Schedule, constant, join, overlay

__all__ = ["Fields", "clock_of", "schedules"]

COMMON = ("type", "begin", "end", "by_epoch", "convert_to_iter_based", "last_step", "verbose", "_scope_")
# they read a metric: a link's work, not a schedule's
METRIC = ("ReduceOnPlateauLR", "ReduceOnPlateauMomentum", "ReduceOnPlateauParamScheduler", "ReduceLR")


@dataclass(frozen=True)
class Act:
    """A scheduler in its window."""

    entry: Entry
    kind: Kind
    field: str
    span: Span

    def shape(self, base: float) -> Shape | None:
        """What it does to a value of this base; None if nothing."""
        return self.kind.shape(self.entry, self.span, base)


Fields: TypeAlias = "dict[str, Callable[[float], Schedule]]"
"""By field of a parameter group: a function of its base value that gives the schedule."""


def schedules(
    param_scheduler: Any = None,
    *,
    max_epochs: int | None = None,
    max_iters: int | None = None,
    epoch_length: int,
    strict: bool = True,
    lr_config: Mapping[str, Any] | None = None,
    momentum_config: Mapping[str, Any] | None = None,
) -> Any:
    """Read MMEngine's `param_scheduler`, or mmcv 1.x's `lr_config` and `momentum_config`, as schedules.

    value at micro-batch i = what the Runner has put into the parameter group when it runs iteration i, from 0

    MMEngine's schedulers change a number in place, each from the value it finds. Here each list becomes one function
    of the step per field: a product of factors where its schedulers only multiply, `join` where they follow one
    another, else `overlay`. Printed, it is the code that replaces the config. Iterations are micro-batches, so in a
    chain that accumulates it is read as `gch.by("micro", f(base))`.

    Args:
        param_scheduler: a scheduler's dict, a list of them, None, or a dict of those by optimizer. All types of
            MMEngine 0.10.7 that are functions of the step, and QuadraticWarmup (MMDetection), PolyLRRatio
            (MMSegmentation), CosineAnnealingWeightDecay (MMPretrain), LinearLrInterval (MMagic) and MultiStage
            (MMFlow); a scope before a type (`mmdet.`), or beside it as `_scope_`, says whose it is.
        max_epochs: epochs of the run, where its loop is one of epochs.
        max_iters: micro-batches of the run, where its loop is one of iterations. One of the two is given.
        epoch_length: micro-batches per epoch, `len(train_dataloader)`.
        strict: True, what cannot be meant is an error; False, where MMEngine has an answer it is a warning.
        lr_config: in place of param_scheduler, the old format; its policies fixed, step, exp, poly, inv, cyclic,
            CosineAnnealing, FlatCosineAnnealing, CosineAnnealingCooldown, CosineRestart, OneCycle, LinearAnnealing
            and YOLOX, with warm-up.
        momentum_config: the same for the momentum.

    Returns:
        By field of a parameter group ("lr", "momentum", "weight_decay" and what a `param_name` says) a function from
        the base value of a group to its schedule; "momentum" is b1 where the optimizer has betas. For a dict by
        optimizer, a dict of those.

    Raises: ValueError or TypeError with the entry's place and type: an unknown type or key, a value that MMEngine
        refuses or fails on, a window that ends before it begins, a scheduler that reads a metric.
        UserWarning: what is legal and most likely a slip, such as milestones that are never reached.

    Equals: MMEngine 0.10.7 and mmcv 1.7.2 at rtol 1e-9; what differs on purpose is in the docstring of
        `gradchain.adapters.mmengine`.

    >>> from gradchain.adapters import mmengine
    >>> warm_up = {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "end": 500}
    >>> stairs = {"type": "MultiStepLR", "milestones": [8, 11]}
    >>> fields = mmengine.schedules([warm_up, stairs], max_epochs=12, epoch_length=1000)
    >>> fields["lr"](0.02)
    0.02 * linear(0.001, 1.0, 499) * per_epoch(multi_step(1.0, (8, 11)), 1000)
    >>> fields["lr"](0.02)(499), fields["weight_decay"](1e-4)
    (0.02, constant(0.0001))
    """
    clock = clock_of(max_epochs, max_iters, epoch_length, "mmengine.schedules")
    if lr_config is not None or momentum_config is not None:
        if param_scheduler is not None:
            Entry("lr_config", {}, strict).refuse("it must come without param_scheduler: one format at a time.")
        return _fields(read_legacy(lr_config, momentum_config, clock, strict))
    if isinstance(param_scheduler, Mapping) and "type" not in param_scheduler:
        return {
            name: _of_list(one, f"param_scheduler[{name!r}]", clock, strict) for name, one in param_scheduler.items()
        }
    return _of_list(param_scheduler, "param_scheduler", clock, strict)


def clock_of(max_epochs: int | None, max_iters: int | None, epoch_length: int, owner: str) -> Clock:
    """How long the run is. `owner` begins the sentence of an error."""
    if (max_epochs is None) == (max_iters is None):
        raise ValueError(
            f"{owner}: max_epochs or max_iters must be given, one of the two, got {max_epochs!r} and {max_iters!r}."
        )
    for name, value in (("max_epochs", max_epochs), ("max_iters", max_iters), ("epoch_length", epoch_length)):
        if value is not None and (isinstance(value, bool) or not is_whole(value) or value < 1):
            raise ValueError(f"{owner}: {name} must be a whole number of at least 1, got {value!r}.")
    return Clock(max_epochs, max_iters or (max_epochs or 0) * epoch_length, epoch_length)


def _of_list(config: Any, name: str, clock: Clock, strict: bool) -> Fields:
    several = isinstance(config, (list, tuple))
    acts: dict[str, list[Act]] = {}
    for i, one in enumerate(config if several else [] if config is None else [config]):
        act = _read(one, f"{name}[{i}]" if several else name, clock, strict)
        if act is not None:
            acts.setdefault(act.field, []).append(act)
    return _fields({field: partial(_compose, tuple(moving)) for field, moving in acts.items()})


def _fields(moving: Fields) -> Fields:
    """What moves, and the fields that every recipe is asked for, which stay where they are."""
    return {"lr": constant, "momentum": constant, "weight_decay": constant} | moving


# one scheduler in its window


def _read(config: object, name: str, clock: Clock, strict: bool) -> Act | None:
    """One scheduler of the list; None if it never acts."""
    if not isinstance(config, Mapping):
        Entry(name, {}, strict).refuse(f"a scheduler must be a dict with a type, got {config!r}.", TypeError)
    entry, kind, field = _kind(config, name, strict)
    if kind.divides == "factor" and entry.number("factor", 1 / 3) > 1 and entry.scope != "mmpose":
        sentence = f"factor must be a number from 0 to 1, got {entry.items['factor']!r}"
        entry.object_to(f"{sentence}; only MMPose's own takes one above, type='mmpose.ConstantLR'.")
    by_epoch, converted = entry.flag("by_epoch", kind.by_epoch), entry.flag("convert_to_iter_based", False)
    if converted and not by_epoch:
        entry.refuse("convert_to_iter_based must come with by_epoch=True, got by_epoch=False.")
    span = _window(entry, kind, clock, by_epoch and not converted, converted)
    if span is None:
        return None
    act = Act(entry, kind, field, span)
    if span.begin >= clock.iters:
        entry.remark(f"it never acts: it begins at iteration {span.begin!r}, and the run ends at {clock.iters!r}.")
        # One cycle changes the base value of others even so.
        return act if kind.sets_base else None
    _remarks(act)
    return act


def _kind(config: Mapping[str, Any], name: str, strict: bool) -> tuple[Entry, Kind, str]:
    given = config.get("type")
    # In a config written as Python a type may be the class.
    written = given.__name__ if isinstance(given, type) else given
    entry = Entry(f"{name} ({written})" if written is not None else name, config, strict)
    if not isinstance(written, str):
        entry.refuse(f"type must be the name of a scheduler, got {given!r}.", TypeError)
    plain = written.rpartition(".")[2]
    if plain in METRIC:
        entry.refuse(
            "a scheduler that reads a metric is no function of the step; leave it out of this list, and put a link "
            "that reads `updater.observe` into the chain."
        )
    if plain not in TYPES:
        cure = near(plain, TYPES, f"the types are {listed((*TYPES, *METRIC))}.")
        entry.refuse(f"type must be a known scheduler, got {written!r}; {cure}")
    kind = TYPES[plain]
    named = kind.field is None
    entry.only((*COMMON, *kind.keys), (*kind.required, *(("param_name",) if named else ())))
    field: Any = entry.get("param_name", None, "a name", lambda x: isinstance(x, str)) if named else kind.field
    if kind.sets_base and field != "lr":
        entry.refuse(f"param_name must be 'lr' for one cycle, as in MMEngine, got {field!r}.")
    entry.get("last_step", -1, "-1, since a schedule is a function of the step", lambda x: x == -1)
    return entry, kind, field


def _window(entry: Entry, kind: Kind, clock: Clock, by_epoch: bool, converted: bool) -> Span | None:
    """Its window, in epochs or in iterations; None if it never acts."""
    begin = whole(entry.from_0("begin", 0))
    # A missing end is filled in as the Runner does, whose loop of iterations is one epoch.
    # It takes what says nothing for one by epoch, though MMFlow's counts iterations by itself.
    end = whole(entry.number("end", (clock.epochs or 1) if entry.flag("by_epoch", True) else clock.iters))
    if converted:
        # QuadraticWarmup does not round; the others do, down.
        length, cut = clock.epoch_length, int if kind.whole_window else whole
        begin, end = cut(begin * length), cut(end * length)
    given = f"got begin={begin!r} and end={end!r}"
    if end <= begin:
        entry.refuse(f"end must be above begin, {given} {'epochs' if by_epoch else 'iterations'}.")
    first, count, n = math.ceil(begin), math.ceil(end) - math.ceil(begin), whole(end - begin)
    if kind.whole_window and not (is_whole(begin) and is_whole(end)):
        complain = entry.object_to if count <= n else entry.refuse
        complain(f"begin and end must be whole, or convert_to_iter_based=True make them so, {given}.")
    if count < 1:
        entry.remark(f"it never acts: no whole step lies from begin={begin!r} to end={end!r}.")
        return None
    if by_epoch and clock.epochs is None:
        if first > 0:
            entry.remark(f"it never acts: it begins at epoch {first!r}, and a loop of iterations counts no epochs.")
            return None
        entry.remark("a loop of iterations counts no epochs: it acts once, at the start; did you mean by_epoch=False?")
        return Span(0, 1, n, 1, 1)
    if converted and clock.epochs is None and "end" not in entry.items and count < clock.iters:
        entry.remark(
            f"end must be given in a loop of iterations, which is one epoch to it: it stops after {count} of "
            f"{clock.iters} iterations."
        )
    every, factor = clock.epoch_length if by_epoch else 1, clock.epoch_length if converted else 1
    return Span(first * every, every, n, count, min(count, clock.iters // every - first), by_epoch, factor)


def _remarks(act: Act) -> None:
    """What is legal in a scheduler and most likely a slip."""
    entry, span, items, shape = act.entry, act.span, act.entry.items, act.shape(1.0)
    unit = "epochs" if span.by_epoch else "iterations"
    late = [m for m in items.get("milestones", ()) if not (is_whole(span.steps(m)) and 0 <= span.steps(m) < span.run)]
    if late:
        entry.remark(
            f"milestones {late!r} are never reached: they count from begin, and {span.run} {unit} of its window "
            "are in the run."
        )
    elif shape is None:
        entry.remark("it does nothing in its window.")
    if "periods" in items and (total := sum(map(span.steps, items["periods"]))) < span.run:
        entry.remark(f"periods end after {total!r} of {span.run} {unit}; the last value stays.")
    if key := act.kind.divides:
        if items.get(key) == 0 and span.run > 1 and (key == "start_factor" or span.run >= span.n):
            entry.object_to(f"{key} must be above 0, since MMEngine divides by it, got 0; 1e-8 is nearly the same.")
        if span.n == 1:
            entry.remark(f"its window has one step, in which it multiplies by {key}, for good.")
    reach = min(shape.reach, span.count) if shape else 0
    if span.run < reach and span.n > 1:
        what = "its window ends" if reach == span.n else "it would be done"
        entry.remark(f"{what} after the run: {span.run} of {math.ceil(reach)} {unit} are in it.")


# windows put together: a product, a join, or an overlay

Part = tuple[Span, Shape]


def _compose(acts: Sequence[Act], base: float) -> Schedule:
    """The value of a field from its base value, under these schedulers."""
    known = base
    parts: list[Part] = []
    for act in acts:
        if (shape := act.shape(known)) is not None:
            parts.append((act.span, shape))
            if act.kind.sets_base:
                known = shape.alone(base, act.span.count)(0)
    if not parts:
        return constant(base)
    scales = [(span, shape.scale) for span, shape in parts if shape.scale is not None]
    if len(scales) == len(parts):
        value: Any = base
        for span, scale in scales:
            value = value * after(span.begin, 1.0, in_clock(last_stays(scale, span.count), span.every))
        return value  # type: ignore[no-any-return]
    ordered = sorted(parts, key=lambda part: part[0].begin)
    if all(first.end <= second.begin for (first, _), (second, _) in pairwise(ordered)):
        return _one_by_one(ordered, base)
    return _at_once(parts, base)


def _one_by_one(parts: Sequence[Part], base: float) -> Schedule:
    """Each window from the value that the one before left."""
    value, first = base, parts[0][0].begin
    windows: list[Any] = [(0, first, constant(base))] if first else []
    for span, shape in parts:
        alone = shape.alone(value, span.count)
        value, schedule = alone(span.count - 1), in_clock(alone, span.every)
        windows.append((span.begin, span.end, schedule.take(span.end - span.begin)))
    windows[-1] = (span.begin, None, schedule)
    return join(*windows) if len(windows) > 1 else schedule


def _at_once(parts: Sequence[Part], base: float) -> Schedule:
    """Step by step, in MMEngine's order: as built at the first step, and then those by iteration before those by epoch.

    A window by epochs that was built before one by iterations takes its first step, and the others, in two pieces.
    """
    built = [i for i, (span, _) in enumerate(parts) if not span.by_epoch and not span.begin]
    first: list[tuple[Any, ...]] = []
    after_them: list[tuple[Any, ...]] = []
    for i, (span, shape) in enumerate(parts):
        early = span.by_epoch and not span.begin and built and i < built[-1]
        for begin, end, scale, shift, origin in shape.moves:
            local = (begin, span.count if end is None else min(end, span.count), origin)
            begin, end, origin = (span.begin + step * span.every for step in local)
            rest = (in_clock(scale, span.every), in_clock(shift, span.every), origin)
            if early and not begin:
                first.append((0, 1, *rest))
                begin = 1
            if begin < end:
                (after_them if span.by_epoch else first).append((begin, end, *rest))
    return overlay(base, *first, *after_them)
