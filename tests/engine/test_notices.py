"""What is said once and asks for nothing goes to the logger "gradchain"; what one should act on is a warning."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from compiling import noted
from little import data, loss_of, net

import gradchain as gch
from gradchain.core import notices
from gradchain.engine.executors import build


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """As in a process in which nothing was said yet."""
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(build, "_process", build._Process())


def run(tx, steps=3, dtype=torch.float32):
    model = net(dtype=dtype)
    updater = tx.bind(model)
    for rows in data(steps, dtype=dtype):
        updater.update(loss_of(model, rows))
    return updater


class compares(gch.Transform):
    """A rule that cannot be recorded."""

    descends = False

    def update(self, g, state, ctx):
        assert all((g > 0)[name].dtype == torch.bool for name in g)
        return g, state


def test_a_fallback_is_noted_once(monkeypatch, caplog):
    """Where native kernels are turned off: which executor was passed over, and why; not at each step or chain."""
    monkeypatch.setenv("GRADCHAIN_NATIVE", "0")
    with caplog.at_level(logging.INFO, "gradchain"), warnings.catch_warnings():
        warnings.simplefilter("error")
        run(gch.adamw(0.1), 4)
        run(gch.adamw(0.1), 4)
    said = [(r.name, r.levelno, r.getMessage()) for r in caplog.records]
    why = "GRADCHAIN_NATIVE=0 turns native kernels off"
    assert said.count(("gradchain.engine", logging.INFO, said[0][2])) == 1
    assert sum(why in text for _, _, text in said) == 1
    assert said[0][2] == f"native does not run a part of a chain, and another executor is asked: {why}"


@pytest.mark.parametrize("why", ["compares", "no executor"])
def test_a_chain_that_the_reference_runs_is_noted(why, caplog, monkeypatch):
    """Once, with the reason that `explain()` gives."""
    if why == "no executor":
        monkeypatch.setenv("GRADCHAIN_NATIVE", "0")
        monkeypatch.setenv("GRADCHAIN_EXECUTORS", "native")
    with caplog.at_level(logging.INFO, "gradchain"):
        updater = run(gch.chain(*([compares()] if why == "compares" else []), gch.sgd(0.1)), 4)
    reason = updater.explain().partition("ran by the reference: ")[2].splitlines()[0]
    said = [r.getMessage() for r in caplog.records if "reference" in r.getMessage()]
    assert said == [f"steps of a chain run by the reference, operation after operation: {reason}"]


def test_no_compiler_is_a_warning_and_a_notice(monkeypatch, tmp_path):
    """A user can mend it, so it is a warning; who listens hears which executor was passed over."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="install gcc or clang") as warned, noted() as seen:
        run(gch.adamw(0.1))
    assert len(warned) == 1
    assert ["install gcc or clang" in r.getMessage() for r in seen if "native" in r.getMessage()] == [True]


def test_what_is_said_is_said_once_and_little_is_remembered(caplog):
    with caplog.at_level(logging.INFO, "gradchain"):
        for number in range(3 * notices.MOST):
            notices.notice("engine", f"100% of number {number}")
            notices.notice("engine", f"100% of number {number}")
        notices.notice("updater", "100% of number 0", logging.WARNING)
    assert len(caplog.records) == 3 * notices.MOST + 1 and len(notices._said) <= notices.MOST
    assert caplog.records[-1].name == "gradchain.updater" and caplog.records[-1].getMessage() == "100% of number 0"


@pytest.mark.parametrize(
    ("configure", "heard"),
    [
        ("pass", False),
        ("logging.getLogger('gradchain').setLevel(logging.INFO)", False),
        ("logging.basicConfig(level=logging.INFO)", True),
        ("logging.getLogger('gradchain.engine').addHandler(logging.StreamHandler())", False),  # its level is WARNING
    ],
)
def test_nothing_is_printed_unless_a_program_asks(configure, heard):
    """The library gives its logger no level and a handler that does nothing: not even Python's last resort prints."""
    program = f"""
import logging, os
{configure}
os.environ["GRADCHAIN_NATIVE"] = "0"
import torch, gradchain as gch
model = torch.nn.Linear(2, 1)
updater = gch.adamw(0.1).bind(model)
updater.update(model(torch.ones(3, 2)).sum())
logger = logging.getLogger("gradchain")
assert [type(h).__name__ for h in logger.handlers] == ["NullHandler"] and logger.propagate
assert logging.getLogger("gradchain.engine").level == logging.NOTSET
"""
    path = str(Path(gch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ("gradchain.engine" in done.stderr or "does not run a part" in done.stderr) == heard, done.stderr
