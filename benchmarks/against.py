"""Two versions of gradchain against each other in one run: `python -m benchmarks --against REV`.

The working tree is *now*, the commit is *then*. Each is copied to a folder of its own and runs in a process of its own,
on the same core, with the recipes and workloads of this folder and the same seeds. The two have turns by rounds, one at
a time, and who begins changes from round to round; ratios are taken within a round.

Two processes differ by chance, in where memory lies and how names hash, by more than the few percents that are asked
about. So the rounds are divided over several pairs of processes, and the medians of each pair are told: what they
differ by among themselves is what one run cannot see. `--against HEAD` in a clean tree shows the same.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import measure
from benchmarks.recipes import RECIPES, Cell
from benchmarks.report import duration
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
PAIRS = 3  # of processes
SLOWER = 1.03  # a median ratio above it is slower
# steps of a turn before those that are timed, and those: caches are cold after the other's turn, and (d) is a hot loop
TURNS = {"a": (0, 1), "b": (0, 1), "c": (2, 4), "d": (20, 80)}
SIDES = ("then", "now")


class Failed(Exception):  # noqa: N818
    """Why a version could not run a cell."""


def unpacked(rev: str, folder: Path) -> str:
    """Put gradchain as a commit has it, and as it is in the working tree, in `then` and `now`. Returns the commit.

    Raises:
        ValueError: there is no such commit.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit, "gradchain"))) as archive:
        archive.extractall(folder / "then", filter="data")
    shutil.copytree(ROOT / "gradchain", folder / "now" / "gradchain", ignore=shutil.ignore_patterns("__pycache__"))
    return commit


