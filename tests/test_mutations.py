"""Deliberate breaks are seen: each, applied to a copy of the library, makes the test named beside it fail.

Every sixth of them; with `GRADCHAIN_LONG=1 pytest tests/test_mutations.py` all.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "mutations"))
from breaks import BREAKS, Break

TESTS = Path(__file__).parent
ROOT = TESTS.parent
pytestmark = pytest.mark.slow
TRIED = BREAKS if os.environ.get("GRADCHAIN_LONG") else BREAKS[::6]


def test_every_break_has_its_place():
    """Those that are not tried here too: the text is in its file, once, and the named test in its own."""
    for row in BREAKS:
        assert (ROOT / "gradchain" / row.file).read_text().count(row.old) == 1, f"bring {row.id} up to date"
        file, _, name = row.test.partition("[")[0].partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(), row.id


def copied(to: Path) -> Path:
    """The library and the tests in this folder, with what configures pytest."""
    shutil.copytree(ROOT / "gradchain", to / "gradchain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TESTS, to / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def run(at: Path, *tests: str) -> subprocess.CompletedProcess:
    """pytest on some tests of a copy, in a process of its own that finds the copy's library."""
    env = {**os.environ, "PYTHONPATH": str(at), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    arguments = [f"tests/{test}" for test in tests]
    return subprocess.run([*command, *arguments], cwd=at, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """One copy that every break is applied to and taken from again."""
    return copied(tmp_path_factory.mktemp("copy"))


def test_the_copy_is_what_its_tests_import(copy):
    """The processes below see the copy, not this checkout."""
    code = "import gradchain; print(gradchain.__file__)"
    env = {**os.environ, "PYTHONPATH": str(copy)}
    found = subprocess.run([sys.executable, "-c", code], cwd=copy, env=env, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(copy)


def test_the_unbroken_copy_passes(copy):
    """Every test that a tried break names passes without it."""
    done = run(copy, *sorted({row.test for row in TRIED}))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in TRIED])
def test_a_deliberate_break_is_seen(copy, row: Break):
    """The named test fails: with a failure of its own, not because nothing could be collected."""
    file = copy / "gradchain" / row.file
    whole = file.read_text()
    assert whole.count(row.old) == 1, f"{row.file}: the text to break must be there once; bring the row up to date"
    file.write_text(whole.replace(row.old, row.new))
    try:
        done = run(copy, row.test)
    finally:
        file.write_text(whole)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 failed" in done.stdout, done.stdout[-3000:]
