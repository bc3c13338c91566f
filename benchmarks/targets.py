"""What speed is aimed at, and whether a run met it: `python -m benchmarks --targets`.

A target is met when the upper quartile meets it. Cells are measured against the best peer of the same recipe, or
against the one that the target names. Two threads and life without a compiler are measured in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quarters import quarters


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of ours to a peer, in the optimizer part of one cell.

    Attributes:
        workload: its key.
        recipe: its key.
        bound: the ratio.
        threads: of the process.
        native: whether there is a compiler.
        against: the peer; "" for the best.
    """

    workload: str
    recipe: str
    bound: float
    threads: int = 1
    native: bool = True
    against: str = ""

    @property
    def title(self) -> str:
        """As the table has it."""
        where = "" if self.threads == 1 else f", {self.threads} threads"
        return f"{self.recipe} ({self.workload}){where}{'' if self.native else ', no compiler'}"


TARGETS = (
    Target("a", "R0", 1.10, against="live floor"),
    *(Target(w, "R0", 0.45, against="torch by hand") for w in "cd"),
    *(Target(w, "R1", 1.00) for w in "ab"),
    *(Target(w, "R2", 0.75) for w in "ab"),
    *(Target(w, "R3", 0.62) for w in "ab"),
    *(Target(w, "R4", 0.90) for w in "ab"),
    Target("a", "R5", 0.20),
    Target("a", "R7", 0.12),
    Target("c", "R8-each", 0.13),
    Target("c", "R2", 0.25),
    Target("c", "R3", 0.18),
    Target("d", "R2", 0.30),
    Target("d", "R3", 0.22),
    Target("a", "R2", 0.75, threads=2),
    Target("a", "R3", 0.62, threads=2),
    Target("a", "R2", 0.90, native=False),
    Target("a", "R3", 1.00, native=False, against="torch foreach"),
    Target("a", "R4", 1.00, native=False, against="torch foreach"),
    Target("a", "R5", 1.00, native=False, against="foreach by hand"),
    Target("a", "R7", 1.00, native=False, against="foreach by hand"),
)
FACTS = tuple((w, r) for w in "acd" for r in ("R2", "R3"))
EXTRA_BYTES, COLD_S, WARM_S, BIND_S, RECORDING_US, IMPORT_S = 0.1, 0.3, 0.05, 0.05, 40.0, 0.15


def here(workloads: Sequence[str], recipes: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The cells that this process measures, of all recipes or of some."""
    return [(t.workload, t.recipe) for t in _aimed(workloads, recipes) if t.threads == 1 and t.native]


def _aimed(workloads: Sequence[str], recipes: Sequence[str]) -> list[Target]:
    return [t for t in TARGETS if t.workload in workloads and (not recipes or t.recipe in recipes)]


def elsewhere(
    workloads: Sequence[str], rounds: int, quick: bool, recipes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The results of the processes with two threads, and without a compiler. Before this process keeps to one core."""
    for threads, native in ((2, True), (1, False)):
        wanted = [t for t in _aimed(workloads, recipes) if (t.threads, t.native) == (threads, native)]
        if not wanted:
            continue
        words = ["--threads", str(threads), "--rounds", str(rounds), "--no-facts", *(["--quick"] if quick else [])]
        words += [word for key in dict.fromkeys(t.workload for t in wanted) for word in ("--workload", key)]
        words += [word for key in dict.fromkeys(t.recipe for t in wanted) for word in ("--recipe", key)]
        env = {**os.environ, **({} if native else {"GRADCHAIN_NATIVE": "0"})}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [sys.executable, "-m", "benchmarks", *words, "--output", str(path)]
            subprocess.run(command, env=env, check=False)  # what failed in it is in its file
            if path.exists():
                yield json.loads(path.read_text(encoding="utf-8"))


def judged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per target: what it is, its bound, what was measured and whether that meets it.

    Args:
        results: this process's result and those of the others.
    """
    rows = [_cell_row(target, results) for target in TARGETS]
    rows.append(_memory_row(results[0]["cells"]))
    facts = results[0].get("facts")
    if facts is None:
        return rows
    for kind, bound in (("cold", COLD_S), ("warm", WARM_S)):
        for cell, took in facts["first_step"].items():
            rows.append(_row(f"first step, {kind}, {cell}", bound, "s", took[f"{kind}_s"]))
    for masked, took in facts["bind_1000_s"].items():
        rows.append(_row(f"bind to 1000 tensors, {masked} masked links", BIND_S, "s", took))
    for cell, took in facts["recording"].items():
        rows.append(_row(f"recording, {cell}", RECORDING_US, "us", took["us"]))
    return [*rows, _row("import over torch", IMPORT_S, "s", facts["import_over_torch_s"])]


def _cell_row(target: Target, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": target.title, "target": target.bound, "unit": "x"}
    for result in results:
        if (result["threads"], result["native"]) != (target.threads, target.native):
            continue
        for cell in result["cells"]:
            if (cell["workload"], cell["recipe"]) == (target.workload, target.recipe):
                against = target.against or cell["best_peer"]
                if against not in cell["candidates"]:
                    continue
                _, middle, upper = cell["candidates"][against]["ours_over_it"]
                by = ", ".join(cell["executors"]) or "the reference"
                measured = {"against": against, "by": by, "median": middle, "upper": upper}
                return {**row, **measured, "met": upper <= target.bound}
    return {**row, "met": None}


def _memory_row(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": "peak extra memory, worst cell", "target": EXTRA_BYTES, "unit": "B/parameter"}
    peaks = [(c["extra_bytes_per_parameter"]["gradchain"]["peak"], f"({c['workload']}) {c['recipe']}") for c in cells]
    if not peaks:
        return {**row, "met": None}
    worst, cell = max(peaks)
    return {**row, "by": cell, "median": median(p for p, _ in peaks), "upper": worst, "met": worst <= EXTRA_BYTES}


def _row(what: str, bound: float, unit: str, took: Sequence[float]) -> dict[str, Any]:
    _, middle, upper = quarters(took)
    return {"what": what, "target": bound, "unit": unit, "median": middle, "upper": upper, "met": upper <= bound}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table as text."""
    out = ["", f"{'target':44} {'at most':>9} {'median':>9} {'upper':>9}"]
    for row in rows:
        if row["met"] is None:
            out.append(f"{row['what']:44} {row['target']:9.3g} {'not measured':>19}")
            continue
        verdict = "met" if row["met"] else "MISSED"
        more = " ".join(filter(None, (f"/ {row['against']}" if "against" in row else "", row.get("by", ""))))
        figures = f"{row['target']:9.3g} {row['median']:9.3g} {row['upper']:9.3g}"
        out.append(f"{row['what']:44} {figures} {row['unit']:3} {verdict:6}  {more}".rstrip())
    met, known = sum(row["met"] is True for row in rows), sum(row["met"] is not None for row in rows)
    return [*out, f"{met} of {known} measured targets met, {len(rows) - known} not measured"]
