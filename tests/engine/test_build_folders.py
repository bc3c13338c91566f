"""Where kernels may lie: folders that others could write to, disks that are full or allow no programs, no home.

A scenario is the real thing where this machine allows it (mounts and other users take root), and simulated elsewhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
from compiling import (
    ALONE,
    GCC,
    NOBODY,
    PATH,
    ROOT,
    answer,
    fake,
    forget,
    in_a_temporary_folder,
    kernel,
    mounted,
    needs_root,
    refused,
    scenarios,
)

from gradchain.engine.executors import build

pytestmark = scenarios


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
