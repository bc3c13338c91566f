"""Compiling at run time meets its enemies: missing, broken and hanging compilers, bad folders, planted files, forks.

A scenario is the real thing where this machine allows it (mounts and other users take root), and simulated elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import warnings
from pathlib import Path

import pytest
import torch

import gradchain as gch
from gradchain.engine import build, print_c
from gradchain.engine.lower import Program

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
GCC = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
PATH = os.environ.get("PATH", os.defpath)
# what a process without torch does: the file alone is enough to compile
ALONE = f"""
import importlib.util, os, sys, time, ctypes
spec = importlib.util.spec_from_file_location("build", os.environ.get("BUILD_PY", {build.__file__!r}))
build = importlib.util.module_from_spec(spec); sys.modules["build"] = build; spec.loader.exec_module(build)
def answer(source):
    out = (ctypes.c_double * 1)()
    run = build.load(source).run
    run.restype = None
    run(ctypes.c_int64(1), *[ctypes.c_void_p()] * 6, ctypes.c_void_p(ctypes.addressof(out)))
    return out[0]
"""

pytestmark = pytest.mark.skipif(os.name != "posix" or GCC is None, reason="the scenarios need POSIX and a C compiler")
needs_root = pytest.mark.skipif(not ROOT, reason="takes root: other users' files, mounts")


def kernel(number, before="", after=""):
    """A kernel that answers with a number, and what else it does."""
    return textwrap.dedent(
        f"""\
        #include <stdint.h>
        {before}
        void run(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,
                 const int64_t* const* columns, const double* scalars, const double* entries, double* out) {{
          for (int64_t k = 0; k < items; ++k) {{ out[k] = {number}; {after} }}
        }}
        """
    )


def answer(library):
    out = (ctypes.c_double * 1)()
    library.run.restype = None
    library.run(ctypes.c_int64(1), *[ctypes.c_void_p()] * 6, ctypes.c_void_p(ctypes.addressof(out)))
    return out[0]


def forget(monkeypatch):
    """Begin as a new process does."""
    monkeypatch.setattr(build, "_process", build._Process())


@pytest.fixture
def base(monkeypatch, tmp_path):
    """A private XDG_CACHE_HOME, not below a sticky folder as tmp_path is; temporary folders go to tmp_path/tmp."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("GRADCHAIN_NATIVE", raising=False)
    forget(monkeypatch)
    made = Path(tempfile.mkdtemp(prefix=".gradchain-test-", dir=os.path.realpath(Path.home())))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made))
    try:
        build._private(made, sticky=False)
    except OSError as error:
        shutil.rmtree(made)
        pytest.skip(f"the home folder is no place for kernels: {error}")
    try:
        yield made
    finally:
        shutil.rmtree(made)
    assert os.listdir(tmp_path / "tmp") == [], "temporary folders are gone once their kernels are loaded"


@pytest.fixture
def cache(base):
    """The folder kernels are kept in."""
    return base / "gradchain"


