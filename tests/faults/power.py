"""What may lie on a disk when the power goes: all that was synced, and of the rest what the disk pleased to write.

A file has on disk what it had when it was last synced. Of what was written since, any part may be there: whole writes,
pieces of them, and none; where its length came to the disk without its bytes, it has zeros. A name is what it was when
its folder was last synced; the changes since are there up to any of them, whatever became of the bytes.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disk import Disk, Op

WAYS = ("nothing", "names", "bytes", "all", "zeros", "torn", "half")


@dataclass
class _File:
    synced: bytes = b""
    since: list[Op] = field(default_factory=list)  # writes and truncates

    def content(self, of: Sequence[Op]) -> bytearray:
        found = bytearray(self.synced)
        for op in of:
            if op.kind == "truncate":
                del found[op.at :]
                found.extend(bytes(op.at - len(found)))
            else:
                found.extend(bytes(max(0, op.at - len(found))))
                found[op.at : op.at + len(op.data)] = op.data
        return found

    def left(self, way: str, rng: random.Random) -> bytes:
        """What is there of it, in this way."""
        if way in ("nothing", "names"):
            return self.synced
        if way == "zeros":
            return self.synced + bytes(max(0, len(self.content(self.since)) - len(self.synced)))
        if way == "half":
            return bytes(self.content(self.since[: rng.randint(0, len(self.since))]))
        if way == "torn":
            kept = [op for op in self.since if rng.random() < 0.5]
            kept = [
                Op(op.kind, op.path, at=op.at, data=op.data[: rng.randint(0, len(op.data))])
                if op.kind == "write" and rng.random() < 0.5
                else op
                for op in kept
            ]
            return bytes(self.content(kept))
        return bytes(self.content(self.since))


class Stored:
    """What a disk holds after some calls.

    Args:
        folder: the folder the calls were made in.
        ops: the calls, which began with an empty folder.
    """

    def __init__(self, folder: Path, ops: Sequence[Op]) -> None:
        self._root = os.path.realpath(folder)
        self._files: list[_File] = []
        self._names: dict[str, int | None] = {}  # as a program sees them; None for a folder
        self._durable: dict[str, int | None] = {}
        self._changes: list[tuple[str, dict[str, int | None]]] = []  # of which folder, and the names that it changed
        self._opened: dict[int, int] = {}
        for op in ops:
            self._do(op)

    def _do(self, op: Op) -> None:
        if op.kind == "create":
            self._files.append(_File())
            self._change(op.path, len(self._files) - 1)
        elif op.kind == "mkdir":
            self._change(op.path, None)
        elif op.kind in ("unlink", "rmdir"):
            self._change(op.path, -1)
        elif op.kind == "rename":
            number = self._names.get(op.path)
            if number is not None:
                self._change(op.other, number, op.path)
        elif op.kind == "fsync" and self._is_folder(op.path):
            for at, (folder, names) in enumerate(self._changes):
                if folder == op.path:
                    self._apply(self._durable, names)
                    self._changes[at] = (folder, {})
        if op.kind in ("create", "open"):
            number = self._names.get(op.path)
            if number is not None:
                self._opened[op.handle] = number
        file = self._files[self._opened[op.handle]] if op.handle in self._opened else None
        if file is not None and op.kind == "fsync":
            file.synced, file.since = bytes(file.content(file.since)), []
        elif file is not None and op.kind in ("write", "truncate"):
            file.since.append(op)

    def _is_folder(self, path: str) -> bool:
        return path == self._root or (path in self._names and self._names[path] is None)

    def _change(self, path: str, number: int | None, gone: str = "") -> None:
        names = {path: number, **({gone: -1} if gone else {})}
        self._apply(self._names, names)
        self._changes.append((os.path.dirname(path), names))

    @staticmethod
    def _apply(to: dict[str, int | None], names: dict[str, int | None]) -> None:
        for path, number in names.items():
            if number == -1:
                to.pop(path, None)
            else:
                to[path] = number

    def put(self, image: Path, way: str, rng: random.Random) -> None:
        """Lay out in a folder what is there after the power has gone."""
        names = dict(self._durable)
        if way in ("names", "all", "zeros"):
            after = len(self._changes)
        else:
            after = rng.randint(0, len(self._changes)) if way in ("half", "torn") else 0
        for _, changed in self._changes[:after]:
            self._apply(names, changed)
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir()
        for path, number in sorted(names.items()):
            there = image / os.path.relpath(path, self._root)
            if not there.parent.is_dir():
                continue  # the folder that it is in is not on disk
            if number is None:
                there.mkdir(exist_ok=True)
            else:
                there.write_bytes(self._files[number].left(way, rng))


def images(folder: Path, ops: Sequence[Op], image: Path, rng: random.Random, n: int) -> Iterator[tuple[int, str]]:
    """Lay out in `image` what may be there after each prefix of the calls, in each way; gives how many, and the way.

    Where there are more of them than n, these are drawn from all: what is tried seldom is of the last calls too.
    """
    cases = [(many, way) for many in range(len(ops) + 1) for way in WAYS]
    for many, way in cases if n >= len(cases) else sorted(rng.sample(cases, n)):
        Stored(folder, ops[:many]).put(image, way, rng)
        yield many, way


def cut(
    n: int, folder: Path, saves: Callable[[Path, Callable[[int], None]], None], found: Callable[[Path], int]
) -> Iterator[str]:
    """What is wrong after each of n cuts: there must be the last save that returned, or the one under way.

    Args:
        n: how many.
        folder: for files of the trials.
        saves: saves into a folder some times, and calls what it is given with the step of each save that returned.
        found: the step that a new process would go on from in a folder, 0 for none.
    """
    rng, tried, there, image = random.Random(0), 0, folder / "there", folder / "image"
    while tried < n:
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir()
        returned, ops = _recorded(there, saves)
        for many, way in images(there, ops, image, rng, n - tried):
            least = max(step for after, step in returned if after <= many)
            try:
                step = found(image)
            except Exception as error:
                yield f"after {many} calls, {way}: {error!r}"
            else:
                wrong = f"after {many} calls, {way}: step {step} is there, and {least} was saved"
                yield "" if least <= step <= least + 1 else wrong
            tried += 1
            if tried >= n:
                return


def _recorded(
    there: Path, saves: Callable[[Path, Callable[[int], None]], None]
) -> tuple[list[tuple[int, int]], list[Op]]:
    """After how many calls of the disk which step was saved, and the calls."""
    returned = [(0, 0)]
    with Disk(there) as disk:
        saves(there, lambda step: returned.append((len(disk.ops), step)))
    return returned, disk.ops
