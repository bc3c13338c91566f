"""The old format, lr_config and momentum_config of mmcv 1.x: absolute values of the progress, and a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradchain.adapters.mmengine.curves.kinds import anneal, cycle, periods_and_weights, squares, waves
from gradchain.adapters.mmengine.curves.shapes import after, in_clock
from gradchain.adapters.mmengine.entries import Clock, Entry, is_number, is_whole, listed
from gradchain.schedules import (
    Schedule,
    constant,
    cosine_wave,
    exponential,
    inverse_time,
    linear,
    multi_step,
    one_cycle,
    polynomial,
    step_decay,
)

__all__ = ["read_legacy"]


@dataclass(frozen=True)
class Run:
    """What a policy is asked for: the field, how far its progress goes, micro-batches of an epoch and to warm up."""

    field: str
    last: int
    epoch_length: int
    warm: float

    def floor(self, entry: Entry, base: float) -> float:
        """The value that a policy goes to."""
        return entry.one_floor(f"min_{self.field}", base)


Policy = Callable[[Entry, Run, float], Schedule]
"""(the entry, the run, the base value) -> the schedule of the progress."""


def _step(entry: Entry, run: Run, base: float) -> Schedule:
    gamma = entry.from_0("gamma", 0.1 if run.field == "lr" else 0.5)
    steps = entry.get("step", None, "a positive whole number or a list of them in order", _are_steps)
    many = isinstance(steps, (list, tuple))
    schedule: Schedule = multi_step(base, tuple(steps), gamma) if many else step_decay(base, steps, gamma)
    low = entry.maybe(f"min_{run.field}")
    return schedule if low is None else schedule.clip(low=low)


def _are_steps(value: object) -> bool:
    steps: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    return all(is_number(s) and is_whole(s) and s > 0 for s in steps) and steps == sorted(steps)


def _poly(entry: Entry, run: Run, base: float) -> Schedule:
    power = entry.positive("power", 1.0)
    return polynomial(base, entry.number(f"min_{run.field}", 0.0), run.last, power)


def _flat_cosine(entry: Entry, run: Run, base: float) -> Schedule:
    floor = run.floor(entry, base)
    flat = round(run.last * entry.number("start_percent", 0.75, "a number from 0 to 1", lambda x: 0 <= x <= 1))
    return after(flat, base, waves([base], floor, [run.last - flat])) if flat < run.last else constant(base)


def _cooldown(entry: Entry, run: Run, base: float) -> Schedule:
    floor = run.floor(entry, base)
    rule = f"a whole number from 0 and below the {run.last} of the run"
    cool = int(entry.number("cool_down_time", 10, rule, lambda x: is_whole(x) and 0 <= x < run.last))
    low = floor * entry.number("cool_down_ratio", 0.1)
    return cosine_wave(base, floor, run.last - cool).take(run.last - cool + 1).then(constant(low))


def _restart(entry: Entry, run: Run, base: float) -> Schedule:
    floor = run.floor(entry, base)
    periods, weights = periods_and_weights(entry)
    if not all(p > 0 for p in periods) or sum(periods) < run.last:
        entry.refuse(f"periods must be positive and reach the end of the run at {run.last}, got {periods!r}.")
    return waves([floor + weight * (base - floor) for weight in weights], floor, periods)


def _cyclic(entry: Entry, run: Run, base: float) -> Schedule:
    given = entry.items.get("target_ratio", (10, 1e-4) if run.field == "lr" else (0.85 / 0.95, 1.0))
    ratios = [given] if is_number(given) else given
    if not (isinstance(ratios, (list, tuple)) and 1 <= len(ratios) <= 2 and all(map(is_number, ratios))):
        entry.refuse(f"target_ratio must be one number or two, got {given!r}.")
    top, foot = base * ratios[0], base * (ratios[1] if len(ratios) == 2 else ratios[0] / 1e5)
    rule = f"a whole number from 1 to the {run.last} iterations of the run"
    period = run.last // int(entry.number("cyclic_times", 1, rule, lambda x: is_whole(x) and 1 <= x <= run.last))
    up = int(period * entry.number("step_ratio_up", 0.4, "a number from 0 and below 1", lambda x: 0 <= x < 1))
    gamma = entry.number("gamma", 1, "a number above 0 and up to 1", lambda x: 0 < x <= 1)
    shape = anneal(entry)
    full = one_cycle(base, top, up, period, end=foot, shape=shape).repeat()
    if gamma == 1:
        return full
    # Each cycle's peak is that much nearer to the base; where there is no way up, its foot.
    flat = one_cycle(base, base if up else top, up, period, end=foot if up else base, shape=shape).repeat()
    return flat + step_decay(1.0, period, gamma) * (full - flat)


def _one_cycle(entry: Entry, run: Run, base: float) -> Schedule:
    if run.field == "momentum":
        end = entry.number("max_momentum", 0.95)
        return cycle(entry, entry.number("base_momentum", 0.85), run.last, end)
    rule = f"a whole number of at least the {run.last} iterations of the run"
    total = int(entry.number("total_steps", run.last, rule, lambda x: is_whole(x) and x >= run.last))
    return cycle(entry, entry.number("max_lr", None), total)


def _yolox(entry: Entry, run: Run, base: float) -> Schedule:
    """MMDetection 2.x's: after the warm-up a cosine that is a step ahead, and its floor for the last epochs."""
    if not run.warm:
        entry.refuse("warmup must be given: the cosine begins where it ends.")
    if not is_whole(run.warm):
        entry.refuse(f"warmup_iters must be whole in iterations, got {run.warm!r}.")
    falling = run.last - int(run.warm + entry.whole_from(0, "num_last_epochs", None) * run.epoch_length)
    if falling < 2:
        entry.refuse(f"the warm-up and the last epochs must leave two iterations of the {run.last} of the run.")
    return after(run.warm - 1, base, waves([base], run.floor(entry, base), [falling]))


