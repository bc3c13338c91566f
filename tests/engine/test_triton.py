"""Programs as Triton, in children: by the interpreter and by the compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def in_a_child(file: str, tmp_path: Path, **variables: str) -> None:
    """Run a file of tests in a process of its own: Triton looks at its variables once, when first imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(HERE / file)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter(tmp_path):
    in_a_child("triton_cases.py", tmp_path, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_chains_in_the_interpreter(tmp_path):
    in_a_child("triton_chains.py", tmp_path, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_by_the_compiler(tmp_path):
    in_a_child("triton_compiles.py", tmp_path, TRITON_INTERPRET="0")
