"""Adam over rows beside torch.optim.SparseAdam: `python -m benchmarks.sparse`.

An embedding of 1,000,000 rows of 64 whose gradient names 4,096 rows, drawn anew for each step. Both have a model of
their own and are given the same gradients, coalesced as a backward's first use makes them; they have turns in one
process, on one thread and one core, and the ratio is taken within a round. Gradients are made and dropped untimed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pinning import pin
from benchmarks.quarters import quarters

ROWS, WIDTH, NAMED = 1_000_000, 64, 4_096
WARM, STEPS = 4, 8
BOUND = 0.15
"""Of SparseAdam's time, the most that ours may take."""


def sides(rows: int, width: int) -> dict[str, tuple[Any, Callable[[], object]]]:
    """By name: an embedding, and what takes one step of it."""
    import torch
    from torch import nn

    import gradchain as gch

    models = {}
    for name in ("SparseAdam", "gradchain"):
        torch.manual_seed(0)
        models[name] = nn.Embedding(rows, width, sparse=True)
    optimizer = torch.optim.SparseAdam(models["SparseAdam"].parameters(), lr=1e-3)
    # SparseAdam adds its eps before the correction
    updater = gch.adam(1e-3, eps=lambda t: 1e-8 / (1 - 0.999 ** (t + 1)) ** 0.5).bind(models["gradchain"])
    return {"SparseAdam": (models["SparseAdam"], optimizer.step), "gradchain": (models["gradchain"], updater.step)}


def gradient(rows: int, width: int, named: int, seed: int) -> Any:
    """One that names so many rows."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    which = torch.randperm(rows, generator=generator)[:named].sort().values
    values = torch.randn(named, width, generator=generator)
    return torch.sparse_coo_tensor(which[None], values, (rows, width), is_coalesced=True, check_invariants=True)


def turn(model: Any, step: Callable[[], object], grads: list[Any]) -> float:
    """The mean time of steps with these gradients, in microseconds."""
    spent = 0.0
    for grad in grads:
        model.weight.grad = grad
        start = time.perf_counter()
        step()
        spent += time.perf_counter() - start
        model.weight.grad = None
    return spent / len(grads) * 1e6


def measure(rounds: int, rows: int = ROWS, width: int = WIDTH, named: int = NAMED) -> dict[str, Any]:
    """Quartiles of each side's time, and of ours over SparseAdam's in the same round."""
    made = sides(rows, width)
    took: dict[str, list[float]] = {name: [] for name in made}
    for number in range(-1, rounds):  # the first is not told
        seeds = range(number * STEPS, (number + 1) * STEPS) if number >= 0 else range(-WARM, 0)
        grads = [gradient(rows, width, named, seed % (1 << 31)) for seed in seeds]
        order = list(made)[:: 1 if number % 2 else -1]
        for name in order:
            mean = turn(*made[name], grads)
            took[name] += [mean] if number >= 0 else []
    over = [ours / theirs for ours, theirs in zip(took["gradchain"], took["SparseAdam"], strict=True)]
    return {
        "rows": rows,
        "width": width,
        "named": named,
        "us": {name: quarters(found) for name, found in took.items()},
        "over": quarters(over),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds of both")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the embedding")
    parser.add_argument("--named", type=int, default=NAMED, help="rows that a gradient names")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, None)
    import torch

    torch.set_num_threads(1)
    from benchmarks import report

    found = measure(given.rounds, given.rows, named=given.named)
    for name, us in found["us"].items():
        print(f"{name:12} {us[0]:9.0f} {us[1]:9.0f} {us[2]:9.0f} us")
    low, middle, high = found["over"]
    met = "met" if high <= BOUND else "NOT met"
    print(f"over SparseAdam: {low:.3f} {middle:.3f} {high:.3f}; the bound for the last is {BOUND}: {met}")
    result = {**report.circumstances(given.rounds), "cells": [], "failed": [], "sparse": found}
    print(f"written to {report.write(result, given.output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
