"""Kernels are kept where nobody else can put one, and not for ever: bad folders, full disks, planted files.

A scenario is the real thing where this machine allows it (mounts and other users take root), and simulated elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from compiling import (
    ALONE,
    NOBODY,
    answer,
    fake,
    forget,
    fresh,
    kernel,
    needs_root,
    noted,
    scenarios,
    script,
)

import gradchain as gch
from gradchain.engine.executors import build

pytestmark = scenarios


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
    with noted() as seen:
        assert f"the cache is refused ({base} is writable by others)" in explained()
    assert [r.levelname for r in seen if "anew in every process" in r.getMessage()] == ["WARNING"]


def explained():
    model = torch.nn.Linear(2, 2)
    updater = fresh(gch.sgd(0.1).bind(model))
    updater.update(model(torch.ones(2)).sum())
    return updater.explain()


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
