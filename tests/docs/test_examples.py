"""The examples of the trainers run, and print what they are about."""

import os
import subprocess
import sys

import pytest
from doc_blocks import ROOT

SAID = {
    "lightning_module": "40 ['clip_by_norm.norm', 'val_loss']",
    "transformers_trainer": "32 32",
    "accelerate_loop": "8 torch.Size([1, 1])",
}


def test_every_example_is_here():
    assert {path.stem for path in (ROOT / "docs" / "examples").glob("*.py")} == set(SAID)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(name):
    """In a process of its own: Accelerate keeps its state in one."""
    path = ROOT / "docs" / "examples" / f"{name}.py"
    assert 20 <= len(path.read_text().splitlines()) <= 40
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=280)
    assert not run.returncode and SAID[name] in run.stdout, run.stdout + run.stderr
