"""The one table of schedules: each with its peer, and with what the generic laws need to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from later import later
from peers import in_float64
from torch.optim import lr_scheduler

from gradchain import schedules as gs

optax, hf = later("optax"), later("transformers.optimization")


@dataclass(frozen=True)
class Case:
    """A schedule, the values its peer gives at steps 0, 1, ..., and whether it is continuous in time."""

    name: str
    schedule: gs.Schedule
    peer: Callable[[], Sequence[float]]
    continuous: bool = True
    rtol: float = 1e-12


def torch_values(make: Callable[[torch.optim.Optimizer], Any], lr: float, count: int, key: str = "lr") -> list[float]:
    """The learning rate (or momentum) that each of `count` updates uses under a torch scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    values = []
    for _ in range(count):
        values.append(float(optimizer.param_groups[0][key]))
        optimizer.step()
        scheduler.step()
    return values


def optax_values(make: Callable[[], Callable[[Any], Any]], count: int) -> list[float]:
    """Optax's values in float64."""
    with in_float64():
        schedule = make()
        return [float(schedule(np.int64(step))) for step in range(count)]


def of_torch(
    name: str, schedule: gs.Schedule, make: Callable[[Any], Any], lr: float, count: int, key: str = "lr", **kw: Any
) -> Case:
    return Case(f"torch-{name}", schedule, lambda: torch_values(make, lr, count, key), **kw)


def of_optax(name: str, schedule: gs.Schedule, make: Callable[[], Any], count: int, **kw: Any) -> Case:
    return Case(f"optax-{name}", schedule, lambda: optax_values(make, count), **kw)


def of_formula(name: str, schedule: gs.Schedule, formula: Callable[[int], float], count: int, **kw: Any) -> Case:
    return Case(name, schedule, lambda: [formula(step) for step in range(count)], **kw)


def torch_one_cycle(max_lr: float, total: int, pct: float, anneal: str, three: bool) -> Callable[[Any], Any]:
    return lambda opt: lr_scheduler.OneCycleLR(
        opt, max_lr, total_steps=total, pct_start=pct, anneal_strategy=anneal, three_phase=three,
        base_momentum=0.85, max_momentum=0.95,
    )  # fmt: skip


def one_cycle_like_torch(max_lr: float, total: int, pct: float, shape: str, three: bool) -> gs.one_cycle:
    """The recipe of one_cycle's docstring."""
    back = 2 * pct * total - 2 if three else None
    return gs.one_cycle(
        max_lr / 25, max_lr, pct * total - 1, total - 1, end=max_lr / 25 / 1e4, shape=shape, return_steps=back
    )


def hf_values(make: Callable[[Any], Any], count: int) -> list[float]:
    return torch_values(make, 0.4, count)


def interpolated(step: int) -> float:
    return float(np.interp(step, [0, 7, 20], [0.3, 0.9, 0.2]))


def sequential(opt: torch.optim.Optimizer) -> Any:
    parts = [
        lr_scheduler.LinearLR(opt, 0.1, 1.0, total_iters=7),
        lr_scheduler.CosineAnnealingLR(opt, T_max=20, eta_min=0.01),
    ]
    return lr_scheduler.SequentialLR(opt, parts, milestones=[7])