FLOOR, PHASES = ("min_{}", "min_{}_ratio"), ("pct_start", "anneal_strategy", "three_phase")
LR: dict[str, tuple[Policy, tuple[str, ...]]] = {
    "Fixed": (lambda entry, run, base: constant(base), ()),
    "Step": (_step, ("step", "gamma", "min_{}")),
    "Exp": (lambda entry, run, base: exponential(base, entry.positive("gamma", None)), ("gamma",)),
    "Poly": (_poly, ("power", "min_{}")),
    "Inv": (
        lambda entry, run, base: inverse_time(base, entry.from_0("gamma", None), entry.positive("power", 1.0)),
        ("gamma", "power"),
    ),
    "CosineAnnealing": (lambda entry, run, base: waves([base], run.floor(entry, base), [run.last]), FLOOR),
    "FlatCosineAnnealing": (_flat_cosine, ("start_percent", *FLOOR)),
    "CosineAnnealingCooldown": (_cooldown, ("cool_down_ratio", "cool_down_time", *FLOOR)),
    "CosineRestart": (_restart, ("periods", "restart_weights", *FLOOR)),
    "Cyclic": (_cyclic, ("target_ratio", "cyclic_times", "step_ratio_up", "anneal_strategy", "gamma")),
    "OneCycle": (_one_cycle, ("max_lr", "total_steps", "div_factor", "final_div_factor", *PHASES)),
    "LinearAnnealing": (lambda entry, run, base: linear(base, run.floor(entry, base), run.last), FLOOR),
    "YOLOX": (_yolox, ("num_last_epochs", *FLOOR)),
}
POLICIES = {
    "lr": LR,
    "momentum": {
        **{name: LR[name] for name in ("Step", "CosineAnnealing", "LinearAnnealing", "Cyclic")},
        "OneCycle": (_one_cycle, ("base_momentum", "max_momentum", *PHASES)),
    },
}
COMMON = ("policy", "by_epoch", "warmup", "warmup_iters", "warmup_ratio")
# (the ratio that it begins at, its micro-batches) -> what the current value of a policy is multiplied by
WARM_UPS: dict[str, Callable[[float, float], Schedule]] = {
    "constant": lambda ratio, steps: after(steps, ratio, constant(1.0)),
    "linear": lambda ratio, steps: linear(ratio, 1.0, steps),
    "exp": lambda ratio, steps: exponential(ratio, 1.0 / ratio, steps, end=1.0),
    "YOLOX": lambda ratio, steps: squares(ratio, steps, steps).take(steps).then(constant(1.0)),
}


