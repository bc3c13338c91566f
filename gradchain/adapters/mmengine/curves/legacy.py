"""The old format, lr_config and momentum_config of mmcv 1.x: absolute values of the progress, and a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gradchain.adapters.mmengine.curves.kinds import anneal, cycle
from gradchain.adapters.mmengine.entries import Clock, Entry, is_number, is_whole, listed
from gradchain.schedules import (
    Schedule,
    chained,
    constant,
    cosine_wave,
    exponential,
    inverse_time,
    join,
    linear,
    multi_step,
    one_cycle,
    per_epoch,
    polynomial,
    step_decay,
)

__all__ = ["read_legacy"]

COMMON = ("policy", "by_epoch", "warmup", "warmup_iters", "warmup_ratio")
Policy = Callable[[Entry, str, int, float], Schedule]
"""(the entry, the field's name, how far progress goes, the base value) -> the schedule of the progress."""


def _step(entry: Entry, field: str, last: int, base: float) -> Schedule:
    gamma = entry.from_0("gamma", 0.1 if field == "lr" else 0.5)
    steps = entry.get("step", None, "a positive whole number or a list of them in order", _are_steps)
    many = isinstance(steps, (list, tuple))
    schedule: Schedule = multi_step(base, tuple(steps), gamma) if many else step_decay(base, steps, gamma)
    low = entry.maybe(f"min_{field}")
    return schedule if low is None else schedule.clip(low=low)


def _are_steps(value: object) -> bool:
    steps: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    return all(is_number(s) and is_whole(s) and s > 0 for s in steps) and steps == sorted(steps)


def _poly(entry: Entry, field: str, last: int, base: float) -> Schedule:
    power = entry.positive("power", 1.0)
    return polynomial(base, entry.number(f"min_{field}", 0.0), last, power)


def _inv(entry: Entry, field: str, last: int, base: float) -> Schedule:
    return inverse_time(base, entry.from_0("gamma", None), entry.positive("power", 1.0))


def _cosine(entry: Entry, field: str, last: int, base: float) -> Schedule:
    return cosine_wave(base, entry.one_floor(f"min_{field}", base), last).take(last)


def _flat_cosine(entry: Entry, field: str, last: int, base: float) -> Schedule:
    floor = entry.one_floor(f"min_{field}", base)
    flat = round(last * entry.number("start_percent", 0.75, "a number from 0 to 1", lambda x: 0 <= x <= 1))
    if flat == last:
        return constant(base)
    curve = cosine_wave(base, floor, last - flat).take(last - flat)
    return constant(base).take(flat).then(curve) if flat else curve


def _cooldown(entry: Entry, field: str, last: int, base: float) -> Schedule:
    floor = entry.one_floor(f"min_{field}", base)
    rule = f"a whole number from 0 and below the {last} of the run"
    cool = int(entry.number("cool_down_time", 10, rule, lambda x: is_whole(x) and 0 <= x < last))
    low = floor * entry.number("cool_down_ratio", 0.1)
    return cosine_wave(base, floor, last - cool).take(last - cool + 1).then(constant(low))


def _restart(entry: Entry, field: str, last: int, base: float) -> Schedule:
    floor = entry.one_floor(f"min_{field}", base)
    periods, weights = entry.numbers("periods"), entry.numbers("restart_weights", (1,))
    if len(periods) != len(weights):
        entry.refuse(f"periods and restart_weights must be as many, got {len(periods)} and {len(weights)}.")
    if not all(p > 0 for p in periods) or sum(periods) < last:
        entry.refuse(f"periods must be positive and reach the end of the run at {last}, got {periods!r}.")
    curves = [cosine_wave(floor + w * (base - floor), floor, p).take(p) for p, w in zip(periods, weights, strict=True)]
    return curves[0] if len(curves) == 1 else chained(tuple(curves))


def _cyclic(entry: Entry, field: str, last: int, base: float) -> Schedule:
    given = entry.items.get("target_ratio", (10, 1e-4) if field == "lr" else (0.85 / 0.95, 1.0))
    ratios = [given] if is_number(given) else given
    if not (isinstance(ratios, (list, tuple)) and 1 <= len(ratios) <= 2 and all(map(is_number, ratios))):
        entry.refuse(f"target_ratio must be one number or two, got {given!r}.")
    top, foot = base * ratios[0], base * (ratios[1] if len(ratios) == 2 else ratios[0] / 1e5)
    rule = f"a whole number from 1 to the {last} iterations of the run"
    period = last // int(entry.number("cyclic_times", 1, rule, lambda x: is_whole(x) and 1 <= x <= last))
    up = int(period * entry.number("step_ratio_up", 0.4, "a number from 0 and below 1", lambda x: 0 <= x < 1))
    gamma = entry.number("gamma", 1, "a number above 0 and up to 1", lambda x: 0 < x <= 1)
    shape = anneal(entry)
    full = one_cycle(base, top, up, period, end=foot, shape=shape).repeat()
    if gamma == 1:
        return full
    # Each cycle's peak is that much nearer to the base; where there is no way up, its foot.
    flat = one_cycle(base, base if up else top, up, period, end=foot if up else base, shape=shape).repeat()
    return flat + step_decay(1.0, period, gamma) * (full - flat)


def _one_cycle(entry: Entry, field: str, last: int, base: float) -> Schedule:
    if field == "momentum":
        end = entry.number("max_momentum", 0.95)
        return cycle(entry, entry.number("base_momentum", 0.85), last, end)
    rule = f"a whole number of at least the {last} iterations of the run"
    total = int(entry.number("total_steps", last, rule, lambda x: is_whole(x) and x >= last))
    return cycle(entry, entry.number("max_lr", None), total)


def _yolox(entry: Entry, clock: Clock, base: float) -> Schedule:
    """MMDetection 2.x's: a quadratic warm-up, a cosine that is a step ahead, and its floor for the last epochs."""
    if entry.items.get("warmup") is None:
        entry.refuse("warmup must be given: the cosine begins where it ends.")
    rule = "a number of at least 1 iteration"
    every = clock.epoch_length if entry.flag("warmup_by_epoch", False) else 1
    warm = int(entry.number("warmup_iters", 0, rule, lambda x: is_whole(x * every) and x * every >= 1) * every)
    if warm > clock.iters:
        entry.remark(f"the warm-up of {warm!r} iterations is longer than the run, which has {clock.iters}.")
    kept = entry.whole_from(0, "num_last_epochs", None) * clock.epoch_length
    foot, ratio = entry.one_floor("min_lr", base), entry.positive("warmup_ratio", 0.1)
    line = linear(1.0 / warm, 1.0, warm - 1) if warm > 1 else constant(1.0)
    falling = int(clock.iters - kept - warm)
    if falling < 2:
        entry.refuse(f"the warm-up and the last epochs must leave two iterations of the {clock.iters} of the run.")
    wave: Schedule = cosine_wave(base, foot, falling)
    wave = constant(base).take(warm - 1).then(wave) if warm > 1 else wave
    parts = [(0, warm, base * ratio * line * line), (warm, warm + falling - 1, wave)]
    return join(*parts, (warm + falling - 1, None, constant(foot)), absolute=True)


FLOOR, PHASES = ("min_{}", "min_{}_ratio"), ("pct_start", "anneal_strategy", "three_phase")
LR: dict[str, tuple[Policy, tuple[str, ...]]] = {
    "Fixed": (lambda entry, field, last, base: constant(base), ()),
    "Step": (_step, ("step", "gamma", "min_{}")),
    "Exp": (lambda entry, field, last, base: exponential(base, entry.positive("gamma", None)), ("gamma",)),
    "Poly": (_poly, ("power", "min_{}")),
    "Inv": (_inv, ("gamma", "power")),
    "CosineAnnealing": (_cosine, FLOOR),
    "FlatCosineAnnealing": (_flat_cosine, ("start_percent", *FLOOR)),
    "CosineAnnealingCooldown": (_cooldown, ("cool_down_ratio", "cool_down_time", *FLOOR)),
    "CosineRestart": (_restart, ("periods", "restart_weights", *FLOOR)),
    "Cyclic": (_cyclic, ("target_ratio", "cyclic_times", "step_ratio_up", "anneal_strategy", "gamma")),
    "OneCycle": (_one_cycle, ("max_lr", "total_steps", "div_factor", "final_div_factor", *PHASES)),
    "LinearAnnealing": (
        lambda entry, field, last, base: linear(base, entry.one_floor(f"min_{field}", base), last),
        FLOOR,
    ),
}
POLICIES = {
    "lr": LR,
    "momentum": {
        **{name: LR[name] for name in ("Step", "CosineAnnealing", "LinearAnnealing", "Cyclic")},
        "OneCycle": (_one_cycle, ("base_momentum", "max_momentum", *PHASES)),
    },
}
ITERATIONS_ONLY = ("Cyclic", "OneCycle")


def read_legacy(
    lr_config: Mapping[str, Any] | None, momentum_config: Mapping[str, Any] | None, clock: Clock, strict: bool
) -> dict[str, Callable[[float], Schedule]]:
    """By field, a function of the base value."""
    fields = {}
    for field, config in (("lr", lr_config), ("momentum", momentum_config)):
        if config is not None:
            fields[field] = _field(field, config, clock, strict)
            fields[field](1.0)
    return fields


def _field(field: str, config: object, clock: Clock, strict: bool) -> Callable[[float], Schedule]:
    name = f"{field}_config"
    if not isinstance(config, Mapping):
        Entry(name, {}, strict).refuse(f"it must be a dict with a policy, got {config!r}.", TypeError)
    given, policies = config.get("policy"), POLICIES[field]
    if given == "YOLOX" and field == "lr":
        entry = Entry(f"{name} (YOLOX)", config, strict)
        entry.only((*COMMON, "warmup_by_epoch", "num_last_epochs", "min_lr", "min_lr_ratio"))
        if entry.flag("by_epoch", clock.epochs is not None):
            entry.refuse("by_epoch must be False for this policy, got True: it counts the last epochs in iterations.")
        return partial(_yolox, entry, clock)
    # mmcv capitalises a policy that is written in lower case.
    policy = given.title() if isinstance(given, str) and given == given.lower() else given
    if policy not in policies:
        Entry(name, config, strict).refuse(f"policy must be one of {listed(policies)}, got {given!r}.")
    entry = Entry(f"{name} ({policy})", config, strict)
    build, keys = policies[policy]
    entry.only((*COMMON, *(key.format(field) for key in keys), *(("warmup_by_epoch",) if field == "lr" else ())))
    by_epoch = entry.flag("by_epoch", clock.epochs is not None and policy not in ITERATIONS_ONLY)
    if by_epoch and policy in ITERATIONS_ONLY:
        entry.refuse("by_epoch must be False for this policy, got True.")
    if by_epoch and clock.epochs is None:
        entry.remark("a loop of iterations counts no epochs: it never acts; did you mean by_epoch=False?")
        return constant
    last = clock.epochs if by_epoch and clock.epochs else clock.iters
    steps = config.get("step")
    if late := [s for s in (steps if isinstance(steps, (list, tuple)) else ()) if is_number(s) and s >= last]:
        entry.remark(f"steps {late!r} are never reached: the run has {last} {'epochs' if by_epoch else 'iterations'}.")
    factor = _warm_up(entry, clock, 0.1 if field == "lr" else 0.9)
    return partial(_value, field, partial(build, entry, field, last), factor, clock.epoch_length if by_epoch else 1)


def _value(
    field: str, build: Callable[[float], Schedule], factor: Schedule | None, every: int, base: float
) -> Schedule:
    main = build(base)
    if every > 1 and not isinstance(main, constant):
        main = per_epoch(main, every)
    if factor is None:
        return main
    # A momentum is warmed from above.
    return main * factor if field == "lr" else main / factor


def _warm_up(entry: Entry, clock: Clock, default: float) -> Schedule | None:
    """The factor on the current value of the policy: from the ratio to 1 over the warm-up, and 1 after."""
    kinds = (None, "constant", "linear", "exp")
    kind = entry.get("warmup", None, "'constant', 'linear' or 'exp'", lambda x: x in kinds)
    if kind is None:
        return None
    steps = entry.positive("warmup_iters", 0)
    ratio = entry.number("warmup_ratio", default, "a number above 0 and up to 1", lambda x: 0 < x <= 1)
    if entry.flag("warmup_by_epoch", False):
        if clock.epochs is None:
            entry.refuse("warmup_by_epoch must be False in a loop of iterations, got True.")
        steps *= clock.epoch_length
    if steps > clock.iters:
        entry.remark(f"the warm-up of {steps!r} iterations is longer than the run, which has {clock.iters}.")
    if kind == "constant":
        return constant(ratio).take(steps).then(constant(1.0))
    return linear(ratio, 1.0, steps) if kind == "linear" else exponential(ratio, 1.0 / ratio, steps, end=1.0)