def fake(tmp_path, monkeypatch, script, version="echo fake 1.0", name="gcc"):
    """Make a script the only compiler in PATH. Returns the log that it writes a line to each time it compiles."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir(exist_ok=True)
    text = f"#!/bin/sh\nPATH={PATH}\nif [ $1 = --version ]; then {version}; exit; fi\necho run >> {log}\n{script}\n"
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    log.touch()
    return log


def refused(source, *words):
    """`load` says why not, with a cure, in one line; it warns of it the first time."""
    first = not build._process.warned
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(build.NoKernel) as caught:
            build.load(source)
    told = str(caught.value)
    for word in (*words, "GRADCHAIN_NATIVE=0"):
        assert word in told
    assert "\n" not in told
    assert [told in str(w.message) for w in seen] == ([True] if first else [])
    return told


def in_a_temporary_folder(source, *words):
    """`load` builds for this process alone; it says so, and why, the first time, and so does `explain()`."""
    first = not build._process.without_cache
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert answer(build.load(source)) == 7
    for word in ("anew in every process", "XDG_CACHE_HOME", *words):
        assert word in build.without_cache()
    assert [str(w.message) for w in seen] == ([f"gradchain: {build.without_cache()}"] if first else [])


def script(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(Path(gch.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir(mode=0o700, exist_ok=True)
    command, env = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], {"PATH": PATH}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"root may not mount here: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], env=env, check=True)


# the file that is kept


def test_a_kernel_is_kept_privately_under_its_key_and_its_sum(cache, monkeypatch):
    old = os.umask(0)  # the worst one
    try:
        assert answer(build.load(kernel(7))) == 7
    finally:
        os.umask(old)
    [path] = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o700
    assert path.name[33:] == hashlib.sha256(path.read_bytes()).hexdigest()[:32] + ".so"
    forget(monkeypatch)
    monkeypatch.setattr(build, "_built", None)  # a second process builds nothing
    assert answer(build.load(kernel(7))) == 7


def test_it_is_built_in_a_private_folder_without_a_shell_and_checked_before_it_is_in_place(cache, monkeypatch):
    calls, real = [], build._call

    def call(command, what, limit, cwd=None, **environment):
        calls.append(what)
        if what == "compiling a kernel":
            assert isinstance(command, list) and limit == build.TIME_LIMIT
            assert stat.S_IMODE(os.stat(cwd).st_mode) == 0o700 and Path(cwd).parent == cache
            assert environment["TMPDIR"] == cwd
        if what == "running a kernel in a child":
            assert not list(cache.glob("*.so")) and command[0] == sys.executable
        return real(command, what, limit, cwd, **environment)

    monkeypatch.setattr(build, "_call", call)
    build.load(kernel("7 /* $(touch x); `touch y` */"))
    build.load(kernel("7 /* $(touch x); `touch y` */"))
    assert calls == ["asking for its version", "compiling a kernel", "running a kernel in a child"]
    assert [p.suffix for p in cache.iterdir()] == [".so"]


@pytest.mark.parametrize("changed", ["source", "flags", "path", "version", "format", "pointers", "libc", "features"])
def test_the_key_depends_on_all_that_the_file_depends_on(changed, base, monkeypatch, tmp_path):
    keys = []
    monkeypatch.setattr(build, "_library", lambda command, source, key: keys.append(key))
    monkeypatch.setattr(build, "CPUINFO", str(tmp_path / "cpuinfo"))
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2\n\nprocessor : 1\nflags : fpu avx2\n")
    fake(tmp_path, monkeypatch, "exit 1")
    build.load(kernel(7))
    forget(monkeypatch)
    build.load(kernel(7))
    assert keys[0] == keys[1]
    forget(monkeypatch)
    if changed == "flags":
        monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
    elif changed == "path":
        os.rename(tmp_path / "bin" / "gcc", tmp_path / "bin" / "clang")
    elif changed == "version":
        fake(tmp_path, monkeypatch, "exit 1", version="echo fake 2.0")
    elif changed == "format":
        monkeypatch.setattr(build, "FORMAT", build.FORMAT + 1)
    elif changed == "pointers":
        monkeypatch.setattr(build.ctypes, "sizeof", lambda kind: 4)
    elif changed == "libc":
        monkeypatch.setattr(build.os, "confstr", lambda name: "glibc 1.0")
    elif changed == "features":  # the home folder is shared with another processor
        (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    build.load(kernel(8 if changed == "source" else 7))
    assert keys[2] != keys[0]


def test_a_file_built_for_another_processor_is_not_loaded(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "CPUINFO", str(tmp_path / "cpuinfo"))
    (tmp_path / "cpuinfo").write_text("flags : fpu avx512f\n")
    build.load(kernel(7))
    forget(monkeypatch)
    (tmp_path / "cpuinfo").write_text("flags : fpu\n")
    build.load(kernel(7))
    assert len(list(cache.iterdir())) == 2


def test_no_flag_changes_the_arithmetic_or_brings_a_second_openmp():
    flags = [*build._FLAGS, *(f for native in build._NATIVE_FLAGS.values() for f in native)]
    assert "-ffp-contract=off" in flags
    for flag in flags:
        assert not re.search(r"fast|unsafe|finite|associative|reciprocal|signed-zeros|limited-range|openmp", flag), flag


def tiny():
    """Numbers that are zero to a process whose arithmetic was changed."""
    return float("5e-324") * 1.0, sys.float_info.min * 0.5, torch.full((64,), 1e-40).mul(0.5).sum().item()


def test_loading_leaves_tiny_numbers_alone(base):
    before = tiny()
    assert all(before)
    build.load(kernel(7))
    build.load(print_c.source(*random_program(0)))
    assert tiny() == before


# what is too much goes


def planted(cache, number, days=0, size=100):
    """A file named as a kernel is, loaded so many days ago."""
    path = cache / f"{number:032x}-{number:032x}.so"
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - 86400 * days,) * 2)
    return path


def test_the_kernels_not_loaded_for_longest_go(cache, monkeypatch):
    monkeypatch.setattr(build, "MOST_FILES", 3)
    build.load(kernel(7))
    [used] = cache.iterdir()
    old = [planted(cache, i, days=i) for i in range(1, 4)]
    os.utime(used, (0, 0))
    forget(monkeypatch)
    assert answer(build.load(kernel(7))) == 7  # loading it is use
    build.load(kernel(8))
    assert used.exists() and old[0].exists()
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(build, "MOST_BYTES", 1)
    library = build.load(kernel(9))
    assert len(list(cache.iterdir())) == 1, "the newest stays, whatever its size"
    assert answer(library) == 9 and answer(build.load(kernel(7))) == 7  # what is loaded stays loaded


def test_only_our_own_files_go(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "MOST_FILES", 1)
    build.load(kernel(7))
    target = planted(tmp_path, 1)
    link = cache / f"{2:032x}-{2:032x}.so"
    link.symlink_to(target)
    folder = cache / f"{3:032x}-{3:032x}.so"
    folder.mkdir()
    strange = cache / "notes-of-mine.so"
    strange.write_text("")
    gone = planted(cache, 4, days=9)
    build.load(kernel(8))
    assert not gone.exists()
    assert all(os.path.lexists(path) for path in (target, link, folder, strange))


def test_files_that_go_meanwhile_are_no_failure(cache, monkeypatch):
    monkeypatch.setattr(build, "MOST_FILES", 0)
    planted(build.cache_folder(), 1)
    real = os.lstat

    def raced(path, *args, **kwargs):
        if str(path).endswith(".so"):
            os.unlink(path) if "0001-" in str(path) else None
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "lstat", raced)
    assert answer(build.load(kernel(7))) == 7


def test_explain_says_that_the_cache_is_refused(base, monkeypatch):
    assert "anew in every process" not in explained()
    base.chmod(0o777)
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="anew in every process"):
        assert f"the cache is refused ({base} is writable by others)" in explained()


def explained():
    model = torch.nn.Linear(2, 2)
    updater = fresh(gch.sgd(0.1).bind(model))
    updater.update(model(torch.ones(2)).sum())
    return updater.explain()


# what the source may say


def random_program(seed):
    rng = random.Random(seed)
    dtypes = [rng.choice(list(print_c.TYPES)) for _ in range(rng.randint(1, 4))]
    program = Program(columns=list(range(len(dtypes))), scalars=[0, 1, 2], entries=[0, 1])
    truths = []

    def operand():
        kinds = [
            ("load", rng.randrange(len(dtypes))),
            ("scalar", rng.randrange(3)),
            ("entry", rng.randrange(2)),
            ("zero",),
        ]
        if program.instructions:
            kinds += [("value", rng.randrange(len(program.instructions)))] * 3
        return rng.choice(kinds)

    for i in range(rng.randint(1, 30)):
        op = rng.choice(list(print_c.EXPRESSIONS)) if truths else "lt"
        arity = 1 + max(map(int, re.findall(r"\{(\d)\}", print_c.EXPRESSIONS[op])))
        operands = [operand() for _ in range(arity)]
        if op in ("and", "or", "not", "where"):
            operands[0] = rng.choice(truths)
        if op in ("and", "or"):
            operands[1] = rng.choice(truths)
        program.instructions.append((op, tuple(operands)))
        if op in print_c._BOOLEAN:
            truths.append(("value", i))
    if rng.random() < 0.5:
        program.reduce = (rng.choice(list(print_c._REDUCTIONS)), operand())
    else:
        program.stores = [(column, operand()) for column in program.columns]
    return program, dtypes


def foreign(source):
    """What a source has besides digits and words that stand in the printer's own file."""
    own = set(re.findall(r"[A-Za-z_]\w*", Path(print_c.__file__).read_text())) | {
        "sqrtf",
        "powf",
    }  # made from sqrt, pow
    found = {re.sub(r"(?<=^[a-z])\d+$", "", word) for word in re.findall(r"[A-Za-z_]\w*", source)} - own
    found |= set(re.findall(r"[^\w\s#<>(){}\[\]+\-*/=!?:;,.&|~]", source))
    return found | {
        i for i in re.findall(r"#\s*include.*", source) if i not in ("#include <stdint.h>", "#include <math.h>")
    }


