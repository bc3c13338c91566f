"""The benchmark of shards: what it runs, and what its file says. Never how long it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.distributed


def test_it_runs_both_on_two_ranks_and_writes_what_it_found(tmp_path):
    path = tmp_path / "dtensor.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dtensor", "--quick", "--output", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    cell = found["dtensor"]
    assert found["cells"] == [] and found["rounds"] == 2
    assert (cell["tensors"], cell["width"], cell["ranks"]) == (6, 16, 2)
    assert list(cell["us"]) == ["torch", "gradchain"]
    assert all(len(us) == 3 and us[0] > 0 for us in (*cell["us"].values(), cell["rounds"])) and cell["over"] > 0
    assert cell["executors"] == ["native"] and cell["apart"] < 1e-5  # both have taken the same steps
    assert "over torch's fused on DTensors" in done.stdout