TORCH = [
    of_torch("constant", gs.constant(0.1).take(4).then(gs.constant(0.4)),
             lambda o: lr_scheduler.ConstantLR(o, factor=0.25, total_iters=4), 0.4, 10, continuous=False),
    of_torch("linear", gs.linear(0.4 / 3, 0.4, 11),
             lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 3, total_iters=11), 0.4, 20),
    of_torch("linear-down", gs.linear(0.4, 0.4 * 0.05, 13),
             lambda o: lr_scheduler.LinearLR(o, 1.0, 0.05, total_iters=13), 0.4, 20),
    # Up to T_max: torch then climbs back.
    of_torch("cosine", gs.cosine(0.4, 0.03, 37), lambda o: lr_scheduler.CosineAnnealingLR(o, 37, 0.03), 0.4, 38),
    of_torch("cosine-wave", gs.cosine_wave(0.4, 0.03, 7),
             lambda o: lr_scheduler.CosineAnnealingLR(o, 7, 0.03), 0.4, 60, rtol=1e-11),
    of_torch("repeat", gs.linear(0.1, 0.4, 5).then(gs.linear(0.4, 0.1, 3)).repeat(),
             lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.4, step_size_up=5, step_size_down=3, cycle_momentum=False),
             0.4, 60),
    of_torch("overlay", gs.overlay(0.4, (0, None, gs.linear(0.25, 1.0, 9)),
                                   (0, None, gs.cosine(1.0, 0.0, 40), gs.cosine(0.0, 0.03, 40))),
             lambda o: lr_scheduler.ChainedScheduler(
                 [lr_scheduler.LinearLR(o, 0.25, total_iters=9), lr_scheduler.CosineAnnealingLR(o, 40, 0.03)]),
             0.4, 40, continuous=False),
    of_torch("cosine-restarts", gs.cosine_restarts(0.4, 0.03, 7),
             lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, eta_min=0.03), 0.4, 60, continuous=False),
    of_torch("cosine-restarts-doubling", gs.cosine_restarts(0.4, 0.03, 5, 2),
             lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, T_mult=2, eta_min=0.03), 0.4, 200,
             continuous=False),
    of_torch("exponential", gs.exponential(0.4, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9), 0.4, 60),
    of_torch("polynomial", gs.polynomial(0.4, 0.0, 23, 1.7),
             lambda o: lr_scheduler.PolynomialLR(o, total_iters=23, power=1.7), 0.4, 30),
    of_torch("step", gs.step_decay(0.4, 6, 0.3), lambda o: lr_scheduler.StepLR(o, 6, 0.3), 0.4, 40, continuous=False),
    of_torch("multi-step", gs.multi_step(0.4, (3, 9, 9, 20), 0.3),
             lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 9, 20], 0.3), 0.4, 30, continuous=False),
    of_torch("sequential", gs.linear(0.04, 0.4, 7).then(gs.cosine(0.4, 0.01, 20)), sequential, 0.4, 28),
    of_torch("sequential-join", gs.join((0, 7, gs.linear(0.04, 0.4, 7)), (7, None, gs.cosine(0.4, 0.01, 20))),
             sequential, 0.4, 28),
    *(of_torch(f"one-cycle-{shape}-{'three' if three else 'two'}-{pct}-{total}",
               one_cycle_like_torch(0.4, total, pct, shape, three),
               torch_one_cycle(0.4, total, pct, "cos" if shape == "cosine" else "linear", three), 0.4, total)
      for shape in ("cosine", "linear") for three in (False, True) for pct, total in ((0.3, 100), (0.23, 57))),
    of_torch("one-cycle-momentum", gs.one_cycle(0.95, 0.85, 0.3 * 100 - 1, 99, end=0.95),
             torch_one_cycle(0.4, 100, 0.3, "cos", False), 0.4, 100, key="momentum"),
    of_torch("one-cycle-momentum-three", gs.one_cycle(0.95, 0.85, 29.0, 99, end=0.95, return_steps=58.0),
             torch_one_cycle(0.4, 100, 0.3, "cos", True), 0.4, 100, key="momentum"),
]  # fmt: skip

