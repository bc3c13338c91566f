"""Compiling a kernel at run time: from source to a loaded function, through a private cache.

Compiling is trusted code with enemies. A folder that others could write to is not used, a file is loaded only if it is
whole and was run once by a child process, and any failure is a sentence, after which the reference does the work.

Which folders. Kernels are kept in `$XDG_CACHE_HOME/gradchain`, or `~/.cache/gradchain`, where that folder is ours alone
(0700) and nobody else can put another in its place: no parent is a link, another user's (root's are fine) or writable
by others. Sticky folders such as /tmp are no place for it either: their entries are safe from others, but cleaners
remove what is old, and the name is then anybody's. A temporary folder may lie in one: its name is new, and it is gone
as soon as its kernel is loaded, which is sooner than the process's exit and leaves nothing behind a killed one.

What a file is called. `<key>-<sum>.so`: the key is the hash of all that the file depends on, the sum that of the file
itself, so that one rename publishes both and a file cut short by a full disk or a crash is known by its name. Of more
than MOST_FILES or MOST_BYTES those go that were not loaded for longest; who has loaded one keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

FORMAT = 3
TIME_LIMIT = 60.0  # seconds for one compilation, or for one check
ROOM = 1 << 20  # free bytes below which nothing is built: a compiler on a full disk fails in a hundred ways
MOST_FILES = 256
MOST_BYTES = 64 << 20
CPUINFO = "/proc/cpuinfo"

_LOG = logging.getLogger("gradchain.engine")
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.so")
_SILENCE = "or set GRADCHAIN_NATIVE=0 to silence this"
# Of gcc's third level kernels need vectors alone: what else it does to the ends of loops takes up to half of the time
# to compile, and gains none to run.
_LEVELS = {True: ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"), False: ("-O3",)}
_FLAGS = (
    "-shared",
    "-fPIC",
    "-std=gnu11",
    "-fno-math-errno",  # sqrt may then be one instruction; no number changes
    "-fno-trapping-math",  # a select may then compute both sides; no number changes
    "-ffp-contract=off",  # every operation rounds, as in the reference
    # gcc 12 moves a load into the side of a choice that reads it, and then loads one vector under the mask of another
    "-fno-tree-sink",
)
# How one says "for this processor" differs; where it is not known, code is built for all of the kind.
_NATIVE_FLAGS = {
    **dict.fromkeys(("x86_64", "amd64", "i686", "s390x"), ("-march=native",)),
    **dict.fromkeys(("aarch64", "arm64", "ppc64le"), ("-mcpu=native",)),
}

# Run by a child, with the file and a bound on every index in the source. It looks whether loading changes how this
# process computes with tiny numbers (-ffast-math hidden in a compiler's own settings does), then runs the kernel on no
# items, which touches no memory, and on one item long enough to meet every instruction.
_CHECK = """
import ctypes, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except Exception:
    pass
tiny = 5e-324
run = ctypes.CDLL(sys.argv[1]).run
if tiny * 1.0 == 0.0:  # whether such operands or such results count as zero
    sys.exit("it changes the arithmetic of the whole process, as -ffast-math does")
size, n = int(sys.argv[2]), 1000
numbers = [(ctypes.c_double * size)() for _ in range(3)]
data = [(ctypes.c_double * n)() for _ in range(size)]
rows = [(ctypes.c_int64 * 1)(ctypes.addressof(d)) for d in data]
table = (ctypes.c_void_p * size)(*map(ctypes.addressof, rows))
borders = [(ctypes.c_int64 * 1)(i) for i in (0, 0, n)]
pointers = [ctypes.c_void_p(ctypes.addressof(a)) for a in (*borders, table, *numbers)]
run.restype = None
for items in (0, 1):
    run(ctypes.c_int64(items), *pointers)