@pytest.mark.parametrize("seed", range(60))
def test_the_source_holds_only_digits_and_our_own_words(seed):
    assert foreign(print_c.source(*random_program(seed))) == set()


@pytest.mark.parametrize("evil", ['"x"', "system(1)", "'x'", "$", "x\\", "#include </etc/passwd>", "__asm__"])
def test_a_foreign_word_would_be_seen(evil):
    assert foreign(print_c.source(*random_program(0)) + evil)


def test_names_and_numbers_of_the_user_do_not_reach_the_source(monkeypatch):
    sources = []

    def load(source):
        sources.append(source)
        raise build.NoKernel("not now")

    monkeypatch.setattr(build, "load", load)
    evil = '*) __attribute__((constructor)) void f() { system("reboot"); } (*'
    model = torch.nn.ParameterDict({evil: torch.nn.Parameter(torch.ones(3))})
    chain = gch.chain((evil, gch.clip_by_norm(0.125)), gch.scale_by_adam(b1=0.8125), gch.scale_by_learning_rate(0.0625))
    updater = fresh(chain.bind(model))
    updater.update(sum(p.sum() for p in model.parameters()))
    assert sources
    for source in sources:
        assert foreign(source) == set()
        assert not any(number in source for number in ("125", "8125", "1875", "0625"))


