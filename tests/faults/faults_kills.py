"""SIGKILL at any moment of a run, and what the run that goes on from its file comes to."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from disk import Disk, Op
from fault_runs import RECIPES, STEPS, Recipe, Run, straight
from killing import Board, Child, die
from what_goes_wrong import Fault, Kind

SAVED, INSIDE, CALLS, RESUMED = range(4)  # what a child writes on the board: SAVED is of saves that returned
KILLS = 3  # of one run, before it is let go to its end

Keep = Callable[[Run, Path, Board], None]


def _by_file(run: Run, folder: Path, board: Board) -> None:
    """Go on from the file that is there, and save after each micro-batch into it, by `updater.save`."""
    path = folder / "run.pt"
    if path.exists():
        run.load(path)
    board[RESUMED] = run.done
    while run.done < STEPS:
        run.step()
        run.save(path)
        board[SAVED] = run.done


@dataclass
class Life:
    """A run that is killed some times and then comes to its end.

    Attributes:
        recipe: what runs.
        keep: how it is saved and goes on.
        wanted: the digest of the run that nothing happens to.
        make: makes the run in its process.
    """

    recipe: Recipe
    keep: Keep
    wanted: str
    make: Callable[[Recipe], Run] = Run

    def child(self, folder: Path, board: Board, at: int = 0) -> Child:
        """A process that goes on with the run; it kills itself at the so many-th call on the disk, for 0 never."""

        def count(op: Op) -> None:
            board[CALLS] += 1
            if board[CALLS] == at:
                board[INSIDE] = op.path.endswith(".tmp") or ".dcp/" in op.path
                die()

        def act() -> str:
            run = self.make(self.recipe)
            if at:
                with Disk(folder, count):
                    self.keep(run, folder, board)
            else:
                self.keep(run, folder, board)
            return run.digest()

        board[CALLS] = board[INSIDE] = 0
        board[RESUMED] = -1
        return Child(act)

    def end(self, folder: Path, board: Board, kills: int) -> list[str]:
        """Let it go on to its end: what was lost, once for each kill that was."""
        least, child = board[SAVED], self.child(folder, board)
        try:
            if not child.wait():
                lost = "it did not come to its end"
            elif child.said.startswith("failed"):
                lost = child.said
            elif board[RESUMED] < least:
                lost = f"it went on from step {board[RESUMED]}, and {least} was saved"
            else:
                lost = "" if child.said == self.wanted else "it came to something else"
        finally:
            child.close()
        return [f"{self.recipe.name}: {lost}" if lost else ""] * kills


Lives = Callable[[Keep], Iterator[Life]]


def lives(keep: Keep) -> Iterator[Life]:
    """Over and over, a run of each recipe. What is loaded once for a process is loaded here, for all children."""
    known = {name: straight(recipe) for name, recipe in RECIPES.items()}
    for name in itertools.cycle(RECIPES):
        yield Life(RECIPES[name], keep, known[name])


def took(life: Life, folder: Path) -> float:
    """The seconds of a whole run, in a child, to choose moments from."""
    begin, board = time.perf_counter(), Board(8)
    child = life.child(_fresh(folder), board)
    child.wait()
    return time.perf_counter() - begin


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def anywhere(keep: Keep, n: int, folder: Path) -> Iterator[str]:
    """Killed at random times, up to three times in one run."""
    rng, tried, seconds = random.Random(0), 0, {}
    for life in lives(keep):
        if tried >= n:
            return
        name = life.recipe.name
        seconds[name] = seconds.get(name) or took(life, folder / "run")
        board, there, kills = Board(8), _fresh(folder / "run"), 0
        for _ in range(KILLS):
            child = life.child(there, board)
            try:
                child.wait(rng.uniform(0.0, 0.8 * seconds[name]))
                child.kill()
                child.wait()
            finally:
                child.close()
            kills += child.killed
            if not child.killed:  # it was faster
                break
        tried += kills
        yield from life.end(there, board, kills)


def inside(keep: Keep, n: int, folder: Path, runs: Lives = lives, calls: int = 40) -> Iterator[str]:
    """Killed at a call on the disk: each call of a save in its turn, in the first save and in later ones."""
    rng, tried = random.Random(0), 0
    for life in runs(keep):
        if tried >= n:
            return
        board, there, kills = Board(8), _fresh(folder / "run"), 0
        for _ in range(KILLS):
            child = life.child(there, board, rng.randint(1, calls))
            child.wait()
            child.close()
            if not child.killed:
                break
            kills += board[INSIDE]
        tried += kills
        yield from life.end(there, board, kills)


EQUAL = "the run goes on from the last save that returned or a newer one, and ends bit for bit as the one never killed"
KIND = Kind(
    "A run is killed",
    "Runs of 12 micro-batches with windows half full, a loss scale about to grow, averages, schedule-free, noise, "
    "sparse rows, a plateau, lookahead, Muon, three rules in a partition, overrides and a freeze are saved after each "
    "micro-batch, killed by SIGKILL up to three times, and go on from what is there. Compared are weights, buffers, "
    "state, counts, hyperparameters, and the random numbers of torch, Python and numpy. A kill counts as inside the "
    "write only where the process itself had just said that it was there.",
    (
        Fault("anywhere", "SIGKILL at a random time", EQUAL, partial(anywhere, _by_file), 8, 350),
        Fault(
            "inside the write",
            "SIGKILL at a call on the disk inside `updater.save`",
            EQUAL,
            partial(inside, _by_file),
            12,
            100,
        ),
    ),
    alone=True,
)
