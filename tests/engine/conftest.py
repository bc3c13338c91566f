"""Folders to compile kernels in, as a process finds them that begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from compiling import forget

from gradchain.engine.executors import build


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