# folders


def owned_by_another(folder, monkeypatch):
    if ROOT:
        os.chown(folder, NOBODY, NOBODY)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(build.os, "geteuid", lambda: mine + 1)


BAD_FOLDERS = {
    "a link": "is a link",
    "a parent is a link": "is a link",
    "not a folder": "is not a folder",
    "another's": "belongs to user",
    "a parent is another's": "belongs to user",
    "readable by others": "has mode 0755, not 0700",
    "writable by the group": "has mode 0770, not 0700",
    "a parent is writable by the group": "is writable by others",
    "a parent is writable by all": "is writable by others",
    "a parent is sticky": "is writable by others",
    "noexec": "is on a file system mounted noexec",
}


def spoil(how, base, monkeypatch):
    cache = base / "gradchain"
    cache.mkdir(mode=0o700)
    if how == "a link":
        (base / "elsewhere").mkdir(mode=0o700)
        cache.rmdir()
        cache.symlink_to(base / "elsewhere")
    elif how == "a parent is a link":
        (base / "real").mkdir(mode=0o700)
        (base / "link").symlink_to(base / "real")
        monkeypatch.setenv("XDG_CACHE_HOME", str(base / "link"))
    elif how == "not a folder":
        cache.rmdir()
        cache.touch(mode=0o700)
    elif how == "another's":
        owned_by_another(cache, monkeypatch)
    elif how == "a parent is another's":
        owned_by_another(base, monkeypatch)
    elif how == "noexec":
        real = os.statvfs
        told = types.SimpleNamespace(f_flag=getattr(os, "ST_NOEXEC", 8))
        monkeypatch.setattr(build.os, "ST_NOEXEC", 8, raising=False)
        monkeypatch.setattr(build.os, "statvfs", lambda path: told if Path(path) == cache else real(path))
    else:
        mode = {"by others": 0o755, "by the group": 0o770, "by all": 0o707, "is sticky": 0o1777}
        where = base if how.startswith("a parent") else cache
        where.chmod(next(m for words, m in mode.items() if how.endswith(words)))


@pytest.mark.parametrize("how", BAD_FOLDERS)
def test_an_unfit_cache_is_refused_and_a_temporary_folder_used(how, base, monkeypatch):
    spoil(how, base, monkeypatch)
    with pytest.raises(OSError, match=BAD_FOLDERS[how]):
        build.cache_folder()
    before = sorted(base.rglob("*"))
    if "another" in how and not ROOT:
        return  # pretending to be somebody else, nothing is ours
    in_a_temporary_folder(kernel(7))
    in_a_temporary_folder(kernel(7))
    assert sorted(base.rglob("*")) == before, "nothing was built where it is refused"


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770])
def test_a_temporary_folder_may_lie_in_a_sticky_one_only(mode, base, monkeypatch, tmp_path):
    spoil("readable by others", base, monkeypatch)
    (tmp_path / "tmp").chmod(mode)
    if mode & stat.S_ISVTX:
        in_a_temporary_folder(kernel(7))
    else:
        refused(kernel(7), "no folder is fit", "has mode 0755", "tmp is writable by others", "XDG_CACHE_HOME or TMPDIR")


