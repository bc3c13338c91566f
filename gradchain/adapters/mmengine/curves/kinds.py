"""Every type of scheduler that MMEngine and the recipes have: its keys, and the shape it takes in its window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gradchain.adapters.mmengine.curves import shapes
from gradchain.adapters.mmengine.curves.shapes import Shape
from gradchain.adapters.mmengine.entries import Entry, is_numbers, is_whole, whole
from gradchain.schedules import Schedule, constant, exponential, linear, multi_step, one_cycle, polynomial, step_decay

__all__ = ["FAMILIES", "SUFFIXES", "TYPES", "Kind", "Span", "anneal", "cycle"]


@dataclass(frozen=True)
class Span:
    """A window in its own steps, iterations or epochs.

    n: end - begin, as written, which the formulas divide by; count: the steps that fall into it; run: those of them
    that come before the end of the training; factor: what lengths are multiplied by, for a conversion to iterations.
    """

    n: float
    count: int
    run: int
    factor: int = 1

    def steps(self, length: float) -> float:
        """A length of the config in steps of the window."""
        return whole(length * self.factor)


Build = Callable[[Entry, Span, float], "Shape | None"]


@dataclass(frozen=True)
class Kind:
    """A type: the field it moves (None: the config says), its keys, and its shape from entry, window and base value.

    whole_window: a conversion to iterations rounds the window down; divides: the key of a factor that MMEngine divides
    by; sets_base: schedulers built after it take its first value for the base; reach: after how many steps it is done,
    None where its values do not depend on where its window ends; by_epoch: what it counts where nobody says.
    """

    field: str | None
    build: Build
    keys: tuple[str, ...]
    required: tuple[str, ...] = ()
    whole_window: bool = True
    divides: str | None = None
    sets_base: bool = False
    reach: Callable[[Entry, Span], float] | None = None
    by_epoch: bool = True


def _whole_window(entry: Entry, span: Span) -> float:
    return span.n


def _half_wave(entry: Entry, span: Span) -> float:
    return min(span.steps(entry.maybe("T_max") or math.inf), span.n)


def _periods(entry: Entry, span: Span) -> float:
    return min(sum(map(span.steps, entry.numbers("periods"))), span.n)


def _ends(entry: Entry) -> tuple[float, float]:
    unit = ("a number from 0 to 1", lambda x: 0 <= x <= 1)
    return entry.number("start_factor", 1 / 3, *unit), entry.number("end_factor", 1.0, *unit)


def _linear(entry: Entry, span: Span, base: float) -> Shape:
    start, end = _ends(entry)
    return shapes.factor(constant(start) if span.count == 1 else linear(start, end, span.n - 1), span.count)


def _constant(entry: Entry, span: Span, base: float) -> Shape:
    # MMPose's lets a factor be above 1.
    scale: Schedule = constant(entry.from_0("factor", 1 / 3))
    if span.count > 1 and is_whole(span.n):
        scale = scale.take(int(span.n) - 1).then(constant(1.0))
    return shapes.factor(scale, span.count)


def _multi_step(entry: Entry, span: Span, base: float) -> Shape | None:
    milestones = sorted(span.steps(m) for m in entry.numbers("milestones"))
    met = [m for m in milestones if is_whole(m) and 0 <= m < span.count]
    return shapes.factor(multi_step(1.0, tuple(met), entry.from_0("gamma", 0.1)), span.count) if met else None


def _step(entry: Entry, span: Span, base: float) -> Shape | None:
    size = span.steps(entry.positive("step_size", None))
    if not is_whole(size):
        entry.refuse(f"step_size must be whole in steps of the scheduler, got {size!r}.")
    scale = step_decay(1.0, size, entry.from_0("gamma", 0.1))
    return shapes.factor(scale, span.count) if size < span.count else None


def _exponential(entry: Entry, span: Span, base: float) -> Shape:
    gamma = entry.from_0("gamma", 1.0)
    return shapes.factor(exponential(1.0, gamma) if gamma else step_decay(1.0, 1, 0.0), span.count)


def _poly(entry: Entry, span: Span, base: float) -> Shape | None:
    # PolyLRRatio's ratio stands in for eta_min where both are given.
    ratio = entry.maybe("eta_min_ratio")
    floor = entry.number("eta_min", 0.0) if ratio is None else base * ratio
    power = entry.positive("power", 1.0)
    if span.count == 1:
        return None
    return shapes.towards(lambda a, b: polynomial(a, b, span.n - 1, power), floor, span.count)


def _cosine(entry: Entry, span: Span, base: float) -> Shape:
    floor = entry.one_floor("eta_min", base, 0.0)
    # As in MMEngine, 0 and None are the same as not given.
    given = entry.maybe("T_max") or 0
    if given < 0:
        entry.refuse(f"T_max must be a positive number, got {given!r}.")
    half = span.steps(given) if given else span.n
    return shapes.climbing(half, floor, base, span.count)


def _cosine_weight_decay(entry: Entry, span: Span, base: float) -> Shape:
    # MMPretrain's leaves a weight decay of 0 at 0, where MMEngine's would lift it to the floor.
    return _cosine(entry, span, base) if base else shapes.factor(constant(0.0), span.count)


def _restart(entry: Entry, span: Span, base: float) -> Shape:
    floor = entry.one_floor("eta_min", base)
    periods = [span.steps(p) for p in entry.numbers("periods")]
    weights = entry.numbers("restart_weights", (1,))
    if len(periods) != len(weights) or not periods:
        entry.refuse(f"periods and restart_weights must be as many, got {len(periods)} and {len(weights)}.")
    if not all(is_whole(p) and p > 0 for p in periods):
        entry.refuse(f"periods must be whole and positive in steps of the scheduler, got {periods!r}.")
    return shapes.restarts([int(p) for p in periods], weights, floor, base, span.count)


def _one_cycle(entry: Entry, span: Span, base: float) -> Shape:
    peak = entry.number("eta_max", 0.0)
    total = span.steps(entry.positive("total_steps", span.n / span.factor))
    if not is_whole(total):
        entry.refuse(f"total_steps must be whole in steps of the scheduler, got {total!r}.")
    if span.run > total:
        entry.refuse(f"total_steps must be at least the {span.run} steps of its window, got {total!r}.")
    return shapes.absolute(cycle(entry, peak, total), span.count)


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
    strategy = entry.get("anneal_strategy", "cos", "'cos' or 'linear'", lambda x: x in ("cos", "linear"))
    return "cosine" if strategy == "cos" else "linear"


def _quadratic(entry: Entry, span: Span, base: float) -> Shape:
    return shapes.quadratic(span.n, base, span.count)


def _interval(entry: Entry, span: Span, base: float) -> Shape:
    start, end = _ends(entry)
    # It is not converted with the window.
    rule = f"a number above 0 and up to the {span.n!r} steps of its window"
    every = entry.number("interval", 1, rule, lambda x: 0 < x <= span.n)
    return shapes.interval(start, end, every, span.n // every, span.count)


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
    # Between two milestones the earlier one holds; where no later milestone is above the step, the last.
    edges = sorted({max(math.ceil(edge), 0) for edge in (*firsts, *(s for one in stages for s in one))})
    edges = [edge for edge in edges if firsts[0] <= edge < span.count]
    if not edges:
        return None

    def value(step: float) -> float:
        stage = next((i for i, first in enumerate(firsts[1:]) if step < first), -1)
        passed = next((i for i, s in enumerate(stages[stage]) if step < s), len(stages[stage]))
        return values[stage] * gammas[stage] ** passed

    return shapes.stairs(edges, [value(edge) for edge in edges], span.count)


FLOOR, STAGES = ("eta_min", "eta_min_ratio"), ("gammas", "milestone_iters", "milestone_params", "steps")
FAMILIES: dict[str, Kind] = {
    "Constant": Kind(None, _constant, ("factor",), divides="factor", reach=_whole_window),
    "CosineAnnealing": Kind(None, _cosine, ("T_max", *FLOOR), reach=_half_wave),
    "CosineRestart": Kind(None, _restart, ("restart_weights", *FLOOR), ("periods",), reach=_periods),
    "Exponential": Kind(None, _exponential, (), ("gamma",)),
    "Linear": Kind(None, _linear, ("start_factor", "end_factor"), divides="start_factor", reach=_whole_window),
    "MultiStep": Kind(None, _multi_step, ("gamma",), ("milestones",)),
    "MultiStage": Kind(None, _stages, (), STAGES, whole_window=False, by_epoch=False),
    "Poly": Kind(None, _poly, ("eta_min", "power"), reach=_whole_window),
    "QuadraticWarmup": Kind(None, _quadratic, (), whole_window=False, reach=_whole_window),
    "Step": Kind(None, _step, ("gamma",), ("step_size",)),
}
SUFFIXES: dict[str, str | None] = {"LR": "lr", "Momentum": "momentum", "ParamScheduler": None}
CYCLE_KEYS = (
    "eta_max", "total_steps", "pct_start", "anneal_strategy", "div_factor", "final_div_factor", "three_phase",
)  # fmt: skip
ONE_CYCLE = Kind(
    None, _one_cycle, CYCLE_KEYS, sets_base=True,
    reach=lambda entry, span: span.steps(entry.number("total_steps", span.n / span.factor)),
)  # fmt: skip
TYPES: dict[str, Kind] = {
    **{
        f"{family}{suffix}": replace(kind, field=field)
        for family, kind in FAMILIES.items()
        for suffix, field in SUFFIXES.items()
    },
    "CosineAnnealingWeightDecay": Kind("weight_decay", _cosine_weight_decay, ("T_max", *FLOOR), reach=_half_wave),
    "LinearLrInterval": Kind("lr", _interval, ("start_factor", "end_factor", "interval"), reach=_whole_window),
    "OneCycleLR": replace(ONE_CYCLE, field="lr"),
    "OneCycleParamScheduler": ONE_CYCLE,
    "PolyLRRatio": Kind("lr", _poly, ("power", *FLOOR), reach=_whole_window),
}
