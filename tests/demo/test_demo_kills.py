"""The demo, killed at any moment and resumed, ends with the bits of a run that was let alone."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LIVES = HERE / "lives.py"
EPOCHS = 5  # as in lives.py


def run(*arguments):
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digest(printed):
    found = re.search(r"sha256 ([0-9a-f]{64})", printed)
    assert found, printed
    return found[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nobody killed, and its hash."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, digest(run("-m", "gradchain.demo", "--epochs", EPOCHS, "--quiet", "--out", folder))


def extra(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["extra"]


def killed(folder, seed, variant=""):
    return json.loads(run(LIVES, folder, seed, *[variant] * bool(variant)))


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_five_times_ends_with_the_bits_of_one_that_was_not(seed, undisturbed, tmp_path):
    """20 kills in all, 5 of them inside the write of a checkpoint; the history is the same as well."""
    told = killed(tmp_path, seed)
    *deaths, last = told["lives"]
    assert [life["code"] for life in deaths] == [-signal.SIGKILL] * 5
    assert last["code"] == 0
    assert max(life["begun"] for life in told["lives"]) > 0  # some lives did go on from a checkpoint
    inside = [life for life in deaths if life["point"] in ("empty", "half", "unsynced", "unnamed")]
    assert last["left"] >= len(inside)  # the kill was inside the write: its temporary file is still there
    folder, expected = undisturbed
    assert digest(told["printed"]) == expected
    assert extra(tmp_path / "run")["history"] == extra(folder)["history"]
    assert torch.equal(extra(tmp_path / "run")["generator"], extra(folder)["generator"])


def test_all_points_of_a_write_are_visited(tmp_path):
    """Of the 20 kills 5 are in a write: after the file is made, half written, unsynced, unnamed, and named."""
    code = "import lives; print([[p for p, _ in lives.plan(s, '') if p != 'moment'] for s in range(4)])"
    points = run("-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); {code}")
    assert sorted(re.findall(r"[a-z]+", points)) == sorted(["empty", "half", "unsynced", "unnamed", "named"])


def test_a_resume_that_forgets_the_generator_is_seen(undisturbed, tmp_path):
    """Control: dropout then draws other masks, and the hash is another."""
    told = killed(tmp_path, 0, "forgetful")
    assert told["lives"][-1]["code"] == 0
    assert digest(told["printed"]) != undisturbed[1]


def test_a_write_in_place_is_seen(tmp_path):
    """Control: a kill inside such a write leaves half a file, and the next life says so and ends with 2."""
    told = killed(tmp_path, 0, "torn")
    assert told["lives"][-1]["code"] == 2
    assert "it is cut short" in told["printed"]
