"""A run that `Checkpointer` looks after: kills, a disk without power, room or order, clocks, other writers."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import faults_kills as kills
from disk import Disk, Op
from fault_runs import RECIPES, STEPS, Recipe, Run, straight
from faults_world import NUMBERS, SENTENCE, calls_of, raising, until_full
from killing import Board
from power import cut
from what_goes_wrong import Fault, Kind

import gradchain as gch

RECIPE = RECIPES["window in .grad"]
SAVES = 3


Make = Callable[[Recipe], Run]


class Kept:
    """A run and its Checkpointer, which goes on from what is there.

    Args:
        folder: where to.
        make: makes the run.

    Attributes:
        run: the run.
        keeper: its Checkpointer.
    """

    def __init__(self, folder: Path, make: Make = Run) -> None:
        self.run = make(RECIPE)
        self.keeper = gch.Checkpointer(folder, updater=self.run.updater, keep=2, signals=())
        with warnings.catch_warnings(record=True) as self.told:
            warnings.simplefilter("always")
            extra = self.keeper.resume()
        self.run.done = extra["done"] if extra else 0

    def step(self) -> None:
        """A micro-batch, saved."""
        self.run.step()
        self.save()

    def save(self) -> None:
        """As it is."""
        self.keeper.save(done=self.run.done)


def looked_after(run: Run, folder: Path, board: Board, background: bool = False) -> None:
    """Go on from the newest whole file, and save after each micro-batch."""
    behind = 2 if background else 0  # one is being written then, and one waits
    with gch.Checkpointer(folder, updater=run.updater, keep=2, background=background) as keeper:
        extra = keeper.resume()
        run.done = board[kills.RESUMED] = extra["done"] if extra else 0
        while run.done < STEPS:
            run.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a save had to wait for the disk
                keeper.save(done=run.done)
            board[kills.SAVED] = max(board[kills.SAVED], run.done - behind)


def found_in(folder: Path, make: Make = Run) -> int:
    """The step that a new process would go on from, 0 for none."""
    kept = Kept(folder, make)
    kept.keeper.close()
    return kept.run.done


def power(n: int, folder: Path, make: Make = Run) -> Iterator[str]:
    """In a new folder; what is there is of the last save that returned or the one under way."""

    def saves(there: Path, returned: Callable[[int], None]) -> None:
        kept = Kept(there / "run", make)
        for _ in range(SAVES):
            kept.step()
            returned(kept.run.done)
        kept.keeper.close()

    return cut(n, folder, saves, lambda image: found_in(image / "run", make))


class Tried:
    """A run that is looked after, in which single saves go wrong.

    Args:
        folder: for its files.
        make: makes the run.

    Attributes:
        kept: the run and its Checkpointer.
    """

    def __init__(self, folder: Path, make: Make = Run) -> None:
        self.folder, self.make, self.kept = folder / "run", make, Kept(folder / "run", make)
        for _ in range(5):
            self.kept.step()
        self.least = self.kept.run.done

    def saved(self) -> str:
        """Save, and say what was lost."""
        digest = self.kept.run.digest()
        try:
            self.kept.save()
        except OSError as error:
            if not SENTENCE.fullmatch(str(error)):
                return f"it said {error!r}"
        return "" if self.kept.run.digest() == digest else "the run is another"

    def loads(self) -> str:
        """What is in the folder, in a copy that another may go on from."""
        copy, state = self.folder.with_name("copy"), self.kept.run.digest()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns(".lock"))
        kept = Kept(copy, self.make)
        found = kept.run
        kept.keeper.close()
        if found.done < self.least:
            return f"step {found.done} is there, and {self.least} was saved"
        return "" if found.done != self.kept.run.done or found.digest() == state else "what is there is another run"

    def end(self) -> str:
        """Whether it goes on in memory as one that nothing happened to, and saves again."""
        self.kept.keeper.resume()  # where the random numbers of this process are the run's again
        while self.kept.run.done < STEPS:
            self.kept.step()
        digest = self.kept.run.digest()
        self.kept.keeper.close()
        same = digest == straight(RECIPE, make=self.make) and found_in(self.folder, self.make) == STEPS
        return "" if same else "it came to something else"


def full(n: int, folder: Path, make: Make = Run) -> Iterator[str]:
    """No room after so many bytes: of the file, then of the manifest."""
    tried = Tried(folder, make)
    size = sum(len(op.data) for op in calls_of(tried.kept.save, tried.folder))
    for room in range(0, size, max(1, size // n)):
        with Disk(tried.folder, until_full(room)):
            lost = tried.saved()
        yield (lost or tried.loads()) and f"room for {room} bytes: {lost or tried.loads()}"
    yield tried.end()


def broken(n: int, folder: Path, make: Make = Run) -> Iterator[str]:
    """An error at each call of a save, of each number."""
    tried = Tried(folder, make)
    many = len(calls_of(tried.kept.save, tried.folder))
    for number, at in itertools.islice(itertools.cycle(itertools.product((*NUMBERS, errno.ESTALE), range(many))), n):
        seen = itertools.count()
        with Disk(tried.folder, raising(number, lambda op, at=at, seen=seen: next(seen) == at)):
            lost = tried.saved()
        lost = lost or tried.loads()
        yield lost and f"{errno.errorcode[number]} at call {at}: {lost}"
    yield tried.end()


def removed(n: int, folder: Path, make: Make = Run) -> Iterator[str]:
    """The folder goes at each call of a save; the next save makes it again."""
    tried = Tried(folder, make)
    many = len(calls_of(tried.kept.save, tried.folder))
    for at in itertools.islice(itertools.cycle(range(many)), n):
        seen = itertools.count()

        def before(op: Op, at: int = at, seen: Iterator[int] = seen) -> None:
            if next(seen) == at:
                os.rename(tried.folder, folder / "gone")

        with Disk(tried.folder, before):
            lost = tried.saved()
        shutil.rmtree(folder / "gone", ignore_errors=True)
        lost = lost or tried.saved() or tried.loads()
        yield lost and f"gone at call {at}: {lost}"
    yield tried.end()


def changed(n: int, folder: Path) -> Iterator[str]:
    """The newest file is changed at each call of a resume: cut, one bit, another in its place, gone."""
    kept, rng, there = Kept(folder / "run"), random.Random(0), folder / "run"
    for _ in range(9):  # files of updates 1 and 2, of which the second was saved in a window too
        kept.step()
    kept.keeper.close()
    names = {file.name: file.read_bytes() for file in there.iterdir()}
    newest = max(name for name in names if name.endswith(".pt"))
    old = time.time() - 60
    for file in there.iterdir():
        os.utime(file, (old, old))
    digests = {0: Run(RECIPE).digest()}
    run = Run(RECIPE)
    while run.done < 9:
        run.step()
        digests[run.done] = run.digest()
    many = len(calls_of(lambda: found_in(there), there))
    for k in range(n):
        seen, way, at = itertools.count(), k % 4, k // 4 % many

        def before(op: Op, at: int = at, seen: Iterator[int] = seen, way: int = way) -> None:
            if next(seen) == at:
                change(there / newest, way, rng)

        try:
            with Disk(there, before):
                found = Kept(there)
            found.keeper.close()
            lost = "" if found.run.digest() == digests[found.run.done] else f"step {found.run.done} is another"
            lost = lost or ("" if found.run.done else "nothing was loaded")
        except (ValueError, OSError) as error:
            lost = f"it said {error!r}"
        yield lost and f"changed in way {way} at call {at} of {many}: {lost}"
        for name, data in names.items():
            (there / name).write_bytes(data)
            os.utime(there / name, (old, old))


def change(path: Path, way: int, rng: random.Random) -> None:
    """A file is cut, another by one bit, another one, or gone."""
    if way == 0:
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif way == 1:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with path.open("r+b") as file:
            file.write(data)
    elif way == 2:
        other = path.with_name("other")
        other.write_bytes(rng.randbytes(5000))
        os.replace(other, path)
    else:
        path.unlink(missing_ok=True)


def clocks(n: int, folder: Path) -> Iterator[str]:
    """The clock jumps by years between any two saves, and so do the times of files."""
    rng, real = random.Random(0), time.time
    for k in range(n):
        there = folder / str(k)
        kept = Kept(there)
        for _ in range(5):
            with mock.patch.object(time, "time", lambda: real() + rng.uniform(-1e9, 1e9)):
                kept.step()
            for file in there.iterdir():
                when = real() + rng.uniform(-1e9, 1e9)
                os.utime(file, (when, when))
        kept.keeper.close()
        found = found_in(there)
        yield "" if found == 5 else f"step {found} is there, and 5 was saved"


def two(n: int, folder: Path) -> Iterator[str]:
    """A second one in a folder that is being written into."""
    kept = Kept(folder / "run")
    kept.step()
    for _ in range(n):
        try:
            Kept(folder / "run")
            yield "the second was not noticed"
        except RuntimeError as error:
            kept.step()
            yield "" if "one writer" in str(error) else f"it said {error!r}"


SAYS = "`save` says so or has saved, a new process goes on from the last save that returned, and the run is not changed"
BEHIND = "the run goes on from the last file but two that was asked for, or a newer one, and ends bit for bit the same"
KIND = Kind(
    "A run that is looked after",
    "`gch.Checkpointer` saves after each micro-batch, keeps two files, and goes on by `resume`; runs, kills and "
    "disks are those of the sections on `kills`, `power` and `world`.",
    (
        Fault("anywhere", "SIGKILL at a random time", kills.EQUAL, partial(kills.anywhere, looked_after), 3, 30),
        Fault("inside", "SIGKILL inside the write of a file", kills.EQUAL, partial(kills.inside, looked_after), 3, 30),
        Fault(
            "in the background",
            "SIGKILL inside the write of a file, while the run goes on",
            BEHIND,
            partial(kills.inside, partial(looked_after, background=True)),
            3,
            40,
        ),
        Fault(
            "power",
            "the power goes at any call, in a folder that is new",
            "`resume` goes on from the last save that returned, or the one under way",
            power,
            120,
            400,
        ),
        Fault("full", "the disk is full after so many bytes, of the file or the manifest", SAYS, full, 15, 100),
        Fault("broken", "EIO, ENOSPC, EDQUOT, EROFS, EACCES or ESTALE at each call", SAYS, broken, 40, 100),
        Fault("removed", "the folder is removed at each call of a save", "the next makes it anew", removed, 8, 30),
        Fault(
            "changed",
            "the newest file is cut, changed by a bit, replaced or removed at each call of `resume`",
            "the run is one that was saved, bit for bit",
            changed,
            40,
            160,
        ),
        Fault("clocks", "the clock and the times of files jump by years", "the newest is gone on from", clocks, 2, 5),
        Fault("two", "a second Checkpointer in one folder", "it is refused, and the first goes on", two, 3, 10),
    ),
    alone=True,
)
