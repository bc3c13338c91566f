"""`python -m benchmarks`: see README.md beside this file."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.pinning import pin

QUICK = (("c", "R2"), ("d", "R1"), ("d", "R2"), ("d", "R3"), ("d", "R5"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Recipes here and with peers.")
    parser.add_argument("--workload", action="append", metavar="a|b|c|d", help="may be given often; default: all")
    parser.add_argument("--recipe", action="append", metavar="R0…R8-each", help="may be given often; default: all")
    parser.add_argument("--peer", action="append", default=[], help="only this peer; may be given often")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="what has a target, and whether it is met; --workload and --recipe narrow it",
    )
    parser.add_argument("--against", metavar="REV", help="this tree and a commit of it, and nobody else, in one run")
    parser.add_argument("--rounds", type=int, help="timed rounds (21; 5 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a few cells, without what compiles for long: 2 minutes")
    parser.add_argument("--no-facts", action="store_true", help="leave out first step, bind, import, recording")
    parser.add_argument("--threads", type=int, default=1, help="threads, each with a core; default: 1")
    parser.add_argument("--core", type=int, help="the first core to stay on; default: the first allowed")
    parser.add_argument("--processor", action="store_true", help="time of the processor, not of the clock")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    if given.against and (given.targets or given.peer):
        parser.error("--against: peers and targets are no part of it.")
    return given


def main() -> int:
    given = _arguments()
    rounds = given.rounds or (5 if given.quick else 21)
    aimed = given.workload or list("abcd")
    recipes = given.recipe or ()
    if given.processor:
        os.environ["BENCHMARK_CLOCK"] = "processor"  # before what is timed is imported, here and in other processes
    others = list(targets.elsewhere(aimed, rounds, given.quick, recipes)) if given.targets else []
    pin(given.threads, given.core)
    import torch

    torch.set_num_threads(given.threads)
    from benchmarks import facts, measure, report
    from benchmarks.recipes import RECIPES
    from benchmarks.workloads import WORKLOADS

    wanted = [(w, r) for w in given.workload or WORKLOADS for r in given.recipe or RECIPES]
    if given.targets:
        wanted = targets.here(aimed, recipes)
    elif given.quick and not (given.workload or given.recipe):
        wanted = list(QUICK)
    unknown = [name for w, r in wanted for name, known in ((w, WORKLOADS), (r, RECIPES)) if name not in known]
    unknown += [name for name in given.peer if name not in [p.name for p in measure.PEERS]]
    if unknown:
        print(f"unknown: {unknown[0]!r}. Workloads: {', '.join(WORKLOADS)}. Recipes: {', '.join(RECIPES)}.")
        print(f"Peers: {', '.join(p.name for p in measure.PEERS)}.")
        return 2
    clock = {"clock": "processor" if given.processor else "wall"}
    result: dict[str, Any] = {**report.circumstances(rounds), **clock, "cells": [], "failed": [], "others": others}
    if given.against:
        return _against(wanted, rounds, given, result)
    for cell in wanted:
        _run(cell, rounds, given, result)
    print("\n".join(report.summary(result["cells"])))
    if not given.no_facts:
        cells = [(w, r) for w, r in targets.FACTS if (w == "d" if given.quick else w in aimed)]
        result["facts"] = facts.measure(cells, times=2 if given.quick else 5)
        print("\n".join(report.facts_lines(result["facts"])))
    if given.targets:
        result["targets"] = targets.judged([result, *others])
        print("\n".join(targets.lines(result["targets"])))
    print(f"\nwritten to {report.write(result, given.output)}")
    return _told([cell for each in (result, *others) for cell in each["failed"]])


def _told(failed: list[dict[str, Any]]) -> int:
    """Say what failed. Returns the exit status."""
    for cell in failed:
        print(f"FAILED: ({cell['workload']}) {cell['recipe']}: {cell['error']}")
    return 1 if failed else 0


def _against(wanted: list[tuple[str, str]], rounds: int, given: argparse.Namespace, result: dict[str, Any]) -> int:
    """The cells in this tree and in a commit, into the file after each pair of processes. Returns the exit status."""
    from benchmarks import against, report

    pairs = 1 if given.quick else against.PAIRS
    try:
        for found in against.run(given.against, wanted, rounds, pairs):
            result.update(found)
            path = report.write(result, given.output)
    except ValueError as error:
        print(error)
        return 2
    print("\n".join(against.lines(result["against"])))
    print(f"\nwritten to {path}")
    return _told(result["failed"])


def _run(wanted: tuple[str, str], rounds: int, given: argparse.Namespace, result: dict[str, Any]) -> None:
    """One cell, into the result and the file."""
    from benchmarks import measure, report
    from benchmarks.recipes import RECIPES, Cell
    from benchmarks.workloads import WORKLOADS

    workload, recipe = wanted
    try:
        cell = measure.run(Cell.of(WORKLOADS[workload], RECIPES[recipe]), rounds, given.peer, slow=not given.quick)
    except Exception as error:  # of ours, or of the check: the other cells are still worth their time
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
        result["failed"].append({"workload": workload, "recipe": recipe, "error": sentence})
    else:
        result["cells"].append(cell)
        print("\n".join(report.lines(cell)), flush=True)
    report.write(result, given.output)  # what is done stays, should the rest be stopped


if __name__ == "__main__":
    sys.exit(main())