"""


class NoKernel(Exception):  # noqa: N818  # not an error: the reference does the work
    """Why a kernel could not be made; warned of once, and in `explain()`."""


class _Stuck(NoKernel):
    """The compiler did not end in time: it is not asked again, whatever the source."""


class _Unfit(OSError):  # noqa: N818  # an answer, like the one above
    """Why a folder is no place for code."""


class _Process:
    """What this process remembers, so that no step does again what an earlier one did, or failed to do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.libraries: dict[str, ctypes.CDLL] = {}
        self.failures: dict[str, str] = {}
        self.compilers: dict[str, tuple[str, str] | NoKernel] = {}
        self.machine = ""
        self.warned = False
        self.without_cache = ""  # what it means and why, where no cache folder was fit


_process = _Process()


def _after_fork() -> None:
    # another thread of the parent may have held it, and is not here to let go; what is loaded stays loaded
    _process.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def load(source: str) -> ctypes.CDLL:
    """The compiled and loaded library of this source, from the cache if it is there.

    A failure is remembered, so that it costs nothing at the next step, and the first of a process is warned of. Where
    no cache folder is fit, all runs as fast as ever, and that kernels are built anew is a notice.

    Raises:
        NoKernel: it is turned off, there is no compiler, it failed or hung, or no folder is fit to load code from.
    """
    if os.environ.get("GRADCHAIN_NATIVE", "1") == "0":
        raise NoKernel("GRADCHAIN_NATIVE=0 turns native kernels off")
    try:
        with _process.lock:
            told, found = _process.without_cache, _library_for(source)
    except NoKernel as reason:
        _warn(reason)
        raise
    if _process.without_cache != told:
        _LOG.warning("%s", _process.without_cache)
    return found


def without_cache() -> str:
    """That kernels are built anew in every process, and why; "" where they are kept."""
    return _process.without_cache


def _warn(reason: NoKernel) -> None:
    if not _process.warned:
        _process.warned = True
        warnings.warn(f"gradchain runs without native kernels, several times slower: {reason}", stacklevel=3)


def _library_for(source: str) -> ctypes.CDLL:
    if os.name != "posix":
        raise NoKernel(f"native kernels are for Linux and macOS, not for {os.name}; {_SILENCE[3:]}")
    name, version = compiler()
    told = flags(version)
    parts = [source, told, name, version, FORMAT, _machine()]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    if key not in _process.libraries:
        why = _process.failures.get(key) or _process.failures.get(name)
        if why is not None:
            raise NoKernel(why)
        try:
            _process.libraries[key] = _library([name, *told], source, key)
        except NoKernel as reason:
            _process.failures[name if isinstance(reason, _Stuck) else key] = str(reason)
            raise
    return _process.libraries[key]


def flags(version: str) -> tuple[str, ...]:
    """What a compiler is told, by what it says of its version."""
    level = _LEVELS["Free Software Foundation" in version]  # clang goes by the name of gcc, too
    return (*level, *_FLAGS, *_NATIVE_FLAGS.get(platform.machine().lower(), ()))


def compiler() -> tuple[str, str]:
    """The first C compiler in PATH that runs, and what it says of its version."""
    path = os.environ.get("PATH", os.defpath)
    if path not in _process.compilers:
        try:
            _process.compilers[path] = _searched(path)
        except NoKernel as reason:
            _process.compilers[path] = reason
    found = _process.compilers[path]
    if isinstance(found, NoKernel):
        raise NoKernel(str(found))
    return found


def _searched(path: str) -> tuple[str, str]:
    tried = []
    for name in ("gcc", "clang", "cc"):
        found = shutil.which(name, path=path)
        if found is None:
            continue
        found = os.path.abspath(found)
        try:
            told = _call([found, "--version"], "asking for its version", min(10.0, TIME_LIMIT))
        except NoKernel as reason:
            tried.append(str(reason))
            continue
        if told.returncode == 0:
            return found, told.stdout
        tried.append(f"{found} --version {_fate(told)}")
    why = "none of gcc, clang and cc is in PATH" if not tried else "; ".join(tried)
    raise NoKernel(f"native kernels need a C compiler, and {why}; install gcc or clang, {_SILENCE}")


def _machine() -> str:
    """What a file built here depends on: the C library, the pointer size, the processor's features as reported."""
    if not _process.machine:
        library = ""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        bits = 8 * ctypes.sizeof(ctypes.c_void_p)
        _process.machine = f"{sys.platform} {platform.machine()} {bits} {library} {features()}"
    return _process.machine


