"""The programs of docs/paths.md run, each by itself, as whoever walked those paths wrote them."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from doc_blocks import ROOT, blocks, run_python

PAGE = (ROOT / "docs" / "paths.md").read_text()
README = (ROOT / "README.md").read_text()


def program(title):
    """The Python of one section of the page, as a page of its own."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)[1]
    (code,) = [block.text for block in blocks(section) if block.language == "python"]
    return f"```python\n{code}```\n"


def said(title, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with redirect_stdout(io.StringIO()) as printed:
        run_python(program(title), title)
    return printed.getvalue()


def test_an_own_chain_learns_and_is_saved(tmp_path, monkeypatch):
    printed = said("Clone to own chain", tmp_path, monkeypatch)
    assert re.findall(r"^(\d+) ", printed, flags=re.M) == ["25", "50", "75", "100"]
    assert float(printed.split()[-1]) > 0.85 and (tmp_path / "own.pt").exists()


def test_an_own_link_is_what_was_written_by_hand_and_runs_in_one_kernel(tmp_path, monkeypatch):
    assert "the last step ran 1 kernels:\n  native: " in said("Own link", tmp_path, monkeypatch)


def test_a_chain_of_an_optax_user_runs(tmp_path, monkeypatch):
    updates, rate, correct = said("An Optax user's first chain", tmp_path, monkeypatch).split()
    assert (updates, float(rate)) == ("100", pytest.approx(1e-5)) and float(correct) > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("GRADCHAIN_LONG"), reason="docs/examples has one for Lightning that always runs")
def test_a_chain_of_a_lightning_user_runs(tmp_path):
    (code,) = [block.text for block in blocks(program("A Lightning user's first chain"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert not run.returncode, run.stderr
    updates, rate, correct = run.stdout.split()[-3:]
    assert (updates, float(rate)) == ("80", pytest.approx(0.0, abs=1e-12)) and float(correct) > 0.6


def test_the_commands_are_those_of_readme():
    (first, second) = [block.text.strip() for block in blocks(PAGE) if block.language == "sh"]
    assert first in README and second.startswith(".venv/bin/pip install -q -c constraints.txt ")
