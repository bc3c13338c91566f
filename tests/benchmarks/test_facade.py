"""The benchmark of a step through `as_optimizer()` runs, and its steps are steps. No time counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import facade

ROOT = Path(__file__).parents[2]


def test_all_candidates_compute_the_same_weights():
    """Bit for bit through the facade and without; as torch to rounding; another rate is another run."""
    made = facade.candidates()
    for candidate in made.values():
        facade.turn(candidate, 5)
    own, kept, through, turned, theirs = ([*candidate.model.parameters()] for candidate in made.values())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(own, kept, through, strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(own, turned, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks pin themselves to a core")
def test_the_command_writes_its_figures(tmp_path):
    path = tmp_path / "it.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.facade", "--rounds", "2", "--output", str(path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert not run.returncode and "the bound is 20" in run.stdout, run.stderr
    figures = json.loads(path.read_text())["facade"]
    assert len(figures) == 5 and all(len(each["us"]) == len(each["over_us"]) == 3 for each in figures.values())
