"""A few of every fault are tried, and the page says what the long form found; `python -m tests.faults` is that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import what_goes_wrong as wrong
from what_goes_wrong import ROOT, Fault, Kind, tried

KINDS = wrong.kinds()
HERE = [(word, fault) for word, kind in KINDS.items() if not kind.alone for fault in kind.faults if fault.few]


def at_least(fault: Fault, times: int) -> int:
    """How many trials are to be counted at least: a fault may try more where its cases do not come in such a number."""
    return times * 9 // 10


@pytest.mark.parametrize(("word", "fault"), [pytest.param(*case, id=f"{case[0]}-{case[1].name}") for case in HERE])
def test_a_few_of_each(word: str, fault: Fault):
    row = tried(fault, fault.few)
    assert row.losses == 0, row.told
    assert row.trials >= at_least(fault, fault.few)


@pytest.mark.parametrize("word", [word for word, kind in KINDS.items() if kind.alone])
def test_a_few_of_each_in_a_process_of_their_own(word: str):
    """They fork, kill and limit it, which a process with threads cannot have."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(wrong.HERE / "__main__.py"), "--few", "--only", word]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert [row["told"] for row in rows.values() if row["losses"]] == [], done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-3000:]
    for fault in KINDS[word].faults:
        assert not fault.few or rows[fault.name]["trials"] >= at_least(fault, fault.few), fault.name


# the page


def test_the_page_is_that_of_the_figures():
    """`python -m tests.faults --page` draws it."""
    assert wrong.page() == wrong.PAGE.read_text()


@pytest.mark.parametrize("word", KINDS)
def test_the_figures_are_of_the_faults_as_they_are_recorded(word: str):
    """Every fault was tried as often as the long form tries it, and the day and the machine are there."""
    figures = wrong.kept(word)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", figures["date"]) and "torch" in figures["machine"]
    rows = {row.name: row for row in figures["rows"]}
    assert list(rows) == [fault.name for fault in KINDS[word].faults]
    for fault in KINDS[word].faults:
        assert rows[fault.name].trials >= at_least(fault, fault.many), fault.name
        assert rows[fault.name].losses == 0, rows[fault.name].told


@pytest.mark.parametrize("word", KINDS)
def test_every_row_says_a_fault_a_promise_and_a_test(word: str):
    kind: Kind = KINDS[word]
    for fault in kind.faults:
        assert fault.fault and fault.promise and "|" not in fault.fault + fault.promise
        assert (ROOT / "tests" / (fault.test or f"faults/faults_{word}.py").partition("::")[0]).exists()


def test_a_loss_is_counted_and_told():
    """The negative control of the counting: the promise is kept twice, and once not."""
    row = tried(Fault("x", "f", "p", lambda n, folder: iter(["", "the file is gone", ""]), 1, 1), 3)
    assert (row.trials, row.losses, row.told) == (3, 1, ["the file is gone"])