def test_a_link_on_the_way_to_a_temporary_folder_is_looked_through(base, monkeypatch, tmp_path):
    spoil("readable by others", base, monkeypatch)
    (tmp_path / "link").symlink_to(tmp_path / "tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    in_a_temporary_folder(kernel(7))


@needs_root
def test_a_disk_mounted_noexec_is_not_used(base):
    with mounted(base / "gradchain", "noexec,mode=700") as cache:
        with pytest.raises(OSError, match="noexec"):
            build.cache_folder()
        in_a_temporary_folder(kernel(7))
        assert os.listdir(cache) == []


@needs_root
def test_where_everything_is_noexec_there_is_no_kernel(base, tmp_path):
    with mounted(base / "gradchain", "noexec,mode=700"), mounted(tmp_path / "tmp", "noexec"):
        refused(kernel(7), "the cache (", "a temporary one (", "noexec")


@needs_root
@pytest.mark.parametrize("size", ["16k", "512k"])
def test_a_full_disk_is_left_for_a_temporary_folder(base, size):
    with mounted(base / "gradchain", f"size={size},mode=700") as cache:
        in_a_temporary_folder(kernel(7))
        assert os.listdir(cache) == []


@needs_root
def test_a_disk_that_fills_up_meanwhile_is_left_for_a_temporary_folder(base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, f'head -c 2000000 /dev/zero > fill || exit 1; rm fill; exec {GCC} "$@"')
    with mounted(base / "gradchain", "size=1500k,mode=700") as cache:
        in_a_temporary_folder(kernel(7))
        assert os.listdir(cache) == []
    assert log.read_text().count("run") == 2


def test_where_everything_is_full_there_is_no_kernel(cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    refused(kernel(7), "the cache ([Errno 28]", "a temporary one ([Errno 28]")
    assert os.listdir(cache) == []


def test_a_kernel_on_a_full_disk_is_still_loaded(cache, monkeypatch):
    build.load(kernel(7))
    forget(monkeypatch)
    monkeypatch.setattr(build, "ROOM", 1 << 60)
    assert answer(build.load(kernel(7))) == 7


def test_a_home_that_cannot_be_written(base, tmp_path):
    """Somebody else's process, whose home is read-only: root may write everywhere."""
    python = sys.executable
    if ROOT:
        python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(p)), "")
        if not python or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]).returncode:
            pytest.skip("no Python that another user may run")
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as open_to_all:
        os.chmod(open_to_all, 0o755)
        shutil.copy(build.__file__, Path(open_to_all, "build.py"))
        home, tmp = Path(open_to_all, "home"), Path(open_to_all, "tmp")
        home.mkdir(mode=0o755)
        tmp.mkdir()
        tmp.chmod(0o1777)
        home.chmod(0o555)
        code = ALONE + "with __import__('contextlib').suppress(OSError): build.cache_folder(); print('fit')\n"
        code += f"print(answer({kernel(7)!r}))"
        done = subprocess.run(
            [python, "-c", code],
            env={"PATH": PATH, "HOME": str(home), "TMPDIR": str(tmp), "BUILD_PY": str(Path(open_to_all, "build.py"))},
            cwd="/",
            capture_output=True,
            text=True,
            **({"user": NOBODY, "group": NOBODY, "extra_groups": []} if ROOT else {}),
        )
        assert done.stdout == "7.0\n"
        assert "anew in every process" in done.stderr
        assert os.listdir(tmp) == os.listdir(home) == []


@pytest.mark.parametrize("xdg", [None, "", "relative/cache", "~/cache"])
def test_only_an_absolute_xdg_cache_home_counts(xdg, base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(base))
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert build.cache_folder() == base / ".cache" / "gradchain"
    assert stat.S_IMODE((base / ".cache").stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == ["tmp"]


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_the_user_s_entry_counts_and_without_that_nothing(home, base, monkeypatch):
    import pwd

    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: types.SimpleNamespace(pw_dir=str(base)))
    assert build.cache_folder() == base / ".cache" / "gradchain"

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(OSError, match="there is no home folder"):
        build.cache_folder()
    in_a_temporary_folder(kernel(7))


def test_a_home_that_is_not_there_is_not_made(base, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(base / "gone"))
    in_a_temporary_folder(kernel(7))
    assert not (base / "gone").exists()


# planted and damaged files


