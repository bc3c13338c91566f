"""One file on disk that is whole, or is refused: written beside its name and put there, read only once it is verified.

The file is the zip that `torch.save` writes, so that `torch.load` reads it by hand, and after it a seal of 48 bytes:
16 that say what it is, and the 32 of a checksum of all that comes before them: SHA-256 where the processor has
instructions for it, and else BLAKE2b. Either is read anywhere. The seal stands behind the zip, not in its comment: it
is made while torch writes the zip, and that ends with the length of its comment. Readers of zips look for the
directory from the end and pass over what follows it. A file of safetensors has its seal inside.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import stat
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from gradchain.engine.executors.build import features
from gradchain.updater import safe_tensors

T = TypeVar("T")

_MARK = b"gradchain seal\x01\n"
_SUMS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    _MARK: ("blake2b", partial(hashlib.blake2b, digest_size=32)),
    b"gradchain seal\x02\n": ("sha256", hashlib.sha256),
}
_KINDS_OF_SUMS = dict(_SUMS.values())
_SEAL = len(_MARK) + hashlib.blake2b(digest_size=32).digest_size
_END_OF_ZIP = b"PK\x05\x06"  # begins the last 22 bytes of a zip without a comment
_FOLDER = 0x10  # of a part that has none of its bytes read: torch hands out memory that nobody wrote to
_INSTRUCTIONS = {"sha_ni", "sha2"}  # for SHA-256, as Linux calls them on x86 and on Arm
_CHUNK = 1 << 20
SMALL = 1 << 24  # bytes of a file that is looked through again once it is read: times of files are coarse
_TRIES = 3
_STARTED = time.time()
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link that leads to itself"),
)


# writing


def write(path: Path, put: Callable[[BinaryIO], None]) -> None:
    """Have `put` write a file. The file has its name only when it is whole and on disk.

    A symbolic link stays one: what it leads to is replaced. A new file has the mode that the umask leaves, and one that
    replaces another has that one's.
    """
    with in_words("save", path):
        target = Path(os.path.realpath(path))
        _again_where_stale(partial(_write, path, target, put))
        sync_folder(target.parent)


def _write(path: Path, target: Path, put: Callable[[BinaryIO], None]) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {str(target.parent)!r}. Create it first.")
    mode = _mode_of(path, target)
    _sweep(target)
    temporary = f"{_beside(target)}{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
            written = os.fstat(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        _rename(temporary, target, written)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _rename(temporary: str, target: Path, written: os.stat_result) -> None:
    """Give a file its name. NFS may do so, lose the answer, ask again and then say that there is no such file."""
    try:
        os.replace(temporary, target)
    except OSError:
        try:
            done = os.path.samestat(os.stat(target), written)
        except OSError:
            done = False
        if not done:
            raise


def _again_where_stale(act: Callable[[], T]) -> T:
    """Do it again where NFS says that what it knew of a file or folder is stale: a new look finds it."""
    for _ in range(_TRIES - 1):
        try:
            return act()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return act()


class Sealing:
    """A file that is written to, and the checksum of all that was.

    Attributes:
        failed: what kept it from being written: torch says in place of it that its position is not what it expected.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._mark = file, _fastest()
        self._kind, make = _SUMS[self._mark]
        self._sum = make()
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it."""
        try:
            self._file.write(data)
        except OSError as error:
            self.failed = self.failed or error
            raise
        self._sum.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: who opened the file does it."""

    def seal(self) -> bytes:
        """What is to stand behind all that was written."""
        return bytes(self._mark + self._sum.digest())

    def checksum(self) -> str:
        """That of all that was written, as text."""
        return f"{self._kind}:{self._sum.hexdigest()}"


@functools.cache
def _fastest() -> bytes:
    """Which checksum this processor makes in the least time: a rule, so that it is the same in every run."""
    wanted = "sha256" if _INSTRUCTIONS & {*features().split()} else "blake2b"
    return next(mark for mark, (kind, _) in _SUMS.items() if kind == wanted)


