"""Compiling a kernel at run time: from source to a loaded function, through a private cache.

Compiling is trusted code with enemies: the folder is private or not used, a file is checked in a child process before
this one loads it, and any failure is a sentence, after which another executor does the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

FORMAT = 1
TIME_LIMIT = 60.0
_FLAGS = (
    "-O3",
    "-march=native",
    "-shared",
    "-fPIC",
    "-std=gnu11",
    "-fno-math-errno",  # sqrt may then be one instruction; no number changes
    "-fno-trapping-math",  # a select may then compute both sides; no number changes
    "-ffp-contract=off",  # every operation rounds, as in the reference
)


class NoKernel(Exception):  # noqa: N818  # not an error: another executor does the work
    """Why a kernel could not be made; said once, and in `explain()`."""


def load(source: str) -> ctypes.CDLL:
    """The compiled and loaded library of this source, from the cache if it is there.

    Raises:
        NoKernel: there is no compiler, it failed or hung, or no folder is fit to load code from.
    """
    if os.environ.get("GRADCHAIN_NATIVE", "1") == "0":
        raise NoKernel("GRADCHAIN_NATIVE=0")
    try:
        return _loaded(source)
    except OSError as error:
        raise NoKernel(f"the kernel could not be written or loaded: {error}") from error


def _loaded(source: str) -> ctypes.CDLL:
    name, version = compiler()
    key = hashlib.sha256("\0".join([source, *_FLAGS, name, version, str(FORMAT), _machine()]).encode()).hexdigest()
    folder = cache_folder()
    path = folder / f"{key[:40]}.so"
    if not _is_ours(path):
        _compile(name, source, path)
    return ctypes.CDLL(str(path))


@functools.cache
def compiler() -> tuple[str, str]:
    """The C compiler and what it says of its version."""
    for name in ("gcc", "clang", "cc"):
        found = shutil.which(name)
        if found is not None:
            try:
                told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return found, told.stdout.partition("\n")[0]
    raise NoKernel("no C compiler: neither gcc, clang nor cc is in PATH and runs")


@functools.cache
def _machine() -> str:
    """What a file built here depends on: the pointer size and the processor's features as the system reports them."""
    features = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            features += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        features += platform.processor()
    return f"{8 * ctypes.sizeof(ctypes.c_void_p)} {features}"


@functools.cache
def cache_folder() -> Path:
    """A folder that is ours alone: the user's cache, or a temporary one for this process where that is not fit."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    try:
        folder = Path(home) / "gradchain"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder) and _can_run(folder):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="gradchain-"))


def _is_private(folder: Path) -> bool:
    """Whether nobody else can put a file into the folder, or another folder in its place."""
    me = os.getuid()
    own = os.lstat(folder)
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != me or own.st_mode & 0o077:
        return False
    for parent in folder.absolute().parents:
        above = os.lstat(parent)
        shared = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(above.st_mode) or above.st_uid not in (0, me) or shared:
            return False
    return True


def _can_run(folder: Path) -> bool:
    """Whether code may be loaded from the folder's file system."""
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


def _is_ours(path: Path) -> bool:
    """Whether the file is there, and we alone wrote it."""
    try:
        own = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(own.st_mode) and own.st_uid == os.getuid() and not own.st_mode & 0o022


def _compile(name: str, source: str, path: Path) -> None:
    """Build in a private folder, check in a child, and rename into place: others see a whole file or none."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as work:
        written, built = Path(work) / "kernel.c", Path(work) / "kernel.so"
        written.write_text(source, encoding="utf-8")
        _run([name, *_FLAGS, "-o", str(built), str(written), "-lm"], "the compiler")
        check = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run"
        _run([sys.executable, "-I", "-S", "-c", check, str(built)], "loading the kernel in a child")
        os.chmod(built, 0o700)
        os.replace(built, path)


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise NoKernel(f"{what} took over {TIME_LIMIT:.0f} s") from None
    if done.returncode:
        raise NoKernel(f"{what} failed: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
