"""What the scenarios of compiling at run time share: kernels that answer a number, fake compilers, mounted disks."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

import gradchain as gch
from gradchain.engine.executors import build

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

scenarios = pytest.mark.skipif(os.name != "posix" or GCC is None, reason="the scenarios need POSIX and a C compiler")
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


@contextlib.contextmanager
def noted():
    """The notices that a program would get that listens to gradchain."""
    records, logger = [], logging.getLogger("gradchain")
    handler = logging.Handler()
    handler.emit = records.append
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def in_a_temporary_folder(source, *words):
    """`load` builds for this process alone; it says so, and why, the first time, and so does `explain()`."""
    first = not build._process.without_cache
    with warnings.catch_warnings(), noted() as seen:
        warnings.simplefilter("error")
        assert answer(build.load(source)) == 7
    for word in ("anew in every process", "XDG_CACHE_HOME", *words):
        assert word in build.without_cache()
    assert [(r.name, r.levelname, r.getMessage()) for r in seen] == (
        [("gradchain.engine", "WARNING", build.without_cache())] if first else []
    )


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


def fresh(updater):
    """An updater whose executors remember no kernel of an earlier test."""
    engine = updater._bound.engine
    engine.executors = tuple(type(executor)() for executor in engine.executors)
    return updater
