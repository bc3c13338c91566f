"""`python -m benchmarks.picture`: the figures of `results/` as one picture, docs/benchmarks.svg.

Of each cell the newest measurement with a compiler, one thread and enough rounds, whatever it says. Nothing is measured
here, and no number is in this file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.drawing import page, text
from benchmarks.recipes import RECIPES
from benchmarks.report import RESULTS
from benchmarks.workloads import WORKLOADS

PICTURE = Path(__file__).parents[1] / "docs" / "benchmarks.svg"
ENOUGH = 15  # rounds; fewer are for a look
WIDTH, LEFT, RIGHT, ROW, HEAD, TOP, FOOT = 920, 360, 190, 20, 34, 64, 84
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def newest(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells to draw, by workload and recipe, each with the date of its run."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    measured = [result for result in results if result.get("cells")]  # other figures have files of other forms
    for result in sorted(measured, key=lambda result: str(result["date"])):
        if result["threads"] == 1 and result["native"] and result["rounds"] >= ENOUGH:
            found |= {(c["workload"], c["recipe"]): {**c, "date": result["date"]} for c in result["cells"]}
    return [found[w, r] for w in WORKLOADS for r in RECIPES if (w, r) in found]


def draw(cells: list[dict[str, Any]]) -> str:
    """The picture: a row for each cell, how long ours takes over its best peer."""
    groups = [(w, [c for c in cells if c["workload"] == w]) for w in WORKLOADS]
    groups = [(w, rows) for w, rows in groups if rows]
    height = TOP + HEAD * len(groups) + ROW * len(cells) + FOOT
    axis = _Axis([number for cell in cells for number in cell["candidates"][cell["best_peer"]]["ours_over_it"]])
    lines = [
        text(16, 26, "Time of gradchain over that of the fastest other library, recipe by recipe", size=15),
        *axis.lines(TOP - 8, height - FOOT),
    ]
    y = TOP
    for workload, rows in groups:
        lines.append(text(16, y + HEAD - 10, f"({workload}) {WORKLOADS[workload].title}", "faint"))
        y += HEAD
        for cell in rows:
            lines += _row(cell, y, axis)
            y += ROW
    dates = sorted({str(cell["date"])[:10] for cell in cells})
    for number, line in enumerate(_legend(" and ".join(dates))):
        lines.append(text(16, y + 24 + 18 * number, line, "faint"))
    return page("gradchain's time over that of the fastest other library", WIDTH, height, lines)


def _legend(dates: str) -> tuple[str, ...]:
    return (
        "Left of 1 gradchain is faster. Dot: the optimizer part of a real training step, median of the rounds; "
        "line: its quartiles;",
        "bar: the whole step. Hollow: over a quarter of the rounds were disturbed. One core, with a C compiler; "
        f"measured {dates}",
        "by `python -m benchmarks`. The machine and the versions are in benchmarks/results.",
    )


class _Axis:
    """Ratios as places on the picture, by their logarithm."""

    def __init__(self, numbers: list[float]) -> None:
        low, high = min(numbers), max(numbers)
        self.low = max((tick for tick in TICKS if tick <= low), default=low)
        self.high = min((tick for tick in TICKS if tick >= max(high, 1.0)), default=high)

    def at(self, ratio: float) -> float:
        part = math.log(ratio / self.low) / math.log(self.high / self.low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def lines(self, top: float, bottom: float) -> Iterator[str]:
        """The grid, and what its lines stand for."""
        for tick in TICKS:
            if self.low <= tick <= self.high:
                x = self.at(tick)
                yield f'<path class="{"one" if tick == 1 else "grid"}" d="M{x:.1f} {top}V{bottom}"/>'
                yield text(x, top - 6, f"{tick:g}", "faint", "middle")


def _row(cell: dict[str, Any], y: float, axis: _Axis) -> Iterator[str]:
    """One cell: its recipe, its ratio with the quartiles, that of the whole step, and to whom it is."""
    best, middle = cell["best_peer"], y + ROW / 2
    low, ratio, high = cell["candidates"][best]["ours_over_it"]
    whole = cell["candidates"][cell["best_peer_whole"]]["ours_over_it_whole"][1]
    disturbed = len(cell["disturbed_rounds"]) > cell["rounds"] / 4
    told = f"{ratio:g} of {best}, quartiles {low:g} and {high:g}; whole step {whole:g} of {cell['best_peer_whole']}"
    yield f'<g id="{cell["workload"]}-{cell["recipe"]}"><title>{escape(told)}</title>'
    yield text(16, middle + 4, f"{cell['recipe']}  {RECIPES[cell['recipe']].title}")
    yield f'<path class="spread" d="M{axis.at(low):.1f} {middle}H{axis.at(high):.1f}"/>'
    x = min(max(axis.at(whole), LEFT), WIDTH - RIGHT)
    yield f'<path class="whole" d="M{x:.1f} {middle - 6}V{middle + 6}"/>'
    yield f'<circle class="part{" disturbed" if disturbed else ""}" cx="{axis.at(ratio):.1f}" cy="{middle}" r="4.5"/>'
    yield text(WIDTH - RIGHT + 14, middle + 4, f"{ratio:.2f}  {best}")
    yield "</g>"


def main() -> None:
    """Draw what the results say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description="The results as a picture.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of JSON files")
    parser.add_argument("--output", type=Path, default=PICTURE, help="default: docs/benchmarks.svg")
    given = parser.parse_args()
    files = sorted(given.results.glob("*.json"))
    cells = newest(json.loads(file.read_text(encoding="utf-8")) for file in files)
    if not cells:
        parser.error(f"{given.results} has no cell that was measured in {ENOUGH} rounds, on one thread, natively.")
    given.output.write_text(draw(cells), encoding="utf-8")
    print(f"{len(cells)} cells drawn to {given.output}")


if __name__ == "__main__":
    main()