def write_zip(contents: object, file: BinaryIO) -> None:
    """Write the zip that torch makes of `contents`, and a seal."""
    sealing = Sealing(file)
    try:
        torch.save(contents, sealing)  # type: ignore[arg-type]  # it asks for no more than that
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if sealing.failed is not None:
            raise sealing.failed from error
        raise RuntimeError(f"save: torch cannot write the contents: {error}") from error
    file.write(sealing.seal())


def _mode_of(path: Path, target: Path) -> int | None:
    """The mode of the regular file that is to be replaced, None where there is none. ValueError for anything else."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return None
    _check_regular("save", path, found.st_mode)
    return stat.S_IMODE(found.st_mode)


def sync_folder(folder: Path) -> None:
    """Put the new name on disk too: a file that is whole but not findable is lost with the power.

    The new file stands there already, so an error would say what is not so: that it was not saved.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such call
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path) -> str:
    """How the names of files begin that are being written for `path`; cut so that they fit where it fits."""
    name = path.name if len(os.fsencode(path.name)) <= 200 else path.name[:48]
    return str(path.parent / f".{name}.")


def _sweep(path: Path) -> None:
    """Remove what runs that were killed inside a write left beside `path`, if it is older than this process."""
    for left in glob.glob(f"{glob.escape(_beside(path))}*.tmp"):
        with contextlib.suppress(OSError):
            if os.stat(left).st_mtime < _STARTED:
                os.unlink(left)


# reading


def read(path: Path, owner: str) -> tuple[Any, bool]:
    """What lies in a file, verified before any of it is read into tensors, and whether the file has a seal."""
    return _again_where_stale(partial(_read, path, owner, True))


def verify(path: Path, owner: str) -> None:
    """Look through a file without reading it into tensors. ValueError where it is not whole, as `read` has it."""
    _again_where_stale(partial(_read, path, owner, False))


