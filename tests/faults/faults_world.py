"""A disk that is full, slow, broken, read-only or gone, and files that change under the reader."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from disk import Disk, Op
from fault_runs import RECIPES, STEPS, Run, straight
from killing import Child, in_child
from what_goes_wrong import Fault, Kind

import gradchain as gch

RECIPE = RECIPES["window in .grad"]
SENTENCE = re.compile(r"(save|load): [^\n]+\.")
NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
NOBODY = 65534


class Tried:
    """A run in the middle of a window with a file, and what is left of both when something went wrong.

    Attributes:
        run: the run.
        path: its file.
        old: the bytes of the last save that returned.
    """

    def __init__(self, folder: Path, steps: int = 6) -> None:
        self.run, self.folder = Run(RECIPE), folder / "run"
        while self.run.done < steps:
            self.run.step()
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / "run.pt"
        self.run.save(self.path)
        self.old, self._digest = self.path.read_bytes(), self.run.digest()

    def saved(self, act: Callable[[], None] | None = None, swept: bool = True) -> str:
        """Save, or do what saves; "" where it was refused in a sentence and all is as it was, or was saved."""
        try:
            (act or (lambda: self.run.save(self.path)))()
        except OSError as error:
            if not SENTENCE.fullmatch(str(error)) or error.errno is None:
                return f"it said {error!r}"
            if self.path.read_bytes() != self.old:
                return "the file is another, and an error was raised"
        else:
            again = Run(RECIPE)
            again.load(self.path)
            if again.digest() != self._digest:
                return "no error was raised, and the file is not that of the run"
            self.run.load(self.path)  # where the random numbers of this process are again those of the run
            self.old = self.path.read_bytes()
        if swept and sorted(os.listdir(self.folder)) != [self.path.name]:
            return f"left in the folder: {sorted(os.listdir(self.folder))}"
        return self.same()

    def same(self) -> str:
        """Whether the run is what it was."""
        return "" if self.run.digest() == self._digest else "the run is another"

    def end(self) -> str:
        """Whether it goes on in memory as one that nothing happened to, saves again, and that loads."""
        while self.run.done < STEPS:
            self.run.step()
        digest = self.run.digest()
        self.run.save(self.path)
        again = Run(RECIPE)
        again.load(self.path)
        return "" if digest == again.digest() == straight(RECIPE) else "it came to something else"


def raising(number: int, when: Callable[[Op], bool]) -> Callable[[Op], None]:
    """The disk says this where it is asked for that."""

    def before(op: Op) -> None:
        if when(op):
            raise OSError(number, os.strerror(number))

    return before


def calls_of(act: Callable[[], object], folder: Path) -> list[Op]:
    """The calls that it makes."""
    with Disk(folder) as disk:
        act()
    return disk.ops


# room


def full(n: int, folder: Path) -> Iterator[str]:
    """No room after each byte of a small file, or after every so many-th."""
    path = folder / "small.pt"
    updater = gch.sgd(0.1, momentum=0.9).bind(torch.nn.Linear(1, 1))
    updater.save(path)
    old = path.read_bytes()
    for room in range(0, len(old), max(1, len(old) // n)):
        lost = "no error was raised"
        with Disk(folder, until_full(room)):
            try:
                updater.save(path)
            except OSError as error:
                lost = "" if SENTENCE.fullmatch(str(error)) and error.errno == errno.ENOSPC else f"it said {error!r}"
        if path.read_bytes() != old or os.listdir(folder) != [path.name]:
            lost = "the file is another, or something is left beside it"
        yield lost and f"room for {room} bytes: {lost}"


def full_run(n: int, folder: Path) -> Iterator[str]:
    """The same in the middle of a run, whose file is larger, and which goes on."""
    tried = Tried(folder)
    for room in range(0, len(tried.old), max(1, len(tried.old) // n)):
        with Disk(tried.folder, until_full(room)):
            lost = tried.saved()
        yield lost and f"room for {room} bytes: {lost}"
    yield tried.end()


def until_full(room: int) -> Callable[[Op], int | None]:
    """A disk that takes so many bytes more."""
    left = room

    def before(op: Op) -> int | None:
        nonlocal left
        if op.kind != "write":
            return None
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(left, len(op.data))
        left -= taken
        return taken

    return before


def limited(n: int, folder: Path) -> Iterator[str]:
    """The system itself refuses to write on, after so many bytes: by a limit of the process."""
    tried, rng = Tried(folder), random.Random(0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def act(room: int) -> str:
        tried.run.load(tried.path)  # Python gives a fork other random numbers
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        lost = tried.saved()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return lost or tried.end()

    for _ in range(n):
        yield in_child(lambda: act(rng.randrange(len(tried.old))))
        tried.path.write_bytes(tried.old)


# errors


def broken(n: int, folder: Path) -> Iterator[str]:
    """An error at each call of a save, of each number; once, and from there on."""
    tried = Tried(folder)
    many = len(calls_of(lambda: tried.run.save(tried.path), tried.folder))
    cases = itertools.product((False, True), NUMBERS, range(many))
    for on, number, at in itertools.islice(itertools.cycle(cases), n):
        seen = itertools.count()
        fails = raising(number, lambda op, at=at, on=on, seen=seen: (k := next(seen)) == at or (on and k > at))
        with Disk(tried.folder, fails):
            lost = tried.saved(swept=not on) if not on else _unread(tried)
        for left in tried.folder.glob(".run.pt.*.tmp"):  # of a disk that could not remove it either
            left.unlink()
        yield lost and f"{errno.errorcode[number]} at call {at}{' and after' if on else ''}: {lost}"
    yield tried.end()


def _unread(tried: Tried) -> str:
    """Of a disk that is gone for good: the run says so and is what it was; the file is looked at later."""
    try:
        tried.run.save(tried.path)
    except OSError as error:
        if not SENTENCE.fullmatch(str(error)):
            return f"it said {error!r}"
    return tried.same()


def unreadable(n: int, folder: Path) -> Iterator[str]:
    """An error at each call of a load."""
    tried = Tried(folder)
    many = len(calls_of(lambda: tried.run.load(tried.path), tried.folder))
    for at in itertools.islice(itertools.cycle(range(many)), n):
        seen, lost = itertools.count(), ""
        with Disk(tried.folder, raising(errno.EIO, lambda op, at=at, seen=seen: next(seen) == at)):
            try:
                tried.run.load(tried.path)
            except (OSError, ValueError) as error:
                lost = "" if SENTENCE.fullmatch(str(error)) else f"it said {error!r}"
        yield lost or tried.same()
    yield tried.end()


def short(n: int, folder: Path) -> Iterator[str]:
    """The disk takes a part of each write, of any length."""
    tried, rng = Tried(folder), random.Random(0)

    def before(op: Op) -> int | None:
        return rng.randint(1, len(op.data)) if op.kind == "write" and op.data else None

    for _ in range(n):
        with Disk(tried.folder, before):
            yield tried.saved()


def interrupted(n: int, folder: Path) -> Iterator[str]:
    """A signal every half millisecond, whose handler does nothing."""
    tried = Tried(folder)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        for _ in range(n):
            signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
            lost = tried.saved()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            yield lost
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def read_only(n: int, folder: Path) -> Iterator[str]:
    """A folder that this user may not write into, as the system has it."""
    tried = Tried(folder)
    folder.chmod(0o711)

    def act() -> str:
        tried.run.load(tried.path)  # Python gives a fork other random numbers
        tried.folder.chmod(0o555)
        if not os.geteuid():
            os.seteuid(NOBODY)
        with suppress(OSError):
            (tried.folder / "x").touch()
            return "the folder is not read-only"
        return tried.saved()

    for _ in range(n):
        yield in_child(act)
    tried.folder.chmod(0o755)


def removed(n: int, folder: Path) -> Iterator[str]:
    """The folder goes at each call of a save."""
    tried = Tried(folder)
    many = len(calls_of(lambda: tried.run.save(tried.path), tried.folder))
    for at in itertools.islice(itertools.cycle(range(many)), n):
        seen = itertools.count()

        def before(op: Op, at: int = at, seen: Iterator[int] = seen) -> None:
            if next(seen) == at:
                os.rename(tried.folder, folder / "gone")

        lost, told = "", False
        with Disk(tried.folder, before):
            try:
                tried.run.save(tried.path)
            except OSError as error:
                told = True
                lost = (
                    ""
                    if SENTENCE.fullmatch(str(error)) and "there is no file" not in str(error)
                    else f"it said {error!r}"
                )
        if not told and not (folder / "gone" / "run.pt").exists():
            lost = "it was not saved, and nothing was said"
        shutil.rmtree(folder / "gone", ignore_errors=True)
        tried.folder.mkdir(exist_ok=True)
        yield f"gone at call {at}: {lost}" if lost else tried.saved()
    yield tried.end()


# files


def flipped(n: int, folder: Path) -> Iterator[str]:
    """One bit of a file is another, or its end is missing."""
    tried, rng = Tried(folder), random.Random(0)
    for k in range(n):
        data, at = bytearray(tried.old), rng.randrange(len(tried.old))
        if k % 4:
            data[at] ^= 1 << rng.randrange(8)
        else:
            del data[at:]
        tried.path.write_bytes(data)
        try:
            tried.run.load(tried.path)
        except Exception as error:
            refused = isinstance(error, ValueError) and SENTENCE.fullmatch(str(error))
            yield tried.same() if refused else f"it said {error!r}"
        else:
            yield f"byte {at} was loaded as it was not saved"
    tried.path.write_bytes(tried.old)
    yield tried.end()


def two_writers(n: int, folder: Path) -> Iterator[str]:
    """Two processes save to one name as fast as they can, and a third loads."""
    path = folder / "run.pt"
    Run(RECIPE).save(path)

    def write() -> str:
        run = Run(RECIPE)
        while True:
            run.save(path)
            run.step()

    writers = [Child(write) for _ in range(2)]
    again = Run(RECIPE)
    try:
        for _ in range(n):
            time.sleep(0.002)
            try:
                again.load(path)
                yield ""
            except (OSError, ValueError) as error:
                yield str(error)
    finally:
        for writer in writers:
            writer.close()
            if not writer.killed:
                yield writer.said


STAYS = "`save` says so in one sentence, the file before loads, and the run goes on in memory bit for bit"
KIND = Kind(
    "The disk",
    "A layer below `open` and `os` refuses or cuts short what `updater.save` and `updater.load` ask of the disk; where "
    "the system can do it, it does. Lost is an error without a sentence, a file before that is not what it was, a file "
    "that does not load, something left beside it, or a run that is not what it was or comes to something else.",
    (
        Fault(
            "full",
            "the disk is full, at each byte of a small file",
            "`save` says so, the file before stays",
            full,
            40,
            3000,
        ),
        Fault("full in a run", "the disk is full, after so many bytes of a run's file", STAYS, full_run, 20, 300),
        Fault("limited", "the system refuses to write beyond a length", STAYS, limited, 4, 30),
        Fault(
            "broken",
            "EIO, ENOSPC, EDQUOT, EROFS or EACCES at each call of a save: open, write, fsync, close, rename, fsync of "
            "the folder; once, or from there on",
            STAYS,
            broken,
            60,
            400,
        ),
        Fault("unreadable", "EIO at each call of a load", "`load` says so, nothing is changed", unreadable, 30, 300),
        Fault("short", "writes that take a part of the bytes", "the file is whole", short, 5, 60),
        Fault("interrupted", "a signal every half millisecond of a save", "the file is whole", interrupted, 5, 60),
        Fault("read-only", "a folder that may not be written into", STAYS, read_only, 2, 10),
        Fault(
            "removed",
            "the folder is removed at each call of a save",
            f"{STAYS}; into a new folder it saves again",
            removed,
            8,
            60,
        ),
        Fault(
            "flipped",
            "one bit of a file is wrong, or its end is missing",
            "`load` says so, nothing is changed",
            flipped,
            30,
            1000,
        ),
        Fault(
            "two writers",
            "two processes save to one name at once",
            "whoever loads gets a whole file",
            two_writers,
            20,
            200,
        ),
    ),
    alone=True,
)
