"""The benchmark of sparse gradients: what it runs, and what its file says. Never how long it takes."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import sparse

ROOT = Path(__file__).parents[2]


def test_it_runs_both_and_writes_what_it_found(tmp_path):
    path = tmp_path / "sparse.json"
    given = ["--rounds", "2", "--rows", "500", "--named", "20", "--output", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sparse", *given], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["cells"] == [] and found["rounds"] == 2
    cell = found["sparse"]
    assert (cell["rows"], cell["width"], cell["named"]) == (500, sparse.WIDTH, 20)
    assert list(cell["us"]) == ["SparseAdam", "gradchain"]
    assert all(len(us) == 3 and us[0] > 0 for us in (*cell["us"].values(), cell["over"]))
    assert "over SparseAdam" in done.stdout


def test_both_sides_take_the_same_steps():
    """Ours by the native executor, run again from its numbers."""
    made = sparse.sides(300, 8)
    (theirs, their_step), (ours, our_step) = made["SparseAdam"], made["gradchain"]
    for seed in range(5):
        grad = sparse.gradient(300, 8, 30, seed)
        assert grad.is_coalesced() and grad._nnz() == 30
        sparse.turn(theirs, their_step, [grad])
        sparse.turn(ours, our_step, [grad])
    assert torch.allclose(ours.weight, theirs.weight, rtol=0, atol=1e-6)
    engine = our_step.__self__._bound.engine
    assert {part.executor for part in engine.last} == {"native"} and engine.num_replayed == 4
