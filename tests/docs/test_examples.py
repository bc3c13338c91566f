"""The examples of the trainers run, and print what they are about."""

import os
import subprocess
import sys

import pytest
from doc_blocks import ROOT

SAID = {
    "lightning_module": "40 ['clip_by_norm.norm', 'scale_by_learning_rate.learning_rate', 'val_loss']",
    "transformers_trainer": "32 32",
    "accelerate_loop": "8 torch.Size([1, 1])",
}
LAUNCHED = {"torchrun_zero": "20 updates, the same: True"}


def test_every_example_is_here():
    assert {path.stem for path in (ROOT / "docs" / "examples").glob("*.py")} == {*SAID, *LAUNCHED}


def printed(name, *launcher):
    """What an example prints. In a process of its own: Accelerate keeps its state in one."""
    path = ROOT / "docs" / "examples" / f"{name}.py"
    assert 20 <= len(path.read_text().splitlines()) <= 40
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *launcher, str(path)], env=env, capture_output=True, text=True, timeout=280)
    assert not run.returncode, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(name):
    assert SAID[name] in printed(name)


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAUNCHED)
def test_an_example_runs_on_two_ranks(name):
    """As `torchrun` starts it, which is this module: each rank says what it has come to."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    shown = f"`torchrun --nproc-per-node 2 docs/examples/{name}.py`"
    assert shown in (ROOT / "docs" / "examples" / f"{name}.py").read_text()
    said = printed(name, *launcher, str(ROOT / "tests" / "docs" / "run_and_leave.py"))
    assert said.count(LAUNCHED[name]) == 2, said