def read_legacy(
    lr_config: Mapping[str, Any] | None, momentum_config: Mapping[str, Any] | None, clock: Clock, strict: bool
) -> dict[str, Callable[[float], Schedule]]:
    """By field, a function of the base value."""
    given = {"lr": lr_config, "momentum": momentum_config}
    return {field: _field(field, config, clock, strict) for field, config in given.items() if config is not None}


def _field(field: str, config: object, clock: Clock, strict: bool) -> Callable[[float], Schedule]:
    name, policies = f"{field}_config", POLICIES[field]
    if not isinstance(config, Mapping):
        Entry(name, {}, strict).refuse(f"it must be a dict with a policy, got {config!r}.", TypeError)
    given = config.get("policy")
    # mmcv capitalises a policy that is written in lower case.
    policy = given.title() if isinstance(given, str) and given == given.lower() else str(given)
    if policy not in policies:
        Entry(name, config, strict).refuse(f"policy must be one of {listed(policies)}, got {given!r}.")
    entry = Entry(f"{name} ({policy})", config, strict)
    build, keys = policies[policy]
    entry.only((*COMMON, *(key.format(field) for key in keys), *(("warmup_by_epoch",) if field == "lr" else ())))
    # mmcv's loop of iterations says for the learning rate alone that it counts these.
    epochs = clock.epochs is not None or field == "momentum"
    by_epoch = entry.flag("by_epoch", epochs and policy not in ("Cyclic", "OneCycle"))
    if by_epoch and policy in ("Cyclic", "OneCycle", "YOLOX"):
        entry.refuse("by_epoch must be False for this policy, which counts iterations, got True.")
    if by_epoch and clock.epochs is None:
        entry.remark("a loop of iterations counts no epochs: it never acts; did you mean by_epoch=False?")
        return constant
    last, every = (clock.epochs, clock.epoch_length) if by_epoch and clock.epochs else (clock.iters, 1)
    steps = config.get("step")
    if late := [s for s in (steps if isinstance(steps, (list, tuple)) else ()) if is_number(s) and s >= last]:
        entry.remark(f"steps {late!r} are never reached: the run has {last} {'epochs' if by_epoch else 'iterations'}.")
    kinds = (None, "constant", "linear", "exp")
    kind = entry.get("warmup", None, "'constant', 'linear' or 'exp'", lambda x: x in kinds)
    ratio, warm = (1.0, 0) if kind is None else _warm_up(entry, clock, 0.1 if field == "lr" else 0.9)
    run = Run(field, last, clock.epoch_length, warm)

    def of_base(base: float) -> Schedule:
        main: Schedule = in_clock(build(entry, run, base), every)
        if kind is None:
            return main
        # YOLOX has its own, whatever the config names.
        factor = WARM_UPS[policy if policy in WARM_UPS else kind](ratio, warm)
        # A momentum is warmed from above.
        return main * factor if field == "lr" else main / factor

    of_base(1.0)  # what is wrong is said now
    return of_base


def _warm_up(entry: Entry, clock: Clock, default: float) -> tuple[float, float]:
    """The ratio that a warm-up begins at, and its micro-batches."""
    steps = entry.positive("warmup_iters", 0)
    ratio = entry.number("warmup_ratio", default, "a number above 0 and up to 1", lambda x: 0 < x <= 1)
    if entry.flag("warmup_by_epoch", False):
        if clock.epochs is None:
            entry.refuse("warmup_by_epoch must be False in a loop of iterations, got True.")
        steps *= clock.epoch_length
    if steps > clock.iters:
        entry.remark(f"the warm-up of {steps!r} iterations is longer than the run, which has {clock.iters}.")
    return ratio, steps
