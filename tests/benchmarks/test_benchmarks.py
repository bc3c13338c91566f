"""The benchmarks run: one round, on the small model. They check parity and clipping themselves; no time counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks pin themselves to a core")
def test_a_round_of_a_few_recipes_runs_and_agrees_with_torch(tmp_path):
    path = tmp_path / "result.json"
    peers = ("torch fused", "torch default", "foreach by hand")
    recipes = ("R3", "R4", "R6", "R7", "R8-each")
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--workload",
        "d",
        "--rounds",
        "1",
        "--no-facts",
        "--output",
        str(path),
    ]
    command += [word for peer in peers for word in ("--peer", peer)]
    command += [word for recipe in recipes for word in ("--recipe", recipe)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(path.read_text())
    assert [cell["recipe"] for cell in result["cells"]] == list(recipes)
    for cell in result["cells"]:
        assert cell["parity"]["gradchain"]["outliers"] <= 1e-3
        assert cell["extra_bytes_per_parameter"]["gradchain"]["gradients_kept"] == 0
