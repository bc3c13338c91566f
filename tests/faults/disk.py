"""A layer between Python and the disk: what is asked of a folder is seen, and may fail, stall, be cut or be killed.

Inside `with Disk(folder, before)` the calls of `open`, `io.open` and `os` on files below the folder are told of before
they are made. What `before` raises is raised in place of the call, and a number that it gives for a write is how many
bytes the disk takes of it. The calls themselves are real.
"""

from __future__ import annotations

import builtins
import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMED = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "truncate")  # that take a path
OPENED = ("write", "fsync", "close", "ftruncate", "read")  # that take what os.open gave


@dataclass(frozen=True)
class Op:
    """One call.

    Attributes:
        kind: "open", "create", "read", "write", "truncate", "fsync", "close", "rename", "unlink", "mkdir", "rmdir".
        path: of the file or folder.
        other: the new name, of a rename.
        at: where in the file, of a write; the new length, of a truncate.
        data: what is written.
        handle: which opening of the file it was; two of them never have the same.
    """

    kind: str
    path: str
    other: str = ""
    at: int = 0
    data: bytes = b""
    handle: int = 0


Before = Callable[[Op], "int | None"]


class Disk:
    """Tells of calls below a folder.

    Args:
        folder: whose files are meant; those of others are left alone.
        before: told of each call before it is made.
        after: told of it when it was made.

    Attributes:
        ops: the calls that were made and did not fail, in order.
    """

    def __init__(
        self, folder: Path, before: Before = lambda op: None, after: Callable[[Op], None] = lambda op: None
    ) -> None:
        self.root = os.path.realpath(folder)
        self.ops: list[Op] = []
        self._before, self._after = before, after
        self._open: dict[int, tuple[str, int]] = {}  # by what os.open gave: the path, and which opening it was
        self._openings = 0
        self._lock = threading.RLock()
        self._real: dict[tuple[Any, str], Any] = {}

    def __enter__(self) -> Disk:
        self._put(builtins, "open", self._opened)
        self._put(io, "open", self._opened)
        self._put(os, "open", self._os_open)
        for name in (*NAMED, *OPENED):
            self._put(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *_: object) -> None:
        for (owner, name), real in self._real.items():
            setattr(owner, name, real)

    def _put(self, owner: Any, name: str, ours: Any) -> None:
        self._real[owner, name] = getattr(owner, name)
        setattr(owner, name, ours)

    # what happens

    def call(self, op: Op, real: Callable[[int | None], Any]) -> Any:
        """Tell of a call and make it."""
        taken = self._before(op)
        found = real(taken)
        if op.kind == "write" and taken is not None:
            op = Op(op.kind, op.path, at=op.at, data=op.data[:taken], handle=op.handle)
        with self._lock:
            self.ops.append(op)
        self._after(op)
        return found

    def mine(self, path: Any) -> str | None:
        """The whole path, where it is below the folder."""
        if isinstance(path, int):
            return None
        whole = os.path.abspath(os.fspath(path))
        whole = whole if isinstance(whole, str) else os.fsdecode(whole)
        there = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        return there if there == self.root or there.startswith(self.root + os.sep) else None

    def opening(self) -> int:
        """A number that no other opening has."""
        with self._lock:
            self._openings += 1
            return self._openings

    def know(self, handle: int, path: str, opening: int) -> None:
        """What calls on this handle are about."""
        with self._lock:
            self._open[handle] = path, opening

    # open

    def _opened(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        path = self.mine(file)
        if path is None:
            return self._real[builtins, "open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, path, mode.replace("b", "").replace("t", ""), opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _os_open(self, path: Any, flags: int, *given: Any, **more: Any) -> int:
        real, mine = self._real[os, "open"], self.mine(path)
        if mine is None:
            return real(path, flags, *given, **more)
        new = bool(flags & os.O_CREAT) and (bool(flags & os.O_TRUNC) or not os.path.exists(mine))
        opening = self.opening()
        handle = self.call(
            Op("create" if new else "open", mine, handle=opening), lambda _: real(path, flags, *given, **more)
        )
        self.know(handle, mine, opening)
        return handle

    # what takes a handle

    def _of(self, kind: str, name: str, handle: int, *given: Any, at: int = 0, data: bytes = b"") -> Any:
        real = self._real[os, name]
        handle = handle if isinstance(handle, int) else handle.fileno()
        if handle not in self._open:
            return real(handle, *given)
        path, opening = self._open[handle]

        def make(taken: int | None) -> Any:
            return real(handle, data[:taken]) if kind == "write" else real(handle, *given)

        return self.call(Op(kind, path, at=at, data=data, handle=opening), make)

    def _write(self, handle: int, data: Any) -> int:
        at = os.lseek(handle, 0, os.SEEK_CUR) if handle in self._open else 0
        return self._of("write", "write", handle, data, at=at, data=bytes(data))

    def _read(self, handle: int, n: int) -> bytes:
        return self._of("read", "read", handle, n)

    def _fsync(self, handle: int) -> None:
        self._of("fsync", "fsync", handle)

    def _ftruncate(self, handle: int, length: int) -> None:
        self._of("truncate", "ftruncate", handle, length, at=length)

    def _close(self, handle: int) -> None:
        try:
            self._of("close", "close", handle)
        finally:
            self._open.pop(handle, None)

    # what takes a path

    def _named(self, kind: str, name: str, path: Any, *given: Any, other: str = "", at: int = 0, **more: Any) -> Any:
        real, mine = self._real[os, name], self.mine(path)
        if mine is None or more.get("dir_fd") is not None:  # of a walk that removes a whole folder
            return real(path, *given, **more)
        return self.call(Op(kind, mine, other=other, at=at), lambda _: real(path, *given, **more))

    def _replace(self, path: Any, other: Any, **more: Any) -> None:
        self._named("rename", "replace", path, other, other=self.mine(other) or "", **more)

    def _rename(self, path: Any, other: Any, **more: Any) -> None:
        self._named("rename", "rename", path, other, other=self.mine(other) or "", **more)

    def _link(self, path: Any, other: Any, **more: Any) -> None:
        self._named("link", "link", path, other, other=self.mine(other) or "", **more)

    def _unlink(self, path: Any, **more: Any) -> None:
        self._named("unlink", "unlink", path, **more)

    def _remove(self, path: Any, **more: Any) -> None:
        self._named("unlink", "remove", path, **more)

    def _mkdir(self, path: Any, *given: Any, **more: Any) -> None:
        self._named("mkdir", "mkdir", path, *given, **more)

    def _rmdir(self, path: Any, **more: Any) -> None:
        self._named("rmdir", "rmdir", path, **more)

    def _truncate(self, path: Any, length: int) -> None:
        self._named("truncate", "truncate", path, length, at=length)


class _Raw(io.FileIO):
    """A file that tells of what is done to it."""

    def __init__(self, disk: Disk, path: str, mode: str, opener: Any) -> None:
        self._disk, self._path, self._opening = disk, path, disk.opening()
        new = "w" in mode or "x" in mode or ("a" in mode and not os.path.exists(path))
        op = Op("create" if new else "open", path, handle=self._opening)
        if opener is None:
            disk.call(op, lambda _: io.FileIO.__init__(self, path, mode))
        else:
            io.FileIO.__init__(self, path, mode, opener=opener)  # which calls os.open, and that tells
        disk.know(self.fileno(), path, self._opening)

    def _told(self, kind: str, real: Callable[[int | None], Any], at: int = 0, data: bytes = b"") -> Any:
        return self._disk.call(Op(kind, self._path, at=at, data=data, handle=self._opening), real)

    def write(self, data: Any) -> int:
        whole = bytes(data)
        return self._told("write", lambda taken: io.FileIO.write(self, whole[:taken]), self.tell(), whole)

    def truncate(self, length: int | None = None) -> int:
        length = self.tell() if length is None else length
        return self._told("truncate", lambda _: io.FileIO.truncate(self, length), length)

    def readinto(self, buffer: Any) -> int:
        return self._told("read", lambda _: io.FileIO.readinto(self, buffer))

    def read(self, n: int = -1) -> bytes:
        return self._told("read", lambda _: io.FileIO.read(self, n))

    def readall(self) -> bytes:
        return self._told("read", lambda _: io.FileIO.readall(self))

    def close(self) -> None:
        if self.closed:
            return
        handle = self.fileno()
        try:
            self._told("close", lambda _: None)
        finally:
            self._disk._open.pop(handle, None)
            io.FileIO.close(self)