def plant(cache, how):
    """Put a kernel that answers 666 under the name of the one that answers 7. Returns the planted path."""
    # by a child: the loader answers for a name it knows without looking at the file
    script(ALONE + f"build.load({kernel(666)!r})")
    [bad] = cache.iterdir()
    script(ALONE + f"build.load({kernel(7)!r})")
    [good] = set(cache.iterdir()) - {bad}
    evil = bad.read_bytes()
    path = cache / f"{good.name[:32]}-{hashlib.sha256(evil).hexdigest()[:32]}.so"
    good.unlink()
    shutil.copy(bad, path)
    if how == "another's":
        os.chown(path, NOBODY, NOBODY)
    elif how == "writable by others":
        path.chmod(0o722)
    elif how == "writable by the group":
        path.chmod(0o770)
    elif how == "a link":
        path.unlink()
        path.symlink_to(bad)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path, 0o700)
    elif how == "a folder":
        path.unlink()
        path.mkdir(mode=0o700)
    elif how == "renamed":
        path = path.rename(good)
    elif how == "no kernel":
        path = path.rename(cache / f"{good.name[:32]}-{hashlib.sha256(b'junk').hexdigest()[:32]}.so")
        path.write_bytes(b"junk")
    elif how.startswith("cut to "):
        path = path.rename(good)
        path.write_bytes(evil[: int(how.split()[2])])
    return path


PLANTED = ["writable by others", "writable by the group", "a link", "a pipe", "a folder", "renamed", "no kernel"]
PLANTED += ["cut to 0", "cut to 100", "cut to 4096", "cut to 13000", pytest.param("another's", marks=needs_root)]


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_or_damaged_file_is_replaced(how, cache, monkeypatch):
    path = plant(cache, how)
    assert answer(build.load(kernel(7))) == 7
    if how not in ("a folder", "renamed") and not how.startswith("cut"):  # those took the good file's name
        assert not os.path.lexists(path)
    forget(monkeypatch)
    monkeypatch.setattr(build, "_built", None)
    assert answer(build.load(kernel(7))) == 7, "and the good one is kept"


def test_a_planted_file_that_is_ours_and_whole_would_be_loaded(cache):
    plant(cache, "")
    assert answer(build.load(kernel(7))) == 666  # so that the test above means something


# compilers