OPTAX = [
    of_optax("constant", gs.constant(0.4), lambda: optax.constant_schedule(0.4), 3),
    of_optax("linear", gs.linear(0.1, 0.7, 13), lambda: optax.linear_schedule(0.1, 0.7, 13), 20),
    of_optax("polynomial", gs.polynomial(0.7, 0.1, 13, 2.5),
             lambda: optax.polynomial_schedule(0.7, 0.1, 2.5, 13), 20),
    of_optax("cosine", gs.cosine(0.7, 0.2 * 0.7, 13, exponent=1.7),
             lambda: optax.cosine_decay_schedule(0.7, 13, alpha=0.2, exponent=1.7), 20),
    of_optax("warmup-cosine", gs.warmup_cosine(0.1, 0.7, 5, 31, 0.05, exponent=0.8),
             lambda: optax.warmup_cosine_decay_schedule(0.1, 0.7, 5, 31, 0.05, exponent=0.8), 40),
    of_optax("exponential", gs.exponential(0.7, 0.3, 9), lambda: optax.exponential_decay(0.7, 9, 0.3), 40),
    of_optax("exponential-end", gs.exponential(0.7, 0.3, 9, end=0.05),
             lambda: optax.exponential_decay(0.7, 9, 0.3, end_value=0.05), 40),
    of_optax("exponential-growing", gs.exponential(0.01, 1.5, 4, end=0.2),
             lambda: optax.exponential_decay(0.01, 4, 1.5, end_value=0.2), 60),
    of_optax("exponential-staircase", gs.step_decay(0.7, 9, 0.3),
             lambda: optax.exponential_decay(0.7, 9, 0.3, staircase=True), 40, continuous=False),
    of_optax("exponential-staircase-end", gs.step_decay(0.7, 9, 0.3).clip(low=0.1),
             lambda: optax.exponential_decay(0.7, 9, 0.3, staircase=True, end_value=0.1), 40, continuous=False),
    of_optax("warmup-exponential", gs.linear(0.0, 0.7, 5).then(gs.exponential(0.7, 0.3, 9)),
             lambda: optax.warmup_exponential_decay_schedule(0.0, 0.7, 5, 9, 0.3), 40),
    of_optax("piecewise", gs.piecewise((0, 0.8), (10, 0.4), (20, 0.04)),
             lambda: optax.piecewise_constant_schedule(0.8, {10: 0.5, 20: 0.1}), 30, continuous=False),
    *(of_optax(f"piecewise-{shape}", gs.piecewise((0, 0.8), (10, 0.4), (20, 0.04), shape=shape),
               lambda shape=shape: optax.piecewise_interpolate_schedule(shape, 0.8, {10: 0.5, 20: 0.1}), 30)
      for shape in ("linear", "cosine")),
    of_optax("multi-step", gs.multi_step(0.8, (10, 20), 0.3),
             lambda: optax.piecewise_constant_schedule(0.8, {10: 0.3, 20: 0.3}), 30, continuous=False),
    of_optax("sgdr", gs.cosine_restarts(0.8, 0.1, 10, 2, height_decay=0.5, cycles=3),
             lambda: optax.sgdr_schedule([
                 {"init_value": 0.0, "peak_value": 0.1 + 0.7 * 0.5**k, "warmup_steps": 0, "decay_steps": 10 * 2**k,
                  "end_value": 0.1} for k in range(3)]), 90, continuous=False),
    of_optax("one-cycle", gs.one_cycle(0.8 / 25, 0.8, int(0.3 * 57), 57, end=0.8 / (25 * 1e4)),
             lambda: optax.cosine_onecycle_schedule(57, 0.8, 0.3), 70),
    of_optax("one-cycle-linear",
             gs.one_cycle(0.8 / 25, 0.8, int(0.3 * 57), 57, end=0.8 / 25 / 1e4, shape="linear",
                          return_steps=int(0.85 * 57)),
             lambda: optax.linear_onecycle_schedule(57, 0.8), 70),
    of_optax("join", gs.join((0, 5, gs.linear(0.0, 0.7, 5)), (5, 20, gs.constant(0.7)),
                             (20, None, gs.cosine(0.7, 0.0, 30))),
             lambda: optax.join_schedules(
                 [optax.linear_schedule(0.0, 0.7, 5), optax.constant_schedule(0.7),
                  optax.cosine_decay_schedule(0.7, 30)], [5, 20]), 60),
]  # fmt: skip


def wsd(kind: str) -> Callable[[], list[float]]:
    def make(opt: torch.optim.Optimizer) -> Any:
        return hf.get_wsd_schedule(opt, 7, 13, num_training_steps=50, min_lr_ratio=0.1, decay_type=kind)

    return lambda: hf_values(make, 60)


