"""One writer for a folder: a lock of the system's, which ends with its process, and who holds it, in words.

The lock is that of `fcntl.lockf`: it works over NFS, a forked child does not have it, and nothing of it is left where a
process was killed. What such a process leaves is the file, which says who it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

from gradchain.core.notices import notice

_held: dict[tuple[int, int], int] = {}
"""Files that are locked, and by which process: to the system one process is one holder."""
_UNABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # of file systems that have no locks


class Lock:
    """The right to write into the folder of a file.

    Args:
        path: the file, which is there while the lock is held.
        owner: who says what is wrong.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._where = path, f"{owner}: {str(path.parent)!r}"
        self._handle: int | None = None
        self._key = (0, 0)
        self._process = 0

    def take(self) -> None:
        """Hold it; where it is held already, and the file is still there, nothing happens.

        Raises:
            RuntimeError: another process holds it, or another object of this one.
        """
        if self._handle is not None and self._process == os.getpid() and self._is_the_file(self._handle):
            return
        self.release()
        while True:
            with contextlib.suppress(OSError):  # asked before it is opened: to close it would give up the other's lock
                if _held.get(_key(os.stat(self._path))) == os.getpid():
                    raise self._refused("another object of this process")
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not self._locked(handle):
                said = _read(handle)
                os.close(handle)
                raise self._refused(f"process {said.get('pid')} on {said.get('host')}")
            if self._is_the_file(handle):
                break
            os.close(handle)  # who had it removed the file meanwhile
        said = _read(handle)
        if said:
            who = f"process {said.get('pid')} on {said.get('host')}"
            notice("checkpoints", f"{self._where} was being written by {who}, which did not close it: taken over.")
        self._handle, self._key, self._process = handle, _key(os.fstat(handle)), os.getpid()
        _held[self._key] = self._process
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)

    def release(self) -> None:
        """Hold it no more. A forked child leaves it to its parent."""
        handle, self._handle = self._handle, None
        if handle is None or self._process != os.getpid():
            return
        _held.pop(self._key, None)
        with contextlib.suppress(OSError):
            if self._is_the_file(handle):
                os.unlink(self._path)
        os.close(handle)

    def _is_the_file(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(handle))
        except OSError:
            return False

    def _locked(self, handle: int) -> bool:
        try:
            import fcntl  # Windows has none
        except ImportError:
            return True
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNABLE:
                return False
            notice("checkpoints", f"{self._where} has no locks: a second writer is not noticed.")
        return True

    def _refused(self, who: str) -> RuntimeError:
        return RuntimeError(
            f"{self._where} must have one writer, got a second: {who} has it. Give each "
            "run a folder of its own, or end the other."
        )


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _read(handle: int) -> dict[str, object]:
    """Who wrote itself into the file, nothing where nobody did."""
    try:
        said = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
