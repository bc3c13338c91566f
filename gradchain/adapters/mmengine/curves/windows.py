"""A list of schedulers as windows on the micro-batches of a run, and the faults in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradchain.adapters.mmengine.curves.kinds import TYPES, Kind, Span
from gradchain.adapters.mmengine.curves.shapes import Shape
from gradchain.adapters.mmengine.entries import FROM_0, Clock, Entry, is_whole, listed, near, whole

__all__ = ["Act", "read"]

COMMON = ("type", "begin", "end", "by_epoch", "convert_to_iter_based", "last_step", "verbose", "_scope_")
# they read a metric: a link's work, not a schedule's
METRIC = ("ReduceOnPlateauLR", "ReduceOnPlateauMomentum", "ReduceOnPlateauParamScheduler", "ReduceLR")


@dataclass(frozen=True)
class Act:
    """A scheduler in its window: it acts at begin and every `every` micro-batches after, `span.count` times."""

    entry: Entry
    kind: Kind
    field: str
    begin: int
    every: int
    by_epoch: bool
    span: Span

    @property
    def end(self) -> int:
        """The micro-batch after the window."""
        return self.begin + self.span.count * self.every

    def shape(self, base: float) -> Shape | None:
        """What it does to a value of this base; None if nothing."""
        return self.kind.build(self.entry, self.span, base)


def read(config: object, name: str, clock: Clock, strict: bool) -> Act | None:
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
    window = _window(entry, kind, clock, by_epoch, converted)
    if window is None:
        return None
    begin, span, counts_epochs = window
    act = Act(entry, kind, field, begin, clock.epoch_length if counts_epochs else 1, counts_epochs, span)
    if act.begin >= clock.iters:
        entry.remark(f"it never acts: it begins at iteration {act.begin!r}, and the run ends at {clock.iters!r}.")
        # One cycle changes the base value of others even so.
        return act if kind.sets_base else None
    shape = act.shape(1.0)
    _remarks(act, shape)
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
    if entry.items.get("last_step", -1) != -1:
        entry.refuse(
            f"last_step must be -1, got {entry.items['last_step']!r}; a schedule is a function of the step, and needs "
            "nothing to resume."
        )
    return entry, kind, field


def _window(entry: Entry, kind: Kind, clock: Clock, by_epoch: bool, converted: bool) -> tuple[int, Span, bool] | None:
    """Where it begins in micro-batches, its steps, and whether these are epochs; None if it never acts."""
    begin, end = _edges(entry, clock)
    if converted:
        # QuadraticWarmup does not round; the others do, down.
        length, cut = clock.epoch_length, int if kind.whole_window else whole
        begin, end = cut(begin * length), cut(end * length)
    if end <= begin:
        unit = " iterations" if converted or not by_epoch else " epochs"
        entry.refuse(f"end must be above begin, got begin={begin!r} and end={end!r}{unit}.")
    if not (is_whole(begin) and is_whole(end)) and kind.whole_window:
        rule = "begin and end must be whole, or convert_to_iter_based=True make them so"
        entry.object_to(f"{rule}, got begin={begin!r} and end={end!r}.")
    first, count, n = math.ceil(begin), math.ceil(end) - math.ceil(begin), whole(end - begin)
    if count < 1:
        entry.remark(f"it never acts: no whole step lies from begin={begin!r} to end={end!r}.")
        return None
    if count > n and kind.whole_window:
        entry.refuse(f"begin and end must be whole, got begin={begin!r} and end={end!r}.")
    if converted and clock.epochs is None and "end" not in entry.items and count < clock.iters:
        entry.remark(
            f"end must be given in a loop of iterations, which is one epoch to it: it stops after {count} of "
            f"{clock.iters} iterations."
        )
    if converted or not by_epoch:
        return first, Span(n, count, min(count, clock.iters - first), clock.epoch_length if converted else 1), False
    if clock.epochs is not None:
        return first * clock.epoch_length, Span(n, count, min(count, clock.epochs - first)), True
    if first > 0:
        entry.remark(f"it never acts: it begins at epoch {first!r}, and a loop of iterations counts no epochs.")
        return None
    entry.remark("a loop of iterations counts no epochs: it acts once, at the start; did you mean by_epoch=False?")
    return 0, Span(n, 1, 1), False


def _edges(entry: Entry, clock: Clock) -> tuple[float, float]:
    begin = whole(entry.number("begin", 0, *FROM_0))
    # A missing end is filled in as the Runner does, whose loop of iterations is one epoch.
    # It takes what says nothing for one by epoch, though MMFlow's counts iterations by itself.
    default = (1 if clock.epochs is None else clock.epochs) if entry.flag("by_epoch", True) else clock.iters
    return begin, whole(entry.number("end", default))


def _remarks(act: Act, shape: Shape | None) -> None:
    """What is legal in a scheduler and most likely a slip."""
    entry, span, items = act.entry, act.span, act.entry.items
    unit = "epochs" if act.by_epoch else "iterations"
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
    reach = span.run if act.kind.reach is None else min(act.kind.reach(entry, span), span.count)
    if span.run < reach and span.n > 1:
        what = "its window ends" if reach == span.n else "it would be done"
        entry.remark(f"{what} after the run: {span.run} of {math.ceil(reach)} {unit} are in it.")
