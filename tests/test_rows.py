"""A row of the table of cases stays cheap: how many tests it has, and that collecting them imports no peer."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import rows
from cases import CASES

TESTS = Path(__file__).parent
PEERS = {
    "accelerate", "bitsandbytes", "heavyball", "jax", "lightning", "matplotlib", "mmengine", "nbclient", "optax",
    "pytorch_optimizer", "schedulefree", "sklearn", "timm", "torchao", "transformers",
}  # fmt: skip

COLLECT = """
import json, sys, pytest

class Plugin:
    def pytest_collection_finish(self, session):
        found = [value for item in session.items for name, value in item.user_properties if name == "row"]
        print("\\n" + json.dumps([found, len(session.items), sorted({name.partition(".")[0] for name in sys.modules})]))

pytest.main(["-p", "no:xdist", "-p", "no:cacheprovider", "--collect-only", "-qq"], plugins=[Plugin()])
"""


@pytest.mark.slow
def test_collecting_imports_no_peer_and_each_row_has_few_tests():
    """All tests there are, as `pytest -k scale_by_sign` collects them before it runs 55."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        cwd=TESTS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("[[")), None)
    assert line, done.stdout[-2000:] + done.stderr[-2000:]
    found, everything, modules = json.loads(line)
    assert everything > 10_000
    assert sorted(PEERS & set(modules)) == [], "tests/later.py imports them when they are used"
    tests = Counter(found)
    assert set(tests) == {case.id for case in CASES}
    assert max(tests.values()) <= 70, tests.most_common(3)


def test_the_seconds_of_a_row_are_those_of_its_tests():
    """Of all its reports, those of tests that are of no row aside."""
    said = ((1.0, [("row", "a")]), (0.5, [("row", "a")]), (0.25, [("other", "a"), ("row", "b")]), (9.0, []))
    reports = [*(SimpleNamespace(duration=d, user_properties=u) for d, u in said), SimpleNamespace()]
    assert rows.seconds(reports) == {"a": 1.5, "b": 0.25}


def test_a_test_of_a_row_says_so(request):
    """By the case among its parameters; this one has none."""
    assert rows.row_of(request.node) is None
    case = CASES[0]
    assert rows.row_of(SimpleNamespace(callspec=SimpleNamespace(params={"seed": 1, "case": case}))) == case.id
