"""R2 over shards beside torch's fused AdamW on DTensors: `python -m benchmarks.dtensor`.

Clip by the norm, AdamW, a cosine: 80 tensors under FSDP2 on two ranks (gloo) of this machine, one core each where there
are two. Both sides have a model of their own and are given the same gradients, as DTensors of their weights' shards.
They have turns in one run, and a turn begins where all ranks are: a step takes as long as that of the slowest rank. The
ratio is taken within a round, and is that of medians in the end. Beside the time there is what the thread that calls
the step computes in it: others' load and waiting for the other rank are not in that. With `--width 16` tensors are so
small that it is the host's share.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pinning import leave
from benchmarks.quarters import quarters

LAYERS, WIDTH = 40, 256
WARM, STEPS = 5, 10
WORLD = 2
BOUND = 0.6
"""Of the time of torch's fused AdamW and clip, the most that ours may take, in medians."""


def sides(layers: int, width: int) -> dict[str, tuple[Any, Callable[[], object]]]:
    """By name: a model that FSDP2 shards, and what takes one step of it."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import gradchain as gch

    mesh, models = init_device_mesh("cpu", (torch.distributed.get_world_size(),)), {}
    for name in ("torch", "gradchain"):
        torch.manual_seed(0)
        models[name] = fully_shard(nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))), mesh=mesh)
    theirs = list(models["torch"].parameters())
    optimizer = torch.optim.AdamW(theirs, lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10_000)
    updater = gch.chain(gch.clip_by_norm(1.0), gch.adamw(gch.cosine(1e-3, 0.0, 10_000))).bind(models["gradchain"])

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        scheduler.step()

    return {"torch": (models["torch"], step), "gradchain": (models["gradchain"], updater.step)}


def given(model: Any, seed: int) -> None:
    """Gradients of every parameter: the same for each side, on each rank its own."""
    import torch
    from torch.distributed.tensor import DTensor

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        local = torch.randn(parameter.to_local().shape, generator=generator)
        parameter.grad = DTensor(local, parameter._spec, requires_grad=False)  # as FSDP2 makes them


def turn(model: Any, step: Callable[[], object], seeds: range) -> tuple[float, float]:
    """The mean time of steps with these gradients, and what a thread computes in one: of all ranks the larger, us."""
    import torch

    spent = torch.zeros(2, dtype=torch.float64)
    for seed in seeds:
        given(model, seed)
        torch.distributed.barrier()
        start, computed = time.perf_counter(), time.thread_time()
        step()
        took = torch.tensor([time.perf_counter() - start, time.thread_time() - computed], dtype=torch.float64)
        torch.distributed.all_reduce(took, torch.distributed.ReduceOp.MAX)
        spent += took
    for parameter in model.parameters():
        parameter.grad = None
    wall, computed = (spent / len(seeds) * 1e6).tolist()
    return wall, computed


def _rank(rank: int, folder: str, rounds: int, layers: int, width: int) -> None:
    import torch

    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    made = sides(layers, width)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for number in range(-1, rounds):  # the first is not told
        seeds = range(number * STEPS, (number + 1) * STEPS) if number >= 0 else range(1 << 20, (1 << 20) + WARM)
        for name in list(made)[:: 1 if number % 2 else -1]:
            means = turn(*made[name], seeds)
            took[name] += [means] if number >= 0 else []
    weights = [[p.detach().full_tensor() for p in model.parameters()] for model, _ in made.values()]
    if rank == 0:
        engine = made["gradchain"][1].__self__._bound.engine  # type: ignore[attr-defined]
        apart = max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True))
        ran = {"executors": sorted({part.ran for part in engine.ran}), "again": engine.num_replayed}
        torch.save({"took": took, **ran, "apart": apart}, Path(folder) / "found.pt")
    torch.distributed.destroy_process_group()
    leave()


def measure(rounds: int, layers: int = LAYERS, width: int = WIDTH) -> dict[str, Any]:
    """Quartiles of each side's time, the ratio of ours to torch's in medians, and its quartiles round by round."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder, rounds, layers, width), nprocs=WORLD)
        found = torch.load(Path(folder) / "found.pt")
    wall, computed = ({n: [t[i] for t in ts] for n, ts in found["took"].items()} for i in range(2))
    del found["took"]
    rows = [ours / theirs for ours, theirs in zip(wall["gradchain"], wall["torch"], strict=True)]
    return {
        "tensors": 2 * layers,
        "width": width,
        "ranks": WORLD,
        **found,
        "us": {name: quarters(times) for name, times in wall.items()},
        "computed_us": {name: quarters(times) for name, times in computed.items()},
        "over": median(wall["gradchain"]) / median(wall["torch"]),
        "rounds": quarters(rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dtensor", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of both")
    parser.add_argument("--width", type=int, default=WIDTH, help="of each of the layers")
    parser.add_argument("--quick", action="store_true", help="a few steps of small tensors: whether it runs at all")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    options = parser.parse_args()
    from benchmarks import report

    rounds, layers, width = (2, 3, 16) if options.quick else (options.rounds, LAYERS, options.width)
    load = os.getloadavg()
    found = {**measure(rounds, layers, width), "load": load}
    for name, us in found["us"].items():
        computed = found["computed_us"][name]
        print(f"{name:10} {us[0]:9.0f} {us[1]:9.0f} {us[2]:9.0f} us, of which computed {computed[1]:.0f}")
    met = "met" if found["over"] <= BOUND else "NOT met"
    print(
        f"over torch's fused on DTensors: {found['over']:.3f}; the bound is {BOUND}: {met}; load before {load[0]:.1f}"
    )
    result = {**report.circumstances(rounds), "cells": [], "failed": [], "dtensor": found}
    print(f"written to {report.write(result, options.output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
