"""What a step costs more through `as_optimizer()` than the Updater's own: `python -m benchmarks.facade`.

AdamW on (d), 20 tensors of 64, with gradients that lie in `.grad`. Every candidate has a model of its own; in each
round each has a turn of some steps, and who begins moves on. Told are the quartiles of the turns' means, and of what
each took more than the first in the same round. It is the time of the thread, which counts nothing while another
process has the core. The gradients are set between the steps, untimed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import report
from benchmarks.pinning import pin
from benchmarks.quarters import quarters
from benchmarks.workloads import WORKLOADS

STEPS, WARM = 40, 40
BOUND = 20.0
"""Microseconds that the facade may cost more, where the rate is constant."""


class Stepping(NamedTuple):
    """A model, what puts gradients there, and a step."""

    model: nn.Module
    ready: Callable[[], None]
    step: Callable[[], Any]


def candidates() -> dict[str, Stepping]:
    """By name; the weights and the gradients of all are the same."""
    import gradchain as gch

    def ours(step_of: Callable[[gch.Updater], Callable[[], Any]]) -> Stepping:
        model, ready = _model()
        return Stepping(model, ready, step_of(gch.chain(gch.adamw(1e-3)).bind(model)))

    def turning(updater: gch.Updater) -> Callable[[], Any]:
        optimizer = updater.as_optimizer()
        group = optimizer.param_groups[0]

        def step() -> None:
            group["lr"] *= 0.99999
            optimizer.step()

        return step

    model, ready = _model()
    return {
        "updater.step()": ours(lambda updater: updater.step),
        "updater.step(keep_grads=True)": ours(lambda updater: partial(updater.step, keep_grads=True)),
        "as_optimizer().step()": ours(lambda updater: updater.as_optimizer().step),
        "as_optimizer().step(), another lr each step": ours(turning),
        "torch.optim.AdamW.step()": Stepping(model, ready, torch.optim.AdamW(model.parameters(), 1e-3).step),
    }


def _model() -> tuple[nn.Module, Callable[[], None]]:
    torch.manual_seed(0)
    model = WORKLOADS["d"].build()
    params = list(model.parameters())
    grads = [torch.randn_like(p) for p in params]

    def ready() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()

    return model, ready


def turn(candidate: Stepping, steps: int) -> float:
    """The mean of some steps, in microseconds."""
    spent = 0.0
    for _ in range(steps):
        candidate.ready()
        start = thread_time()
        candidate.step()
        spent += thread_time() - start
    return spent / steps * 1e6


def measure(rounds: int) -> dict[str, Any]:
    """Quartiles of each candidate, and of what it takes more than the first in the same round."""
    made = candidates()
    for candidate in made.values():
        turn(candidate, WARM)
    took: dict[str, list[float]] = {name: [] for name in made}
    order = list(made)
    for number in range(rounds):
        begin = number % len(order)
        for name in order[begin:] + order[:begin]:
            took[name].append(turn(made[name], STEPS))
    first = took[order[0]]
    over = {name: [t - f for t, f in zip(ts, first, strict=True)] for name, ts in took.items()}
    return {name: {"us": quarters(took[name]), "over_us": quarters(over[name])} for name in order}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.facade", description="A step through as_optimizer().")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--core", type=int, help="the core to stay on; default: the first allowed")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, given.core)
    torch.set_num_threads(1)
    result = {**report.circumstances(given.rounds), "cells": [], "facade": measure(given.rounds)}
    for name, figures in result["facade"].items():
        print(f"{name:45} {figures['us'][1]:7.1f} µs  {figures['over_us'][1]:+6.1f}")
    more = result["facade"]["as_optimizer().step()"]["over_us"][1]
    print(f"the facade takes {more:.1f} µs more; the bound is {BOUND:.0f}: {'met' if more <= BOUND else 'NOT met'}")
    print(report.write(result, given.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
