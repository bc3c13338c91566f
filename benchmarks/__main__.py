"""`python -m benchmarks`: see README.md beside this file."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

QUICK = (("c", "R2"), ("d", "R1"), ("d", "R2"), ("d", "R3"), ("d", "R5"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Recipes here and with peers.")
    parser.add_argument("--workload", action="append", metavar="a|b|c|d", help="may be given often; default: all")
    parser.add_argument("--recipe", action="append", metavar="R1…R8-each", help="may be given often; default: all")
    parser.add_argument("--peer", action="append", default=[], help="only this peer; may be given often")
    parser.add_argument("--rounds", type=int, help="timed rounds (21; 5 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a few cells, without what compiles for long: 2 minutes")
    parser.add_argument("--no-facts", action="store_true", help="leave out first step, bind, import, recording")
    parser.add_argument("--core", type=int, help="the core to stay on; default: the first allowed")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    return parser.parse_args()


def _pin(core: int | None) -> None:
    """One core and one thread, for whatever is imported from here on."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if core is None else core})


def main() -> int:
    given = _arguments()
    _pin(given.core)
    import torch

    torch.set_num_threads(1)
    from benchmarks import measure, report
    from benchmarks.recipes import RECIPES, Cell
    from benchmarks.workloads import WORKLOADS

    rounds = given.rounds or (5 if given.quick else 21)
    wanted = [(w, r) for w in given.workload or WORKLOADS for r in given.recipe or RECIPES]
    if given.quick and not (given.workload or given.recipe):
        wanted = list(QUICK)
    unknown = [name for w, r in wanted for name, known in ((w, WORKLOADS), (r, RECIPES)) if name not in known]
    unknown += [name for name in given.peer if name not in [p.name for p in measure.PEERS]]
    if unknown:
        print(f"unknown: {unknown[0]!r}. Workloads: {', '.join(WORKLOADS)}. Recipes: {', '.join(RECIPES)}.")
        print(f"Peers: {', '.join(p.name for p in measure.PEERS)}.")
        return 2
    result: dict[str, Any] = {**report.circumstances(rounds), "cells": []}
    failed: list[dict[str, str]] = result.setdefault("failed", [])
    for w, r in wanted:
        try:
            cell = measure.run(Cell.of(WORKLOADS[w], RECIPES[r]), rounds, given.peer, slow=not given.quick)
        except Exception as error:  # of ours, or of the check: the other cells are still worth their time
            traceback.print_exc()
            failed.append({"workload": w, "recipe": r, "error": f"{type(error).__name__}: {error}"})
            continue
        result["cells"].append(cell)
        print("\n".join(report.lines(cell)), flush=True)
        report.write(result, given.output)  # what is done stays, should the rest be stopped
    print("\n".join(report.summary(result["cells"])))
    if not given.no_facts:
        result["facts"] = _facts(given.quick)
    print(f"\nwritten to {report.write(result, given.output)}")
    for cell in failed:
        print(f"FAILED: ({cell['workload']}) {cell['recipe']}: {cell['error']}")
    return 1 if failed else 0


def _facts(quick: bool) -> dict[str, Any]:
    from benchmarks import facts

    workloads = ("d",) if quick else ("a", "c", "d")
    out: dict[str, Any] = {
        "import_over_torch_s": facts.import_seconds(2 if quick else 5),
        "bind_1000_s": facts.bind_seconds(),
        "first_step": {f"{w} {r}": facts.first_step(w, r) for w in workloads for r in ("R2", "R3")},
        "recording": {f"{w} {r}": facts.recording(w, r) for w in workloads for r in ("R2", "R3")},
    }
    print(f"\nimport gradchain over torch: {out['import_over_torch_s'] * 1e3:.0f} ms")
    print(f"bind, R2, 1000 tensors: {out['bind_1000_s'] * 1e3:.1f} ms")
    for cell, took in out["first_step"].items():
        times = f"cold {took['cold_s']:.3f} s, warm {took['warm_s']:.3f} s"
        print(f"first optimizer part, {cell}: {times}, {took['kernels']} kernels")
    for cell, took in out["recording"].items():
        print(f"recording in a real step, {cell}: {took['us']:.0f} us ({took['holds']})")
    return out


if __name__ == "__main__":
    sys.exit(main())