def seal_of(path: Path) -> str:
    """The checksum at the end of a file that has one there, "" of another."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return file.read().hex() if _has_seal(file, size) else ""


def has_checksum(file: BinaryIO, size: int, checksum: str) -> bool:
    """Whether any open file has this size and, all that lies in it, this checksum."""
    kind, _, digits = checksum.partition(":")
    if kind not in _KINDS_OF_SUMS or os.fstat(file.fileno()).st_size != size:
        return False
    file.seek(0)
    return bool(_summed(file, size, _KINDS_OF_SUMS[kind]).hexdigest() == digits)


def unzipped(file: BinaryIO, size: int) -> Any:
    """What torch wrote into a zip that lies in another file, whose checksum is right. ValueError where it is none."""
    if problem := zip_problem(file, size):
        raise ValueError(problem)
    return _unzipped(file)


def zip_problem(file: BinaryIO, size: int) -> str:
    """Why a zip cannot be one that torch wrote, and would take more memory than it has bytes; "" where it can."""
    with zipfile.ZipFile(file) as archive:
        problem = _layout(archive.infolist(), size)
    file.seek(0)
    return problem


def _read(path: Path, owner: str, wanted: bool) -> tuple[Any, bool]:
    with in_words(owner, path), opened(path, owner) as file:
        before = os.fstat(file.fileno())
        size = before.st_size
        if of_tensors := safe_tensors.is_one(file, size):
            safe_tensors.check_installed(owner, path)
        try:
            sealed = of_tensors or _has_seal(file, size)
            look = (
                partial(safe_tensors.problem, size=size) if of_tensors else partial(_problem, size=size, sealed=sealed)
            )
            problem = look(file)
            file.seek(0)
            read_it = safe_tensors.contents if of_tensors else _unzipped
            contents = read_it(file) if wanted and not problem else None
            if contents is not None and (has_changed(file, before) or (size <= SMALL and look(file))):
                problem = "it was changed while it was read"
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is to seek where no file has bytes
                raise
            raise ValueError(
                f"{owner}: {str(path)!r} cannot be read: it is cut short, or no checkpoint of gradchain "
                f"({type(error).__name__})."
            ) from error
    if problem:
        raise ValueError(f"{owner}: {str(path)!r} cannot be read: {problem}.")
    return contents, sealed


def has_changed(file: BinaryIO, before: os.stat_result) -> bool:
    """Whether somebody wrote into the open file since; one that was put in its place is another file."""
    now = os.fstat(file.fileno())
    return (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _unzipped(file: BinaryIO) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def opened(path: Path, owner: str) -> Iterator[BinaryIO]:
    """A regular file, open for reading. ValueError for what is none: opening a FIFO or a device may wait, or act."""
    _check_regular(owner, path, os.stat(path).st_mode)
    with open(path, "rb", opener=_without_waiting) as file:
        _check_regular(owner, path, os.fstat(file.fileno()).st_mode)  # it may have become another meanwhile
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag


def _has_seal(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - _SEAL))
    return file.read(len(_MARK)) in _SUMS


def _problem(file: BinaryIO, size: int, sealed: bool) -> str:
    """Why the file cannot be what was written, "" where it is: by its seal, or else by the checksums in its zip."""
    if sealed and not _is_whole(file, size):
        return "it is damaged, its checksum is not that of its contents"
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        problem = _layout(parts, size)
        if sealed or problem:
            return problem
        file.seek(max(0, size - 22))
        if file.read(4) != _END_OF_ZIP:
            return "it is damaged, it does not end where its zip ends"
        if not any(part.CRC for part in parts):  # as torch writes it under set_crc32_options(False)
            warnings.warn(
                f"load: {file.name!r} has no checksums, so nothing can tell whether it is damaged. Save it anew with "
                "updater.save.",
                stacklevel=6,
            )
            return ""
        damaged = archive.testzip()
        return "" if damaged is None else f"it is damaged, the checksum of {damaged!r} is not that of its contents"


def _layout(parts: Sequence[zipfile.ZipInfo], size: int) -> str:
    """What no zip of torch's has, "" for none of it."""
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
        return "it is compressed, which no checkpoint is"
    if any(part.is_dir() or part.external_attr & _FOLDER for part in parts):
        return "it is damaged, it has folders in it"
    if sum(part.file_size for part in parts) > size:
        return "it is damaged, its parts are larger than the file"
    return ""


def _is_whole(file: BinaryIO, size: int) -> bool:
    """Whether the checksum in the seal is that of what lies before it."""
    file.seek(size - _SEAL)
    mark, digest = file.read(len(_MARK)), file.read()
    file.seek(0)
    return bool(_summed(file, size - _SEAL, _SUMS[mark][1]).digest() == digest)


def _summed(file: BinaryIO, left: int, make: Callable[[], Any]) -> Any:
    """The checksum of so many bytes from here on."""
    found = make()
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        found.update(chunk)
        left -= len(chunk)
    return found


# both


def path_of(owner: str, path: str | PathLike[str]) -> Path:
    """The path that a user gave. TypeError or ValueError for what cannot be one."""
    if not isinstance(path, (str, PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{owner}: path must be a str or an os.PathLike of one, got {type(path).__name__}.")
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise ValueError(f"{owner}: path must be the name of a file, got {os.fspath(path)!r}.")
    return Path(path)


def _check_regular(owner: str, path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
        raise ValueError(f"{owner}: {str(path)!r} must be a regular file, got {kind}.")


@contextmanager
def in_words(owner: str, path: Path) -> Iterator[None]:
    """An OSError of the system says which file it is about, and keeps its class and number."""
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is None:  # it is in words already
            raise
        gone = f"the folder of {str(path)!r} was removed. Create it again." if owner == "save" else ""
        raise FileNotFoundError(f"{owner}: {gone or f'there is no file {str(path)!r}.'}") from None
    except OSError as error:
        what = "written" if owner == "save" else "read"
        made = type(OSError(error.errno, ""))(f"{owner}: {str(path)!r} cannot be {what}: {error.strerror or error}.")
        made.errno = error.errno
        raise made from error