def features() -> str:
    """What the processor can do, as the system reports it."""
    if sys.platform == "darwin":
        with contextlib.suppress(NoKernel):
            return _call(["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"], "sysctl", 10.0).stdout
    try:
        with open(CPUINFO, encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


# folders


def _library(command: list[str], source: str, key: str) -> ctypes.CDLL:
    """From the cache, or built there; built in a temporary folder where the cache is unfit, read-only or full."""
    try:
        cache = cache_folder()
        return _from_cache(cache, key) or _built(command, source, cache, cache / key)
    except OSError as error:
        unfit = str(error)
    try:
        with tempfile.TemporaryDirectory(prefix="gradchain-", ignore_cleanup_errors=True) as made:
            folder = Path(os.path.realpath(made))  # /tmp is a link on macOS: what is judged is where it leads
            _private(folder, sticky=True)
            found = _built(command, source, folder)
            _process.without_cache = _process.without_cache or (
                f"native kernels are compiled anew in every process, for the cache is refused ({unfit}); point "
                "XDG_CACHE_HOME at a folder of yours alone"
            )
            return found
    except OSError as error:
        raise NoKernel(
            f"no folder is fit to build native kernels in: the cache ({unfit}), a temporary one ({error}); point "
            f"XDG_CACHE_HOME or TMPDIR at a folder of yours alone, {_SILENCE}"
        ) from error


def cache_folder() -> Path:
    """Where kernels are kept, made and judged from the root down.

    Raises:
        OSError: it is not fit.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # then it is to be ignored, says the XDG specification
        base = os.path.join(_home(), ".cache")
    folder = Path(os.path.normpath(base)) / "gradchain"
    _private(folder, sticky=False)
    return folder


def _home() -> str:
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd  # not there on Windows

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise _Unfit("there is no home folder: neither XDG_CACHE_HOME nor HOME is an absolute path") from None


def _private(folder: Path, sticky: bool) -> None:
    """Make sure that nobody else can put a file into the folder, or another folder in its place.

    Args:
        folder: the folder; it and its parent are made if they are missing.
        sticky: whether parents may be open to all where nobody can remove what is another's.

    Raises:
        OSError: they can, or nothing may be loaded from there; the sentence says where and why.
    """
    me = os.geteuid()
    for step in (*reversed(folder.parents), folder):
        if step in (folder, folder.parent) and not os.path.lexists(step):
            with contextlib.suppress(FileExistsError):  # another process was faster
                step.mkdir(mode=0o700)
        own = os.lstat(step)
        if stat.S_ISLNK(own.st_mode):
            raise _Unfit(f"{step} is a link")
        if not stat.S_ISDIR(own.st_mode):
            raise _Unfit(f"{step} is not a folder")
        if own.st_uid != me and (own.st_uid != 0 or step == folder):
            raise _Unfit(f"{step} belongs to user {own.st_uid}")
        if step == folder and own.st_mode & 0o077:
            raise _Unfit(f"{step} has mode {stat.S_IMODE(own.st_mode):04o}, not 0700")
        if own.st_mode & 0o022 and not (sticky and own.st_mode & stat.S_ISVTX):
            raise _Unfit(f"{step} is writable by others")
    # where Python does not know the flag (macOS), the check in a child finds out
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise _Unfit(f"{folder} is on a file system mounted noexec")


# files


def _from_cache(folder: Path, key: str) -> ctypes.CDLL | None:
    """The library from the cache, if it is there, ours and whole; anything else of its name goes."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _is_sound(path):
            with contextlib.suppress(OSError):
                found = ctypes.CDLL(str(path))
                with contextlib.suppress(OSError):
                    os.utime(path)  # it is used: the oldest go first
                return found
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _is_sound(path: Path) -> bool:
    """Whether we alone wrote the file, and it is what its name says."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            own = os.fstat(file.fileno())
            ours = stat.S_ISREG(own.st_mode) and own.st_uid == os.geteuid() and not own.st_mode & 0o022
            return ours and path.stem.endswith("-" + _sum(file.read()))
    except OSError:
        return False


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _built(command: list[str], source: str, folder: Path, keep: Path | None = None) -> ctypes.CDLL:
    """Build in a private folder, check in a child, load; first rename into place where it is to be kept.

    Others see a whole file or none; two that build at once write the same file twice.

    Raises:
        OSError: the folder cannot be written.
        NoKernel: there is nothing to load.
    """
    _room(folder)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder, ignore_cleanup_errors=True) as work:
        built = Path(work, "kernel.so")
        built.with_suffix(".c").write_text(source, encoding="utf-8")
        _compile([*command, "-o", built.name, "kernel.c", "-lm", "-lpthread"], work)
        _check(built, source)
        if keep is not None:
            built.chmod(0o700)
            final = keep.with_name(f"{keep.name}-{_sum(built.read_bytes())}.so")
            os.replace(built, final)
            built = final
            _trim(folder, final)
        return ctypes.CDLL(str(built))


def _trim(folder: Path, newest: Path) -> None:
    """Remove what was not used for longest, where there is too much. Of our own files only; what goes wrong may."""
    ours = []
    for path in folder.glob("*-*.so"):
        with contextlib.suppress(OSError):  # another process was faster
            own = os.lstat(path)
            if _NAME.fullmatch(path.name) and stat.S_ISREG(own.st_mode) and own.st_uid == os.geteuid():
                ours.append((path == newest, own.st_mtime_ns, own.st_size, path))
    room = MOST_BYTES
    for i, (_, _, size, path) in enumerate(sorted(ours, reverse=True)):
        room -= size
        if path != newest and (i >= MOST_FILES or room < 0):
            with contextlib.suppress(OSError):
                path.unlink()


def _room(folder: Path | str) -> None:
    if shutil.disk_usage(folder).free < ROOM:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: under {ROOM >> 20} MiB free", str(folder))


def _compile(command: list[str], work: str) -> None:
    """Run the compiler in the private folder, where it has its own temporary files too."""
    done = _call(command, "compiling a kernel", TIME_LIMIT, cwd=work, TMPDIR=work, LC_ALL="C")
    if done.returncode:
        _room(work)  # had it no room for its output, another folder may
        raise NoKernel(f"the C compiler {command[0]} {_fate(done)}; repair it, {_SILENCE}")


def _check(built: Path, source: str) -> None:
    """Load and run the file in a child: what kills a process kills that one."""
    if getattr(sys, "frozen", False) or not sys.executable:  # it would be the application, started anew
        raise NoKernel(
            f"a frozen application has no Python to check native kernels with; start it by Python, {_SILENCE}"
        )
    size = 1 + max(map(int, re.findall(r"\[[^\]]*?(\d+)\]", source)), default=0)
    command = [sys.executable, "-I", "-S", "-c", _CHECK, str(built), str(size)]
    # should the child be something else than a plain Python, it does not end up here again
    done = _call(command, "running a kernel in a child", TIME_LIMIT, GRADCHAIN_NATIVE="0")
    if done.returncode:
        raise NoKernel(f"a child that ran a new native kernel {_fate(done)}; install another C compiler, {_SILENCE}")


# children


def _call(
    command: list[str], what: str, limit: float, cwd: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program without a shell, with nothing to read, and end it and all it started at the time limit."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **environment},
            start_new_session=True,  # its own process group, to be killed as a whole
        )
    except OSError as error:
        raise NoKernel(f"{command[0]} cannot be run ({error.strerror}); repair it, {_SILENCE}") from error
    try:
        out, told = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise _Stuck(f"{what} with {command[0]} took over {limit:g} s; repair it, {_SILENCE}") from None
    except BaseException:
        _kill(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, told)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def _fate(done: subprocess.CompletedProcess[str]) -> str:
    """How a program failed, in a few words of a sentence."""
    if done.returncode < 0:
        try:
            return f"died of {signal.Signals(-done.returncode).name}"
        except ValueError:
            return f"died of signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")
    return f"failed with exit code {done.returncode} ({told[:200]})"
