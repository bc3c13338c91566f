"""torch's schedulers as schedules: what each makes of the value that a group began with."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch.optim import lr_scheduler

from gradchain import schedules
from gradchain.schedules import Schedule

RATE = "lr"
OWNER = "adopt"


class Curves(NamedTuple):
    """What moves, and where it stands.

    Attributes:
        fields: by field of a group, "lr" or "momentum", one schedule for each group.
        position: how often the scheduler was stepped.
        plateau: the scheduler that looks at what is observed, or None.
    """

    fields: dict[str, list[Schedule]]
    position: int | None
    plateau: Any


def curves(scheduler: Any, optimizer: Any) -> Curves:
    """The schedules of a scheduler, checked against the live groups."""
    if scheduler is None:
        return Curves({}, None, None)
    if isinstance(scheduler, (list, tuple)):
        kinds = [type(one).__name__ for one in scheduler]
        raise refused(f"scheduler must be one, or a ChainedScheduler of several, got {kinds}.")
    if isinstance(scheduler, Mapping):
        raise refused(
            f"scheduler must be a scheduler, got a {type(scheduler).__name__}, as its state_dict() gives. Make "
            "optimizer and scheduler as you did, load_state_dict into each, and adopt those."
        )
    kind = type(scheduler)
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise refused(f"scheduler must be of the optimizer that is adopted, got a {kind.__name__} of another one.")
    if kind is lr_scheduler.ReduceLROnPlateau:
        if scheduler.default_min_lr is None:
            _check_groups(scheduler, scheduler.min_lrs)
        return Curves({}, None, scheduler)
    fields = {RATE: [_read(scheduler, i, _began(group)) for i, group in enumerate(optimizer.param_groups)]}
    position = _position(scheduler)
    _check_live(scheduler, fields[RATE], position, optimizer)
    if getattr(scheduler, "cycle_momentum", False):
        momenta = _MOMENTA[kind]
        fields["momentum"] = [momenta(scheduler, i, group) for i, group in enumerate(optimizer.param_groups)]
    return Curves(fields, position, None)


def refused(problem: str) -> ValueError:
    """What cannot be said as a chain, as an error to raise."""
    return ValueError(f"{OWNER}: {problem}")


def _position(scheduler: Any) -> int:
    """How often a scheduler was stepped."""
    chained = type(scheduler) is lr_scheduler.ChainedScheduler
    return int(scheduler._schedulers[0].last_epoch if chained else scheduler.last_epoch)


def _check_groups(scheduler: Any, known: Sequence[Any]) -> None:
    """ValueError where groups were added since: torch leaves such ones out, or fails at its next step."""
    groups = len(scheduler.optimizer.param_groups)
    if len(known) != groups:
        raise refused(
            f"scheduler must know all {groups} groups of the optimizer, got a {type(scheduler).__name__} of "
            f"{len(known)}. Make it after the last group was added."
        )


def _began(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _check_live(scheduler: Any, rates: Sequence[Schedule], position: int, optimizer: Any) -> None:
    """ValueError where a group's rate is not what its scheduler makes: somebody else has set it."""
    for i, (rate, group) in enumerate(zip(rates, optimizer.param_groups, strict=True)):
        live, made = float(group["lr"]), rate(position)
        if not math.isclose(live, made, rel_tol=1e-6, abs_tol=1e-12):
            raise refused(
                f"scheduler must be what sets the learning rate, got {live!r} in group {i} where "
                f"{type(scheduler).__name__} has {made!r} after {position} steps. Set the rate by the scheduler alone, "
                "or adopt without it and give the chain a schedule of your own."
            )


def _read(scheduler: Any, i: int, base: float) -> Schedule:
    """What a scheduler makes of the rate of group i, as a function of how often it was stepped."""
    reader = _READERS.get(type(scheduler))
    if reader is None:
        raise refused(
            f"scheduler must be one of {', '.join(kind.__name__ for kind in _READERS)} or ReduceLROnPlateau, got a "
            f"{type(scheduler).__name__}. Write its curve as a function of the step, and adopt without it."
        )
    if type(scheduler) in _BY_GROUP:
        _check_groups(scheduler, scheduler.base_lrs)
    try:
        return reader(scheduler, i, base)
    except ValueError as error:
        if str(error).startswith(f"{OWNER}: "):
            raise
        raise refused(
            f"scheduler must have a curve that a schedule can have, got a {type(scheduler).__name__} that has none: "
            f"{error} Write its curve as a function of the step, and adopt without it."
        ) from error


def _constant(s: Any, i: int, base: float) -> Schedule:
    return schedules.constant(base * s.factor).take(s.total_iters).then(schedules.constant(base))


def _linear(s: Any, i: int, base: float) -> Schedule:
    return schedules.linear(base * s.start_factor, base * s.end_factor, s.total_iters)


def _lambda(s: Any, i: int, base: float) -> Schedule:
    function: Callable[[float], float] = s.lr_lambdas[i]
    return schedules.constant(base) * function


def _cyclic(s: Any, i: int, base: float) -> Schedule:
    if s.mode != "triangular" or s._scale_fn_custom is not None:
        given = repr(s.mode) if s._scale_fn_custom is None else "a scale_fn of its own"
        raise refused(f"CyclicLR must be of mode 'triangular', got {given}. Write its curve as a function of the step.")
    return _there_and_back(s, float(s.base_lrs[i]), float(s.max_lrs[i]))


def _there_and_back(s: Any, low: float, high: float) -> Schedule:
    up = s.total_size * s.step_ratio
    return schedules.linear(low, high, up).then(schedules.linear(high, low, s.total_size - up)).repeat()