def test_no_compiler(base, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(kernel(7), "none of gcc, clang and cc is in PATH", "install gcc or clang")
    refused(kernel(8), "none of gcc, clang and cc is in PATH")  # and says it again to the engine, but warns once


@pytest.mark.parametrize(
    ("version", "words"),
    [("echo xcrun: error: no tools >&2; exit 1", "xcrun: error: no tools"), ("kill -SEGV $$", "died of SIGSEGV")],
)
def test_a_compiler_that_does_not_even_say_its_version_is_passed_over(version, words, base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "exit 1", version=f"echo asked >> {tmp_path / 'log'}; {version}")
    refused(kernel(7), words, "install gcc or clang")
    refused(kernel(8), words)
    assert log.read_text() == "asked\n", "once is enough"
    forget(monkeypatch)
    fake(tmp_path, monkeypatch, f'exec {GCC} "$@"', name="cc")
    assert answer(build.load(kernel(7))) == 7


def test_a_program_that_is_none_cannot_be_run(base, monkeypatch, tmp_path):
    fake(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "gcc").write_bytes(b"\x7fELFjunk")
    refused(kernel(7), "cannot be run (Exec format error)")


def test_a_broken_compiler_is_asked_once_per_source(cache, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "echo In file kernel.c: >&2; echo 'fatal error: no stdint.h' >&2; exit 1")
    for _ in range(3):
        refused(kernel(7), "failed with exit code 1 (fatal error: no stdint.h)", str(tmp_path / "bin" / "gcc"))
    refused(kernel(8), "no stdint.h")
    assert log.read_text().count("run") == 2
    assert os.listdir(cache) == []


GARBAGE = {
    "text": 'echo garbage > "$out"',
    "nothing": "exit 0",
    "an empty file": ': > "$out"',
    "half a file": f'{GCC} "$@" && head -c 3000 "$out" > half && mv half "$out"',
    "a cut file": f'{GCC} "$@" && head -c 9000 "$out" > half && mv half "$out"',
    "another kernel": f'{GCC} -shared -x c /dev/null -o "$out"',
    "a folder": 'mkdir "$out"',
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_compiler_that_writes_garbage(what, cache, monkeypatch, tmp_path):
    find = 'out=; last=; for a in "$@"; do if [ "$last" = -o ]; then out=$a; fi; last=$a; done\n'
    log = fake(tmp_path, monkeypatch, find + GARBAGE[what])
    for _ in range(2):
        refused(kernel(7), "a child that ran a new native kernel")
    assert log.read_text().count("run") == 1
    assert os.listdir(cache) == []


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_hanging_compiler_is_killed_with_all_it_started_and_not_asked_again(cache, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    monkeypatch.setattr(build, "TIME_LIMIT", 0.5)
    log = fake(tmp_path, monkeypatch, f"echo $$ >> {pids}; sleep 600 & echo $! >> {pids}; wait")
    began = time.monotonic()
    refused(kernel(7), "compiling a kernel with", "took over 0.5 s")
    refused(kernel(7), "took over 0.5 s")
    refused(kernel(8), "took over 0.5 s")  # whatever the source
    assert time.monotonic() - began < 5
    assert log.read_text().count("run") == 1
    assert os.listdir(cache) == []
    time.sleep(0.1)
    started = pids.read_text().split()
    assert len(started) == 2 and not any(map(alive, started))


def test_a_compiler_that_hangs_on_its_version(base, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "TIME_LIMIT", 0.3)
    fake(tmp_path, monkeypatch, "exit 1", version="sleep 600")
    refused(kernel(7), "asking for its version", "took over 0.3 s")


def test_an_interrupted_compilation_ends_the_compiler(cache, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    fake(tmp_path, monkeypatch, f"echo $$ > {pids}; sleep 600")

    def interrupted(self, *args, **kwargs):
        while not pids.exists() or not pids.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    build.compiler()
    monkeypatch.setattr(build.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.load(kernel(7))
    assert not alive(int(pids.read_text())) and os.listdir(cache) == []
    assert not build._process.failures and build._process.lock.acquire(blocking=False)


# the check in a child

ILL = {
    "on loading": (
        kernel(7, before="__attribute__((constructor)) static void f(void) { __builtin_trap(); }"),
        "died of",
    ),
    "on the first item": (kernel(7, after="__builtin_trap();"), "died of"),
    "on bad memory": (kernel(7, after="*(volatile int*)8 = 1;"), "died of SIGSEGV"),
    "forever": (kernel(7, after="for (volatile int i = 0; ; ) {}"), "took over 1 s"),
    "without an entry": ("int walk;", "exit code 1"),
    "with a missing symbol": (kernel("absent()", before="double absent(void);"), "exit code 1"),
}


@pytest.mark.parametrize("how", ILL)
def test_what_kills_a_process_kills_the_child(how, cache, monkeypatch):
    source, words = ILL[how]
    if how == "forever":
        build.compiler()
        real = build._check

        def check(built, source):
            monkeypatch.setattr(build, "TIME_LIMIT", 1.0)
            real(built, source)

        monkeypatch.setattr(build, "_check", check)
    refused(source, words)
    assert os.listdir(cache) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets a register of x86")
@pytest.mark.parametrize("bits", ["0x8000", "0x0040"], ids=["flush to zero", "denormals are zero"])
def test_a_file_that_changes_the_arithmetic_of_the_process_is_not_loaded(bits, cache):
    at_loading = f"__attribute__((constructor)) static void f(void) {{ _mm_setcsr(_mm_getcsr() | {bits}); }}"
    refused(kernel(7, before=f"#include <xmmintrin.h>\n{at_loading}"), "changes the arithmetic of the whole process")
    assert all(tiny()) and os.listdir(cache) == []


def test_every_kernel_of_the_printer_passes_the_check(base):
    """The child calls a kernel as the printer prints it: many columns, scalars and entries."""
    for seed in range(5):
        build.load(print_c.source(*random_program(seed)))


@pytest.mark.parametrize("how", ["frozen", "embedded"])
def test_no_application_is_started_in_place_of_python(how, cache, monkeypatch):
    if how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", "")
    refused(kernel(7), "a frozen application")
    assert os.listdir(cache) == []


# several at once


def test_two_processes_that_compile_at_once_leave_one_whole_file(cache):
    code = ALONE + f"time.sleep(max(0, float(sys.argv[1]) - time.time())); print(answer({kernel(7)!r}))"
    command = [sys.executable, "-c", code, str(time.time() + 0.5)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate(timeout=60) for p in both] == [("7.0\n", "")] * 3
    [path] = cache.iterdir()
    assert build._is_sound(path)


def test_two_threads_compile_a_source_once(cache, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, f'sleep 0.2; exec {GCC} "$@"')
    found = []
    threads = [threading.Thread(target=lambda: found.append(build.load(kernel(7)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text().count("run") == 1
    assert len(found) == 4 and len(set(map(id, found))) == 1 and answer(found[0]) == 7


def test_a_fork_while_another_thread_compiles_can_compile(cache):
    code = f"""
    import threading
    holding = threading.Event()
    def hold():
        with build._process.lock:
            holding.set(); time.sleep(1)
    threading.Thread(target=hold).start()
    holding.wait()
    pid = os.fork()
    if not pid:
        os._exit(int(answer({kernel(7)!r})))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert script(ALONE + textwrap.dedent(code)) == "7\n"


def test_a_fork_after_loading_computes_the_same_in_one_thread(cache):
    """The parent has run kernels in threads, which a child does not have, and does not start."""
    code = """
    import os, threading, torch, gradchain as gch
    torch.set_num_threads(2)
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.linspace(-1, 1, 1 << 19))})
    updater = gch.chain(gch.clip_by_norm(1.0), gch.scale_by_lion(), gch.scale_by_learning_rate(0.1)).bind(model)
    grads = {"w": torch.linspace(1, -2, 1 << 19)}
    updater.step(grads)
    started = lambda: [t.name for t in threading.enumerate() if t.name.startswith("gradchain")]
    print(len(started()))
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        updater.step(grads)
        if started():
            os._exit(3)
        os.write(theirs, model["w"].detach().numpy()[::64].tobytes())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        told = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    updater.step(grads)
    print(told == model["w"].detach().numpy()[::64].tobytes(), repr(updater._bound.engine.reason))
    """
    assert script(code) == "2\nTrue ''\n"


# from end to end


def fresh(updater):
    """An updater whose executors remember no kernel of an earlier test."""
    engine = updater._bound.engine
    engine.executors = tuple(type(executor)() for executor in engine.executors)
    return updater


def trained(reference=False):
    """Five steps. Returns the weights and, executor by executor, why those before it could not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    rule = (gch.clip_by_norm(0.3), gch.scale_by_lion(), gch.add_decayed_weights(0.1), gch.scale_by_learning_rate(0.1))
    updater = fresh(gch.chain(*rule).bind(model))
    if reference:
        updater._bound.engine.executors = ()
    for step in range(5):
        updater.update(model(torch.linspace(-1, 1 + step, 15, dtype=torch.float64).view(3, 5)).square().sum())
    engine = updater._bound.engine
    assert reference or engine.reason == ""
    parts = [part for plan in engine._plans.values() for part in plan.parts]
    return [p.detach().clone() for p in model.parameters()], {part.executor: part.refused for part in parts}


def same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_chain_runs_native(base):
    got, ran = trained()
    assert ran == {"native": {}}
    same(got, trained(reference=True)[0])


def test_a_chain_without_a_compiler_runs_otherwise_to_the_same_end(base, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="without native kernels.*install gcc or clang") as seen:
        got, ran = trained()
    assert len(seen) == 1
    assert ran and "native" not in ran and all("install gcc or clang" in why["native"] for why in ran.values())
    same(got, trained(reference=True)[0])


def test_a_chain_with_a_broken_compiler_asks_it_once_per_kernel(base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "echo out of order >&2; exit 1")
    with pytest.warns(UserWarning, match="out of order") as seen:
        got, ran = trained()
    assert len(seen) == 1
    assert "native" not in ran and all("out of order" in why["native"] for why in ran.values())
    assert log.read_text().count("run") == 2  # the norm, and the rest
    same(got, trained(reference=True)[0])


def test_native_kernels_can_be_turned_off(base, monkeypatch, tmp_path):
    log = fake(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is told what they asked for
        got, ran = trained()
    assert ran and all(why["native"] == "GRADCHAIN_NATIVE=0 turns native kernels off" for why in ran.values())
    assert log.read_text() == ""
    same(got, trained(reference=True)[0])


def test_on_windows_there_are_none(monkeypatch):
    forget(monkeypatch)
    with monkeypatch.context() as elsewhere, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        elsewhere.setattr(build.os, "name", "nt")
        elsewhere.delattr(build.os, "geteuid")
        with pytest.raises(build.NoKernel) as caught:
            build.load(kernel(7))
    assert "for Linux and macOS, not for nt; set GRADCHAIN_NATIVE=0" in str(caught.value) and len(seen) == 1
