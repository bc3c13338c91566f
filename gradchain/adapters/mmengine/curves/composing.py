"""Windows put together: a product, a join, or an overlay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

from gradchain.adapters.mmengine.curves.shapes import Move, Shape
from gradchain.adapters.mmengine.curves.windows import Act
from gradchain.schedules import Schedule, constant, join, overlay, per_epoch

__all__ = ["compose"]


def compose(acts: Sequence[Act], total: int, base: float) -> Schedule:
    """The value of a field from its base value, under these schedulers, over `total` micro-batches."""
    known, shaped = base, []
    for act in acts:
        shape = act.shape(known)
        if shape is not None:
            shaped.append((act, shape))
        if shape is not None and act.kind.sets_base:
            known = shape.alone(base)(0)
    if not shaped:
        return constant(base)
    if all(shape.scale is not None for _, shape in shaped):
        return reduce(lambda value, part: value * _factor(*part), shaped, base)  # type: ignore[arg-type, return-value]
    ordered = sorted(shaped, key=lambda part: part[0].begin)
    if all(first.end <= second.begin for (first, _), (second, _) in pairwise(ordered)):
        return _one_by_one(ordered, base)
    return _at_once(shaped, base)


def _in_its_clock(act: Act, part: Any) -> Any:
    """A schedule in steps of a window, read at micro-batches; a value that stays needs no clock."""
    return per_epoch(part, act.every) if act.by_epoch and not isinstance(part, (float, int, constant)) else part


def _factor(act: Act, shape: Shape) -> Schedule:
    scale: Schedule = _in_its_clock(act, shape.scale)
    return constant(1.0).take(act.begin).then(scale) if act.begin else scale


def _one_by_one(parts: Sequence[tuple[Act, Shape]], base: float) -> Schedule:
    """Each window from the value that the one before left."""
    value = base
    windows: list[Any] = []
    if parts[0][0].begin:
        windows.append((0, parts[0][0].begin, constant(base)))
    for act, shape in parts:
        alone = shape.alone(value)
        value = alone(act.span.count - 1)
        schedule: Schedule = _in_its_clock(act, alone)
        windows.append((act.begin, act.end, schedule.take(act.end - act.begin)))
        last = (act.begin, None, schedule)
    windows = [*windows[:-1], last]
    return join(*windows) if len(windows) > 1 else last[2]


def _at_once(parts: Sequence[tuple[Act, Shape]], base: float) -> Schedule:
    """Step by step, in MMEngine's order: as built at the first step, and then those by iteration before those by epoch.

    A window by epochs that was built before one by iterations takes its first step, and the others, in two pieces.
    """
    built = [i for i, (act, _) in enumerate(parts) if not act.by_epoch and not act.begin]
    early = {i for i, (act, _) in enumerate(parts) if act.by_epoch and not act.begin and built and i < built[-1]}
    first: list[tuple[Any, ...]] = []
    after: list[tuple[Any, ...]] = []
    for i, (act, shape) in enumerate(parts):
        for move in shape.moves:
            begin, end, *rest = _placed(act, move)
            if i in early and not begin:
                first.append((0, 1, *rest))
                begin = 1
            if begin < end:
                (after if act.by_epoch else first).append((begin, end, *rest))
    return overlay(base, *first, *after)


def _placed(act: Act, move: Move) -> tuple[Any, ...]:
    begin, end, origin = (act.begin + at * act.every for at in (move.begin, move.end, move.origin))
    return begin, end, _in_its_clock(act, move.scale), _in_its_clock(act, move.shift), origin
