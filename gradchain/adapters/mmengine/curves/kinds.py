"""Every type of scheduler that MMEngine and the recipes have: its keys, and the shape it takes in its window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import accumulate
from typing import Literal

from gradchain.adapters.mmengine.curves.shapes import Shape, Span, factor, towards
from gradchain.adapters.mmengine.entries import Entry, is_number, is_numbers, is_whole
from gradchain.schedules import (
    Schedule,
    constant,
    cosine_wave,
    exponential,
    linear,
    multi_step,
    one_cycle,
    per_epoch,
    piecewise,
    polynomial,
    step_decay,
)
from gradchain.schedules.overlays import Change

__all__ = ["SUFFIXES", "TYPES", "Kind", "anneal", "cycle", "periods_and_weights", "squares", "waves"]


@dataclass(frozen=True)
class Kind:
    """A type: its shape from entry, window and base value (None: it does nothing), its keys, and the field it moves.

    field: None where the config says; whole_window: a conversion to iterations rounds the window down; divides: the key
    of a factor that MMEngine divides by; sets_base: schedulers built after it take its first value for the base;
    by_epoch: what it counts where nobody says.
    """

    shape: Callable[[Entry, Span, float], Shape | None]
    keys: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    field: str | None = None
    whole_window: bool = True
    divides: str | None = None
    sets_base: bool = False
    by_epoch: bool = True


# schedulers that multiply


def _ends(entry: Entry) -> tuple[float, float]:
    unit = ("a number from 0 to 1", lambda x: 0 <= x <= 1)
    return entry.number("start_factor", 1 / 3, *unit), entry.number("end_factor", 1.0, *unit)


def _linear(entry: Entry, span: Span, base: float) -> Shape:
    start, end = _ends(entry)
    return factor(constant(start) if span.count == 1 else linear(start, end, span.n - 1), span.n)


def _constant(entry: Entry, span: Span, base: float) -> Shape:
    # MMPose's lets a factor be above 1.
    scale: Schedule = constant(entry.from_0("factor", 1 / 3))
    if span.count > 1 and is_whole(span.n):
        scale = scale.take(int(span.n) - 1).then(constant(1.0))
    return factor(scale, span.n)


def _multi_step(entry: Entry, span: Span, base: float) -> Shape | None:
    milestones = sorted(span.steps(m) for m in entry.numbers("milestones"))
    met = [m for m in milestones if is_whole(m) and 0 <= m < span.count]
    return factor(multi_step(1.0, tuple(met), entry.from_0("gamma", 0.1))) if met else None


def _step(entry: Entry, span: Span, base: float) -> Shape | None:
    rule = "a positive number of whole steps of the scheduler"
    size = span.steps(entry.number("step_size", None, rule, lambda x: x > 0 and is_whole(span.steps(x))))
    scale = step_decay(1.0, size, entry.from_0("gamma", 0.1))
    return factor(scale) if size < span.count else None


def _exponential(entry: Entry, span: Span, base: float) -> Shape:
    gamma = entry.from_0("gamma", 1.0)
    return factor(exponential(1.0, gamma) if gamma else step_decay(1.0, 1, 0.0))


# schedulers that go to a floor


def _poly(entry: Entry, span: Span, base: float) -> Shape | None:
    # PolyLRRatio's ratio stands in for eta_min where both are given.
    ratio = entry.maybe("eta_min_ratio")
    floor = entry.number("eta_min", 0.0) if ratio is None else base * ratio
    power = entry.positive("power", 1.0)
    if span.count == 1:
        return None
    return towards(partial(polynomial, steps=span.n - 1, power=power), floor, span.n)


def _cosine(entry: Entry, span: Span, base: float) -> Shape:
    floor = entry.one_floor("eta_min", base, 0.0)
    # As in MMEngine, 0 and None are the same as not given.
    given = entry.get("T_max", None, "a positive number or None", lambda x: x is None or (is_number(x) and x >= 0))
    half = span.steps(given) if given else span.n
    if span.count - 1 <= half or not is_whole(half):
        # A half wave that ends between two steps meets the floor at none, and swings on from the value found.
        return towards(partial(cosine_wave, steps=half), floor, half)
    return _climbing(int(half), floor, base, span.count)


def _climbing(half: int, floor: float, base: float, count: int) -> Shape:
    """Half a cosine to the floor, then up to the base value and down again."""
    fall, up, rest = (cosine_wave(*ends, half) for ends in ((1.0, 0.0), (0.0, 1.0), (floor, 0.0)))
    moves: list[Change] = [(0, half + 1, fall, cosine_wave(0.0, floor, half), 0)]
    for foot in range(half, count - 1, 2 * half):
        # At the floor no factor leads up: the first step adds, the others keep the ratio of their heights above it.
        moves.append((foot + 1, foot + 2, 1.0, (base - floor) * up(1), foot + 1))
        moves.append((foot + 2, foot + 2 * half + 1, up, rest, foot))

    def curve(value: float) -> Schedule:
        wave = cosine_wave(value, floor, half)
        return wave if value == base else wave.take(half).then(cosine_wave(floor, base, half))

    return Shape(moves, curve, reach=half)


def _cosine_weight_decay(entry: Entry, span: Span, base: float) -> Shape:
    # MMPretrain's leaves a weight decay of 0 at 0, where MMEngine's would lift it to the floor.
    return _cosine(entry, span, base) if base else factor(constant(0.0))


def _restart(entry: Entry, span: Span, base: float) -> Shape:
    floor = entry.one_floor("eta_min", base)
    lengths, weights = periods_and_weights(entry)
    periods = [span.steps(length) for length in lengths]
    if not all(is_whole(period) and period > 0 for period in periods):
        entry.refuse(f"periods must be whole and positive in steps of the scheduler, got {periods!r}.")
    peaks = [base * weight for weight in weights]
    moves: list[Change] = []
    for begin, period, peak in zip(accumulate(periods, initial=0), periods, peaks, strict=False):
        fall, rise = cosine_wave(1.0, 0.0, period), cosine_wave(0.0, floor, period)
        moves.append((begin, begin + 1, 0.0, peak, begin))
        moves.append((begin + 1, begin + period, fall, rise, begin))
    # After the last period its last value stays, which is not yet the floor.
    curve = waves(peaks, floor, periods, spare=1)
    return Shape(moves, lambda value: curve, reach=sum(periods))


def periods_and_weights(entry: Entry) -> tuple[list[float], list[float]]:
    """The lengths of a cosine that restarts, and by what its peaks are multiplied."""
    periods, weights = entry.numbers("periods"), entry.numbers("restart_weights", (1,))
    if len(periods) != len(weights) or not periods:
        entry.refuse(f"periods and restart_weights must be as many, got {len(periods)} and {len(weights)}.")
    return periods, weights


def waves(peaks: Sequence[float], floor: float, periods: Sequence[float], spare: int = 0) -> Schedule:
    """Cosines from each peak towards the floor, one after the other; the last ends so many steps before its period."""
    ends = [*periods[:-1], periods[-1] - spare]
    parts: list[Schedule] = [
        cosine_wave(peak, floor, period).take(end) for peak, period, end in zip(peaks, periods, ends, strict=True)
    ]
    return reduce(Schedule.then, parts)


# schedulers that set the value


def _one_cycle(entry: Entry, span: Span, base: float) -> Shape:
    peak = entry.number("eta_max", 0.0)
    total = span.steps(entry.positive("total_steps", span.n / span.factor))
    if not is_whole(total) or total < span.run:
        rule = f"whole in steps of the scheduler, and at least the {span.run} of its window"
        entry.refuse(f"total_steps must be {rule}, got {total!r}.")
    curve = cycle(entry, peak, total)
    return Shape([(0, None, 0.0, curve, 0)], lambda value: curve, reach=total)


def cycle(entry: Entry, peak: float, total: float, ends: float | None = None) -> Schedule:
    """One cycle of so many steps, in the phases that the entry says. `ends`: where it begins and ends, if not there."""
    start = peak / entry.positive("div_factor", 25.0) if ends is None else ends
    end = start / entry.positive("final_div_factor", 1e4) if ends is None else ends
    three = entry.flag("three_phase", False)
    limit = 0.5 if three else 1.0
    rule = f"a number above 1 / total_steps = {1 / total!r} and below {limit}"
    up = entry.number("pct_start", 0.3, rule, lambda x: x * total > 1 and x < limit)
    back = 2 * up * total - 2 if three else None
    return one_cycle(start, peak, up * total - 1, total - 1, end=end, shape=anneal(entry), return_steps=back)


def anneal(entry: Entry) -> Literal["cosine", "linear"]:
    """The shape that an entry's anneal_strategy names."""
    return "cosine" if entry.one_of("anneal_strategy", "cos", "linear") == "cos" else "linear"