def _git(*words: str) -> bytes:
    done = subprocess.run(("git", "-C", str(ROOT), *words), capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode().strip() or "no commit of this repository has that name"
        raise ValueError(f"--against: git {' '.join(words[:1])} failed: {why}.")
    return done.stdout


class Version:
    """A process with the gradchain of one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        path = os.pathsep.join((str(folder), str(ROOT)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.one_version"],
            cwd=folder,  # python looks there first
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.facts = self.ask("hello")
            if not Path(self.facts["file"]).is_relative_to(folder.resolve()):
                raise Failed(f"the gradchain of {self.facts['file']} was imported, not that of {folder}")
        except BaseException:
            self.stop()
            raise

    def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """The answer to one request. Failed if it is an error, or the process is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the process ended, with status {self._process.wait()}"}
        if "error" in answer:
            raise Failed(answer["error"])
        return dict(answer)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Series:
    """What was measured of one cell: of each pair of processes its rounds, and of each round what the two answered."""

    workload: str
    recipe: str
    pairs: list[list[dict[str, dict[str, float]]]] = field(default_factory=list)
    ran: dict[str, list[str]] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The figures: quartiles of seconds and of ratios now / then of the same round."""
        rounds = [one for pair in self.pairs for one in pair]
        figures: dict[str, Any] = {
            f"{side}_{what}_us": measure.quartiles([one[side][what] for one in rounds], 1e6)
            for side in SIDES
            for what in ("part", "whole")
        }
        ratios = {what: measure.quartiles(_ratios(rounds, what)) for what in ("part", "mean", "whole")}
        return {
            "workload": self.workload,
            "recipe": self.recipe,
            "per": RECIPES[self.recipe].per,
            "rounds": [len(pair) for pair in self.pairs],
            **figures,
            "now_over_then": ratios["part"],
            "now_over_then_mean": ratios["mean"],
            "now_over_then_whole": ratios["whole"],
            "by_pair": [median(_ratios(pair, "part")) for pair in self.pairs],
            "cpu_share": min(median(one[side]["cpu_share"] for one in rounds) for side in SIDES),
            "verdict": verdict(ratios["part"]),
            "parity": self.parity,
            "ran": self.ran,
        }


def _ratios(rounds: Sequence[dict[str, dict[str, float]]], what: str) -> list[float]:
    return [one["now"][what] / one["then"][what] for one in rounds]


def verdict(quartiles: Sequence[float]) -> str:
    """In words. Slower is what is so by more than is allowed in the middle round, and at all in three of four."""
    low, middle, _ = quartiles
    if middle <= SLOWER:
        return "no slower"
    return "SLOWER" if low > 1.0 else "unclear"


class Run:
    """All cells, in several pairs of processes.

    Args:
        folder: of `unpacked`.
        cells: (workload, recipe).
        rounds: of each cell, over all pairs.
        pairs: how many.
    """

    def __init__(self, folder: Path, cells: Sequence[tuple[str, str]], rounds: int, pairs: int) -> None:
        self.failed: dict[tuple[str, str], str] = {}
        self._folder = folder
        self._series = {cell: Series(*cell) for cell in cells}
        self._rounds = [rounds // pairs + (pair < rounds % pairs) for pair in range(min(pairs, rounds))]
        self._versions: dict[str, Version] = {}

    def measured(self) -> Iterator[list[dict[str, Any]]]:
        """The rows so far, after each pair of processes."""
        for pair, rounds in enumerate(self._rounds):
            with ExitStack() as stack:
                stack.callback(self._stop)
                for cell, series in self._series.items():
                    if cell in self.failed:
                        continue
                    try:
                        self._start(pair)
                        self._cell(series, rounds)
                    except Failed as why:
                        self.failed[cell] = str(why)
                        self._stop()  # whatever state they are in
            yield [series.row() for series in self._series.values() if series.pairs]

    def _start(self, pair: int) -> None:
        for side in SIDES if pair % 2 else SIDES[::-1]:
            if side not in self._versions:
                self._versions[side] = Version(self._folder / side, pair)

    def _stop(self) -> None:
        while self._versions:
            self._versions.popitem()[1].stop()

    def _cell(self, series: Series, rounds: int) -> None:
        files = {} if series.pairs else {side: str(self._folder / f"{side}.pt") for side in SIDES}
        given = {"workload": series.workload, "recipe": series.recipe}
        series.ran = {side: self._ask(side, "open", **given, weights=files.get(side))["ran"] for side in SIDES}
        if files:
            series.parity = _parity(series, files)
        settle, steps = TURNS[series.workload]
        pair: list[dict[str, dict[str, float]]] = []
        for number in range(rounds):
            order = SIDES if number % 2 else SIDES[::-1]
            pair.append({side: self._ask(side, "turn", settle=settle, steps=steps) for side in order})
        for side in SIDES:
            self._ask(side, "close")
        series.pairs.append(pair)

    def _ask(self, side: str, what: str, **given: Any) -> dict[str, Any]:
        try:
            return self._versions[side].ask(what, **given)
        except Failed as why:
            raise Failed(f"{side}: {why}") from None


def _parity(series: Series, files: dict[str, str]) -> dict[str, float]:
    """How far the two are from each other after the first steps, as `measure` has it."""
    workload = WORKLOADS[series.workload]
    start = dict(workload.build().named_parameters())
    then, now = (torch.load(files[side], weights_only=True) for side in SIDES)
    begun = {name: start[name.removeprefix("average ")] for name in then}
    worst, outliers, _ = measure.difference(now, then, begun)
    allowed = Cell(workload, RECIPES[series.recipe], 0.0).outliers
    return {"worst": worst, "outliers": outliers, "allowed": allowed}


def run(rev: str, cells: Sequence[tuple[str, str]], rounds: int, pairs: int = PAIRS) -> Iterator[dict[str, Any]]:
    """What goes into the file, after each pair of processes; the last time it is complete.

    Raises:
        ValueError: there is no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="gradchain-against-") as name:
        commit = unpacked(rev, Path(name))
        run = Run(Path(name), cells, rounds, pairs)
        for rows in run.measured():
            failed = [{"workload": w, "recipe": r, "error": why} for (w, r), why in run.failed.items()]
            yield {"against": {"rev": rev, "commit": commit, "rows": rows}, "failed": failed}


def lines(against: dict[str, Any]) -> list[str]:
    """The table as text."""
    out = [
        "",
        f"this tree / {against['rev']}, within a round",
    ]
    out.append(f"  {'':12} {'then':>9} {'now':>9} {'part':>6} {'upper':>7} {'mean':>6} {'whole':>6}  by pair")
    for row in against["rows"]:
        (_, middle, upper), by_pair = row["now_over_then"], " ".join(f"{x:.2f}" for x in row["by_pair"])
        times = " ".join(f"{duration(row[f'{side}_part_us'][1]):>9}" for side in SIDES)
        more = f"{row['now_over_then_mean'][1]:6.2f} {row['now_over_then_whole'][1]:6.2f}"
        name = f"({row['workload']}) {row['recipe']}"
        out.append(f"  {name:12} {times} {middle:6.3f} ({upper:.3f}) {more}  {by_pair}  {row['verdict']}")
        if row["parity"]["outliers"] > row["parity"]["allowed"]:
            far = f"{row['parity']['outliers']:.2%} of elements, worst {row['parity']['worst']:.2g}"
            out.append(f"    THE TWO DO NOT COMPUTE THE SAME: {far}")
        if row["cpu_share"] < 0.9:
            out.append(f"    other processes were on this core: it was ours {row['cpu_share']:.0%} of the time")
    slower = [f"({row['workload']}) {row['recipe']}" for row in against["rows"] if row["verdict"] != "no slower"]
    return [*out, f"{len(against['rows']) - len(slower)} of {len(against['rows'])} no slower than {SLOWER} of then"]