OTHERS = [
    Case("hf-inverse-sqrt", gs.inverse_sqrt(0.0, 0.4, 9),
         lambda: hf_values(lambda o: hf.get_inverse_sqrt_schedule(o, 9), 80)),
    Case("hf-inverse-sqrt-timescale", gs.inverse_sqrt(0.0, 0.4, 9, timescale=30),
         lambda: hf_values(lambda o: hf.get_inverse_sqrt_schedule(o, 9, timescale=30), 80)),
    Case("hf-warmup-cosine", gs.warmup_cosine(0.0, 0.4, 9, 60),
         lambda: hf_values(lambda o: hf.get_cosine_schedule_with_warmup(o, 9, 60), 60), rtol=1e-11),
    Case("hf-wsd-linear", gs.warmup_stable_decay(0.04, 0.4, 7, 50, 13, end=0.04), wsd("linear")),
    Case("hf-wsd-cosine", gs.warmup_stable_decay(0.04, 0.4, 7, 50, 13, end=0.04, shape="cosine"), wsd("cosine")),
    Case("hf-wsd-sqrt", gs.warmup_stable_decay(0.04, 0.4, 7, 50, 13, end=0.04, shape="sqrt"), wsd("1-sqrt")),
    of_formula("interp", gs.piecewise((0, 0.3), (7, 0.9), (20, 0.2), shape="linear"), interpolated, 30),
    of_formula("inverse-time", gs.inverse_time(0.4, 0.1, 0.75), lambda t: 0.4 / (1 + 0.1 * t) ** 0.75, 60),
    of_formula("inverse-time-sqrt", gs.inverse_time(0.4, 1 / 30, 0.5), gs.inverse_sqrt(0.4, 0.4, 0, 30), 60),
    of_formula("quotient", gs.linear(0.1, 1.0, 7) / gs.linear(0.5, 2.0, 9),
               lambda t: gs.linear(0.1, 1.0, 7)(t) / gs.linear(0.5, 2.0, 9)(t), 30),
    of_formula("repeat-twice", gs.linear(0.1, 0.4, 5).repeat(2),
               lambda t: 0.4 if t >= 10 else 0.1 + 0.3 * (t % 5) / 5, 30, continuous=False),
    of_formula("product", gs.linear(0.1, 1.0, 7) * gs.cosine(0.4, 0.1, 20),
               lambda t: gs.linear(0.1, 1.0, 7)(t) * gs.cosine(0.4, 0.1, 20)(t), 30),
    of_formula("difference", 1.0 - gs.linear(0.1, 0.7, 7) / 2.0,
               lambda t: 1.0 - gs.linear(0.1, 0.7, 7)(t) / 2.0, 30),
    of_formula("clip", gs.linear(0.1, 1.0, 9).clip(low=0.2, high=0.8),
               lambda t: min(max(0.1 + 0.9 * min(t, 9) / 9, 0.2), 0.8), 20),
    of_formula("per-epoch", gs.per_epoch(gs.linear(0.1, 1.0, 5), 4),
               lambda t: 0.1 + 0.9 * min(t // 4, 5) / 5, 40, continuous=False),
    of_formula("per-epoch-fractional", gs.per_epoch(gs.linear(0.1, 1.0, 5), 4, fractional=True),
               lambda t: 0.1 + 0.9 * min(t / 4, 5) / 5, 40),
    of_formula("gap", gs.join((2, 6, gs.linear(0.1, 0.9, 4)), (10, 15, gs.linear(0.9, 0.5, 5))),
               lambda t: float(np.interp(t, [2, 6, 10, 15], [0.1, 0.9, 0.9, 0.5])), 30),
    of_formula("absolute", gs.join((3, 6, gs.linear(1.0, 0.0, 20)), (8, 12, gs.linear(1.0, 0.0, 20)), absolute=True),
               lambda t: 1.0 - (3 if t < 3 else t if t < 6 else 6 if t < 8 else min(t, 12)) / 20, 30,
               continuous=False),
    of_formula("ema-warmup", gs.ema_warmup(0.9, 7), lambda t: 1 - max(0.1, 7 / (7 + t)), 90),
    of_formula("ema-exponential", gs.ema_exponential(0.9, 7), lambda t: 1 - (0.9 * math.exp(-(1 + t) / 7) + 0.1), 90),
    of_formula("by-step", gs.by("step", gs.linear(0.1, 1.0, 5)), lambda t: 0.1 + 0.9 * min(t, 5) / 5, 20),
    of_formula("take", gs.exponential(0.4, 0.9).take(6), lambda t: 0.4 * 0.9 ** min(t, 6), 20),
]  # fmt: skip

CASES = TORCH + OPTAX + OTHERS
