"""from_torch over the class itself: `python -m benchmarks.in_place`.

A class of torch.optim by itself, as the rule of a chain over copies, and so with in_place=True. Each has a model of its
own and is given the same gradients, which are dropped after the step; they have turns in one process, on one thread and
one core, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pinning import pin
from benchmarks.quarters import quarters

CLASSES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-4},
    "SGD momentum": {"lr": 1e-4, "momentum": 0.9},
    "AdamW foreach": {"lr": 1e-4, "foreach": True},
}
FORMS = ("copies", "in_place")
SMALL = "20 x 64"
TURNS = {SMALL: (20, 100), "a": (1, 3)}  # steps of a turn that are not timed, and those that are


def steps(workload: str, name: str) -> dict[str, tuple[Any, Callable[[], None]]]:
    """In each of the forms a model, all of which begin alike, and what takes one step of it."""
    import torch

    import gradchain as gch

    word, given = name.partition(" ")[0], CLASSES[name]
    models = {form: _model(workload) for form in ("bare", *FORMS)}
    optimizer = getattr(torch.optim, word)(models["bare"].parameters(), **given)
    made = {"bare": (models["bare"], _step(models["bare"], _bare(optimizer)))}
    for form in FORMS:
        updater = gch.from_torch(word, in_place=form == "in_place", **given).bind(models[form])
        made[form] = models[form], _step(models[form], updater.step)
    return made


def _model(workload: str) -> Any:
    import torch
    from torch import nn

    from benchmarks.workloads import WORKLOADS

    if workload != SMALL:
        return WORKLOADS[workload].build()
    torch.manual_seed(0)
    return nn.ParameterList([nn.Parameter(torch.randn(64)) for _ in range(20)])


def _bare(optimizer: Any) -> Callable[[], object]:
    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def _step(model: Any, step: Callable[[], object]) -> Callable[[], None]:
    import torch

    parameters = list(model.parameters())
    torch.manual_seed(1)
    grads = [torch.randn_like(p) for p in parameters]

    def whole() -> None:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        step()

    return whole


def measured(workload: str, name: str, rounds: int) -> dict[str, Any]:
    """Microseconds of a step in each form, and over those of the class itself: quartiles."""
    forms = {form: step for form, (_, step) in steps(workload, name).items()}
    warm, timed = TURNS[workload]
    took: dict[str, list[float]] = {form: [] for form in forms}
    gc.collect()
    gc.freeze()
    for number in range(-2, rounds):  # two rounds make what is made at first
        order = list(forms)[:: -1 if number % 2 else 1]
        for form in order:
            for _ in range(warm):
                forms[form]()
            began = time.perf_counter()
            for _ in range(timed):
                forms[form]()
            if number >= 0:
                took[form].append((time.perf_counter() - began) / timed * 1e6)
    gc.unfreeze()
    over = {form: [a / b for a, b in zip(took[form], took["bare"], strict=True)] for form in FORMS}
    return {
        "workload": workload,
        "class": name,
        "us": {form: _quartiles(values) for form, values in took.items()},
        "over_bare": {form: _quartiles(values) for form, values in over.items()},
    }


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [median(values)] * 3
    return [round(value, 3) for value in quarters(values)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_place", description=__doc__)
    parser.add_argument("--workload", action="append", choices=TURNS, help=f"{SMALL!r} or 'a'; may be given often")
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds of every form")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, None)
    import torch

    torch.set_num_threads(1)
    from benchmarks import report

    result: dict[str, Any] = {**report.circumstances(given.rounds), "cells": [], "failed": [], "in_place": []}
    print(f"{'workload':10}{'class':16}{'bare':>12}{'copies':>12}{'in place':>12}   over bare: copies, in place")
    for workload in given.workload or TURNS:
        for name in CLASSES:
            found = measured(workload, name, given.rounds)
            result["in_place"].append(found)
            times = "".join(f"{found['us'][form][1]:>9.0f} us" for form in ("bare", *FORMS))
            ratios = ", ".join(f"{found['over_bare'][form][1]:.2f}" for form in FORMS)
            print(f"{workload:10}{name:16}{times}   {ratios}", flush=True)
    print(f"\nwritten to {report.write(result, given.output)}")


if __name__ == "__main__":
    main()
