"""SIGKILL to one of two ranks, and what the two that go on from the file come to."""

from __future__ import annotations

import datetime
import importlib
import random
import shutil
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.distributed as dist
from fault_runs import STEPS, Recipe, Run, numbers, put, straight
from killing import Board, Child
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from what_goes_wrong import Fault, Kind

import gradchain as gch

WORLD = 2
GIVEN_UP = 10.0  # seconds that the other rank has to notice
DONE, SAVED, RESUMED, SLOTS = range(4)


def _window() -> gch.Transform:
    return gch.chain(gch.accumulate(3), gch.clip_by_norm(0.5), gch.adamw(0.05), gch.average_params(0.9))


def _scaled() -> gch.Transform:
    return gch.chain(
        gch.amp_scale(1024.0, growth_interval=3, always=True), gch.sgd(gch.cosine(0.1, 0.0, 12), momentum=0.9)
    )


RECIPES = (
    Recipe("window", _window),
    Recipe("scale", _scaled),
    Recipe("free", lambda: gch.rules.schedule_free_adamw(0.05)),
)


class RankRun(Run):
    """A run of one of the ranks, each with random numbers of its own."""

    def __init__(self, recipe: Recipe, rank: int) -> None:
        super().__init__(recipe)
        plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2))
        self.model, self.rank = DistributedDataParallel(plain), rank
        self.updater = recipe.chain().bind(self.model)
        torch.manual_seed(100 + rank)

    def save(self, path: Path) -> None:
        """Every rank's random numbers are in the file that the first one writes."""
        states = [None] * WORLD
        dist.all_gather_object(states, numbers())
        self.updater.save(path, done=self.done, random=states)

    def load(self, path: Path) -> None:
        """Each takes up its own."""
        extra = self.updater.load(path)
        put(extra["random"][self.rank])
        self.done = extra["done"]


class KeptRun(RankRun):
    """A run whose state the ranks share out, and which a Checkpointer saves in parts.

    Attributes:
        keeper: the Checkpointer.
    """

    def __init__(self, recipe: Recipe, rank: int, folder: Path) -> None:
        super().__init__(recipe, rank)
        self.updater = recipe.chain().bind(self.model, zero_redundancy=True)
        self.keeper = gch.Checkpointer(folder / "run", updater=self.updater, keep=2, signals=())

    def save(self, path: Path) -> None:
        """What each rank has."""
        self.keeper.save(done=self.done)

    def go_on(self) -> None:
        """From the newest that is whole."""
        self.done = (self.keeper.resume() or {"done": 0})["done"]

    def digest(self) -> str:
        """Weights, state and random numbers of this rank."""
        self.keeper.close()
        return super().digest()


def _go(recipe: Recipe, rank: int, folder: Path, meeting: Path, board: Board, kept: bool) -> str:
    seconds = datetime.timedelta(seconds=2 * GIVEN_UP)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD, timeout=seconds)
    path, mine = folder / "run.pt", rank * SLOTS
    run = KeptRun(recipe, rank, folder) if kept else RankRun(recipe, rank)
    if isinstance(run, KeptRun):
        run.go_on()
    elif path.exists():
        run.load(path)
    board[mine + RESUMED] = run.done
    while run.done < STEPS:
        run.step()
        run.save(path)
        board[mine + SAVED] = run.done
    digest = run.digest()
    dist.destroy_process_group()
    return digest


class Pair:
    """Two ranks that go on with a run."""

    _meetings = 0

    def __init__(self, recipe: Recipe, folder: Path, board: Board, kept: bool) -> None:
        Pair._meetings += 1
        meeting = folder.parent / f"meeting{Pair._meetings}"
        for rank in range(WORLD):
            board[rank * SLOTS + RESUMED] = -1
        self.ranks = [Child(lambda r=rank: _go(recipe, r, folder, meeting, board, kept)) for rank in range(WORLD)]

    def digests(self) -> list[str]:
        """What they say at their end."""
        try:
            return [rank.said if rank.wait() else "failed: no end" for rank in self.ranks]
        finally:
            self.close()

    def close(self) -> None:
        """End both."""
        for rank in self.ranks:
            rank.close()


def one_of_two(n: int, folder: Path, kept: bool = False) -> Iterator[str]:
    """One is killed at a random time, up to twice in a run; the other one notices by itself, or is ended."""
    for heavy in ("torch._dynamo", *(["gradchain.updater.dcp"] if kept else [])):
        importlib.import_module(heavy)  # which each rank would load by itself
    for recipe in RECIPES:
        straight(recipe)  # for the same reason: its links and kernels
    rng, tried, wanted, seconds = random.Random(0), 0, {}, {}
    for number, recipe in enumerate(cycle(RECIPES)):
        if tried >= n:
            return
        board, there = Board(WORLD * SLOTS), folder / f"run{number}"
        there.mkdir()
        if recipe.name not in wanted:
            pair = Pair(recipe, there, board, kept)
            _begun(board)
            begin = time.perf_counter()
            wanted[recipe.name] = pair.digests()
            seconds[recipe.name] = time.perf_counter() - begin
            shutil.rmtree(there)
            there.mkdir()
            board = Board(WORLD * SLOTS)
        kills = 0
        for _ in range(2):
            pair, victim = Pair(recipe, there, board, kept), rng.randrange(WORLD)
            try:
                _begun(board)
                pair.ranks[victim].wait(rng.uniform(0.0, 0.7 * seconds[recipe.name]))
                pair.ranks[victim].kill()
                pair.ranks[victim].wait()
                kills += pair.ranks[victim].killed
                pair.ranks[1 - victim].wait(GIVEN_UP)
            finally:
                pair.close()
        tried += kills
        least = max(board[rank * SLOTS + SAVED] for rank in range(WORLD))
        lost = _lost(Pair(recipe, there, board, kept).digests(), wanted[recipe.name], board, least)
        yield from [lost and f"{recipe.name}: {lost}"] * kills


def _begun(board: Board) -> None:
    """Wait until both are in their loop."""
    end = time.monotonic() + GIVEN_UP
    while time.monotonic() < end and any(board[rank * SLOTS + RESUMED] < 0 for rank in range(WORLD)):
        time.sleep(0.002)


def _lost(found: list[str], wanted: list[str], board: Board, least: int) -> str:
    for rank, said in enumerate(found):
        if said.startswith("failed"):
            return f"rank {rank}: {said}"
        if board[rank * SLOTS + RESUMED] < least:
            return f"rank {rank} went on from step {board[rank * SLOTS + RESUMED]}, and {least} was saved"
    return "" if found == wanted else "they came to something else"


PROMISE = "both go on from the last save that returned on either or a newer one, and end bit for bit as without it"
KIND = Kind(
    "A rank is killed",
    "Two ranks over gloo train a model under DistributedDataParallel, each on random numbers of its own, and save "
    "after each micro-batch; one of them is killed. Both then go on from the file, as a launcher would start them.",
    (
        Fault(
            "one of two",
            "SIGKILL to one of two ranks at a random time",
            PROMISE,
            one_of_two,
            2,
            50,
        ),
        Fault(
            "one of two, in parts",
            "the same, where each rank has its part of the state and `gch.Checkpointer` saves it",
            PROMISE,
            partial(one_of_two, kept=True),
            2,
            50,
        ),
    ),
    alone=True,
)
