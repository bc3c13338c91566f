"""What a run costs more that saves itself every 100 updates: `python -m benchmarks.saving`.

AdamW on (a), real forward and backward, a Checkpointer in the foreground and one in the background. In each round and
for each: some steps that save nothing, then one that saves, then steps until the file is on disk. Told are the step
that saves, the longest pause of the run; and all that the steps took more than as many that save nothing, over the
time of 100 of those. In the background that counts what the thread takes from the run, which has one core here.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks import report
from benchmarks.pinning import pin
from benchmarks.quarters import quarters
from benchmarks.workloads import WORKLOADS

EVERY = 100
PLAIN = 5
BOUND = 0.05
"""What saving may cost, of the time of the run."""


class Run:
    """A training that is saved in the foreground or in the background."""

    def __init__(self, folder: Path, background: bool) -> None:
        import gradchain as gch

        self._workload = WORKLOADS["a"]
        self._model = self._workload.build()
        self._updater = gch.adamw(1e-3).bind(self._model)
        self.keeper = gch.Checkpointer(folder, updater=self._updater, keep=2, background=background, signals=())
        self._number = 0
        for _ in range(3):
            self.step()

    def step(self, saves: bool = False) -> float:
        """The seconds of one."""
        begin = perf_counter()
        self._updater.update(self._workload.loss(self._model, self._number))
        if saves:
            self.keeper.save()
        else:
            self.keeper.step()
        self._number += 1
        return perf_counter() - begin

    def is_writing(self) -> bool:
        """Whether a file is still on its way to the disk."""
        writer = self.keeper._writer
        return writer is not None and writer._thread is not None

    def round(self) -> dict[str, float]:
        """Seconds: of a step that saves nothing, of one that saves, and of all that came of it."""
        plain = median(self.step() for _ in range(PLAIN))
        first = self.step(saves=True)
        after = [self.step()]
        while self.is_writing():
            after.append(self.step())
        more = first + sum(after) - plain * (1 + len(after))
        return {"plain": plain, "saving": first, "more": more, "share": more / (EVERY * plain)}


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Quartiles of each figure, in the foreground and in the background, and the bytes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Run(Path(folder) / name, name == "background") for name in ("foreground", "background")}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for number in range(rounds):
            for name in list(runs)[:: 1 if number % 2 else -1]:
                found[name].append(runs[name].round())
        told: dict[str, dict[str, Any]] = {}
        for name, run in runs.items():
            run.keeper.close()
            last = run.keeper.last_good
            assert last is not None
            told[name] = {key: quarters([one[key] for one in found[name]]) for key in found[name][0]}
            told[name]["bytes"] = last.stat().st_size
        return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description="A run that saves itself.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--core", type=int, help="the core to stay on; default: the first allowed")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: benchmarks/results/<date>.json")
    given = parser.parse_args()
    pin(1, given.core)
    result = {**report.circumstances(given.rounds), "cells": [], "saving": measure(given.rounds)}
    for name, figures in result["saving"].items():
        plain, saving, share = (figures[key][1] for key in ("plain", "saving", "share"))
        print(f"{name}: a step {plain * 1e3:.1f} ms, one that saves {saving * 1e3:.1f} ms, {figures['bytes']} bytes")
        verdict = "met" if share <= BOUND else "NOT met"
        print(f"  every {EVERY} updates it costs {share:.2%} of the run; the bound is {BOUND:.0%}: {verdict}")
    print(report.write(result, given.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