def _one_cycle(s: Any, i: int, base: float) -> Schedule:
    group = s.optimizer.param_groups[i]
    return _phases(s, group["initial_lr"], group["max_lr"], group["min_lr"])


def _phases(s: Any, start: float, peak: float, end: float) -> Schedule:
    steps = [phase["end_step"] for phase in s._schedule_phases]
    shape: Literal["cosine", "linear"] = "cosine" if s._anneal_func_type == "cos" else "linear"
    back = steps[1] if len(steps) == 3 else None
    return schedules.one_cycle(start, peak, steps[0], steps[-1], end=end, shape=shape, return_steps=back)


def _cyclic_momentum(s: Any, i: int, group: dict[str, Any]) -> Schedule:
    return _there_and_back(s, float(s.max_momentums[i]), float(s.base_momentums[i]))


def _one_cycle_momentum(s: Any, i: int, group: dict[str, Any]) -> Schedule:
    return _phases(s, group["max_momentum"], group["base_momentum"], group["max_momentum"])


def _sequential(s: Any, i: int, base: float) -> Schedule:
    return _in_turn(s, i, base, s.last_epoch)


def _in_turn(s: Any, i: int, base: float, now: int) -> Schedule:
    """Each part begins at its milestone, where torch sets it to its own first step.

    Torch makes the first step of a SequentialLR twice where it is the first part of another one, which has been
    stepped `now` times. So it is ahead of the part that it begins with, and its others begin as much earlier.
    """
    for part in s._schedulers:
        if getattr(part, "cycle_momentum", False):
            raise refused(
                f"SequentialLR must move the learning rate alone, got a {type(part).__name__} that moves the momentum "
                "too. Make it with cycle_momentum=False, or give the momentum a schedule in a chain of your own."
            )
    begins = [0, *(milestone - (s.last_epoch - now) for milestone in s._milestones)]
    at = bisect.bisect_right(begins, now) - 1
    first, *others = s._schedulers
    nested = type(first) is lr_scheduler.SequentialLR
    began = _in_turn(first, i, base, now if at == 0 else first.last_epoch) if nested else _read(first, i, base)
    pieces = [began, *(_read(part, i, base) for part in others)]
    _check_part(s._schedulers[at], now - begins[at])
    parts = zip(begins, begins[1:], pieces, strict=False)
    held = [(b, e, piece.take(e - b)) for b, e, piece in parts if e > b]  # torch passes over what has no step
    return schedules.join(*held, (begins[-1], None, pieces[-1]))


def _check_part(part: Any, done: int) -> None:
    """ValueError where the part at work was not stepped as often as it should have been since it began."""
    if type(part) is not lr_scheduler.SequentialLR and _position(part) != done:
        raise refused(
            f"SequentialLR must have stepped the part at work {done} times since it began, got a {type(part).__name__} "
            f"after {_position(part)}. Write its curve as a function of the step, and adopt without it."
        )


def _chained(s: Any, i: int, base: float) -> Schedule:
    """All at once: factors, and cosines, which go to their floor."""
    windows: list[Any] = []
    product: Schedule | None = None
    for part in s._schedulers:
        if type(part) is lr_scheduler.CosineAnnealingLR:
            down, floor = schedules.cosine(1.0, 0.0, part.T_max), schedules.cosine(0.0, part.eta_min, part.T_max)
            windows.append((0, None, down, floor))
        elif type(part) in _FACTORS:
            factor = _read(part, i, 1.0)
            product = factor if product is None else product * factor
            windows.append((0, None, factor))
        else:
            names = ", ".join(kind.__name__ for kind in (*_FACTORS, lr_scheduler.CosineAnnealingLR))
            raise refused(f"ChainedScheduler must be of {names}, got a {type(part).__name__} in it.")
    if len(windows) == sum(len(w) == 3 for w in windows) and product is not None:
        return base * product
    return schedules.overlay(base, *windows)


_FACTORS: dict[type, Callable[[Any, int, float], Schedule]] = {
    lr_scheduler.StepLR: lambda s, i, base: schedules.step_decay(base, s.step_size, s.gamma),
    lr_scheduler.MultiStepLR: lambda s, i, base: schedules.multi_step(
        base, tuple(sorted(s.milestones.elements())), s.gamma
    ),
    lr_scheduler.ConstantLR: _constant,
    lr_scheduler.LinearLR: _linear,
    lr_scheduler.ExponentialLR: lambda s, i, base: schedules.exponential(base, s.gamma),
    lr_scheduler.PolynomialLR: lambda s, i, base: schedules.polynomial(base, 0.0, s.total_iters, s.power),
}
_READERS: dict[type, Callable[[Any, int, float], Schedule]] = {
    **_FACTORS,
    lr_scheduler.LambdaLR: _lambda,
    lr_scheduler.CosineAnnealingLR: lambda s, i, base: schedules.cosine_wave(base, s.eta_min, s.T_max),
    lr_scheduler.CosineAnnealingWarmRestarts: lambda s, i, base: schedules.cosine_restarts(
        base, s.eta_min, s.T_0, s.T_mult
    ),
    lr_scheduler.CyclicLR: _cyclic,
    lr_scheduler.OneCycleLR: _one_cycle,
    lr_scheduler.SequentialLR: _sequential,
    lr_scheduler.ChainedScheduler: _chained,
}
_BY_GROUP = (
    lr_scheduler.LambdaLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.OneCycleLR,
)  # have a list of what each began with
_MOMENTA: dict[type, Callable[[Any, int, dict[str, Any]], Schedule]] = {
    lr_scheduler.CyclicLR: _cyclic_momentum,
    lr_scheduler.OneCycleLR: _one_cycle_momentum,
}