def _quadratic(entry: Entry, span: Span, base: float) -> Shape:
    # Set at first, added to after.
    curve = squares(base, span.n, span.count)
    return Shape([(0, 1, 0.0, curve(0), 0), (1, None, 1.0, curve, 0)], lambda value: curve, reach=span.n)


def squares(scale: float, n: float, count: float) -> Schedule:
    """scale * ((t + 1) / n)**2 for so many steps."""
    line = linear(1.0 / n, count / n, count - 1)
    return scale * line * line


def _interval(entry: Entry, span: Span, base: float) -> Shape:
    # MMagic's: the start as a factor, then the factor itself as the value, in stairs, a step late.
    start, end = _ends(entry)
    # It is not converted with the window.
    rule = f"a number above 0 and up to the {span.n!r} steps of its window"
    every = entry.number("interval", 1, rule, lambda x: 0 < x <= span.n)
    rise = per_epoch(linear(start, end, span.n // every), every)
    moves: list[Change] = [(0, 1, start, 0.0, 0), (1, None, 0.0, rise, 1)]
    return Shape(moves, lambda value: constant(value * start).take(1).then(rise), reach=span.n)


def _stages(entry: Entry, span: Span, base: float) -> Shape | None:
    # MMFlow's: each stage sets the value, from its first step on, and has steps that divide it.
    firsts = [span.steps(first) for first in entry.numbers("milestone_iters")]
    values, gammas = entry.numbers("milestone_params"), entry.numbers("gammas")
    rule = "a list of lists of numbers, the first of each above its milestone"
    steps = entry.get("steps", None, rule, lambda x: isinstance(x, (list, tuple)) and all(map(is_numbers, x)))
    if len({len(part) for part in (firsts, values, gammas, steps)}) != 1 or not firsts:
        entry.refuse("milestone_iters, milestone_params, gammas and steps must be as many.")
    stages = [[span.steps(s) for s in one] for one in steps]
    if any(not one or first >= one[0] for first, one in zip(firsts, stages, strict=True)):
        entry.refuse(f"steps must be {rule}, got {steps!r}.")

    def point(step: int) -> tuple[int, float]:
        # Between two milestones the earlier one holds; where no later milestone is above the step, the last.
        stage = next((i for i, first in enumerate(firsts[1:]) if step < first), -1)
        passed = next((i for i, s in enumerate(stages[stage]) if step < s), len(stages[stage]))
        return step, values[stage] * gammas[stage] ** passed

    edges = sorted({max(math.ceil(edge), 0) for edge in (*firsts, *(s for one in stages for s in one))})
    points = [point(edge) for edge in edges if firsts[0] <= edge < span.count]
    if not points:
        return None
    ends = [*(step for step, _ in points[1:]), None]
    moves: list[Change] = [(step, end, 0.0, value, step) for (step, value), end in zip(points, ends, strict=True)]
    return Shape(moves, lambda value: piecewise(*([(0, value)] if points[0][0] else []), *points))


FLOOR, STAGES = ("eta_min", "eta_min_ratio"), ("gammas", "milestone_iters", "milestone_params", "steps")
CYCLE = ("total_steps", "pct_start", "anneal_strategy", "div_factor", "final_div_factor", "three_phase", "eta_max")
SUFFIXES: dict[str, str | None] = {"LR": "lr", "Momentum": "momentum", "ParamScheduler": None}
FAMILIES = {
    "Constant": Kind(_constant, ("factor",), divides="factor"),
    "CosineAnnealing": Kind(_cosine, ("T_max", *FLOOR)),
    "CosineRestart": Kind(_restart, ("restart_weights", *FLOOR), ("periods",)),
    "Exponential": Kind(_exponential, (), ("gamma",)),
    "Linear": Kind(_linear, ("start_factor", "end_factor"), divides="start_factor"),
    "MultiStep": Kind(_multi_step, ("gamma",), ("milestones",)),
    "MultiStage": Kind(_stages, (), STAGES, whole_window=False, by_epoch=False),
    "Poly": Kind(_poly, ("eta_min", "power")),
    "QuadraticWarmup": Kind(_quadratic, whole_window=False),
    "Step": Kind(_step, ("gamma",), ("step_size",)),
}
TYPES = {
    **{
        f"{family}{suffix}": replace(kind, field=field)
        for family, kind in FAMILIES.items()
        for suffix, field in SUFFIXES.items()
    },
    "CosineAnnealingWeightDecay": Kind(_cosine_weight_decay, ("T_max", *FLOOR), field="weight_decay"),
    "LinearLrInterval": Kind(_interval, ("start_factor", "end_factor", "interval"), field="lr"),
    "OneCycleLR": Kind(_one_cycle, CYCLE, field="lr", sets_base=True),
    "OneCycleParamScheduler": Kind(_one_cycle, CYCLE, sets_base=True),
    "PolyLRRatio": Kind(_poly, ("power", *FLOOR), field="lr"),
}
