"""One version of gradchain in a process of its own: what `python -m benchmarks --against REV` runs twice.

It stands on gradchain's front door only, for the rooms behind it differ between versions. Requests come as lines of
JSON, and each is answered by one: `open` makes a candidate and warms it up, `turn` times some of its steps, `close`
says whether all is well and lets it go. What anything else prints goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any, TextIO

import torch

import gradchain
from benchmarks.candidate import BACKWARD
from benchmarks.ours import Ours
from benchmarks.recipes import RECIPES, Cell
from benchmarks.workloads import WORKLOADS

WARM = 6  # steps before anything is timed, as in `measure`


class Server:
    """The candidate that is open, and what can be asked of it."""

    def __init__(self) -> None:
        self._candidate: Ours | None = None
        self._skipped = 0

    def hello(self) -> dict[str, Any]:
        """Which gradchain this is."""
        return {"file": str(Path(gradchain.__file__).resolve()), "version": gradchain.__version__}

    def open(self, workload: str, recipe: str, weights: str | None = None) -> dict[str, Any]:
        """A candidate that ran its first steps; its weights, and averages, in a file if one is named."""
        candidate = self._candidate = Ours(Cell.of(WORKLOADS[workload], RECIPES[recipe]))
        for _ in range(WARM):
            candidate.round()
            candidate.check_clip()
        if weights is not None:
            trained = {name: weight.detach() for name, weight in candidate.model.named_parameters()}
            averages = candidate.average() or {}
            kept = {f"average {name}": averages[name] for name in trained if name in averages}
            torch.save({**trained, **kept}, weights)
        self._skipped = candidate.updater.num_skipped
        gc.collect()
        gc.freeze()
        return {"ran": [line.strip() for line in candidate.updater.explain().splitlines() if line.startswith("  ")]}

    def turn(self, settle: int, steps: int) -> dict[str, float]:
        """Seconds of steps in a row, after some that are not timed: median and mean of the part, median of the whole.

        The median is what a neighbour on the core disturbs least; the mean also sees what happens once in many steps.
        """
        assert self._candidate is not None
        for _ in range(settle):
            self._candidate.round()
        wall, cpu = time.perf_counter(), time.process_time()
        took = [self._candidate.round() for _ in range(steps)]
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        self._candidate.check_clip()
        per = self._candidate.cell.recipe.per
        parts, wholes = [t.part / per for t in took], [t.whole / per for t in took]
        return {"part": median(parts), "mean": fmean(parts), "whole": median(wholes), "cpu_share": share}

    def close(self) -> dict[str, Any]:
        """AssertionError if weights are not finite, or steps that overflowed were timed."""
        candidate, self._candidate = self._candidate, None
        assert candidate is not None
        gc.unfreeze()
        for name, weight in candidate.model.named_parameters():
            assert torch.isfinite(weight).all(), f"{name} is not finite after the rounds"
        assert candidate.updater.num_skipped == self._skipped, "steps that overflowed were timed"
        return {}


def _serve(requests: TextIO, answers: TextIO) -> None:
    server = Server()
    for line in requests:
        asked = json.loads(line)
        try:
            answer = getattr(server, asked.pop("do"))(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with BACKWARD.clock():
        _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
