"""Files written meanwhile are of one step, errors come back, and the run waits rather than fill memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from test_folder import names, numbered, update
from torch import nn

import gradchain as gch
from gradchain.demo.training import digest
from gradchain.updater import sealed

WRITE = sealed.write


class Gate:
    """Files that are written only when they are let through; `begun` tells that one waits."""

    def __init__(self, monkeypatch):
        self.begun, self.open = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(sealed, "write", self.write)

    def write(self, path, put):
        if path.suffix == ".pt":
            self.begun.release()
            assert self.open.acquire(timeout=20)
        WRITE(path, put)


def made(folder, **given):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    updater = gch.chain(gch.adamw(0.1), gch.average_params(0.9)).bind(model)
    return model, updater, gch.Checkpointer(folder, updater=updater, background=True, **given)


def test_each_file_is_of_its_step(tmp_path, monkeypatch):
    """The run goes on while files wait: weights, buffers, state and the user's tensors are those of the call."""
    gate = Gate(monkeypatch)
    model, updater, keeper = made(tmp_path, every=1, keep=None)
    mine, expected = torch.zeros(3), {}
    for number in (1, 2):
        updater.update(model(torch.randn(5, 3)).square().mean())
        mine += 1
        keeper.step(mine=mine, more=[mine[:2]])
        expected[number] = digest([updater.contents(), mine])
    updater.update(model(torch.randn(5, 3)).square().mean())
    mine += 1
    gate.open.release(2)
    keeper.close()
    for number, found in expected.items():
        model, updater, other = made(tmp_path / "other")
        extra = updater.load(tmp_path / f"update_0000000{number}.pt")
        assert digest([updater.contents(), extra["mine"]]) == found
        assert extra["more"][0].tolist() == [number] * 2
        other.close()


def test_a_third_file_waits_for_the_first_and_that_is_told_once(tmp_path, monkeypatch):
    gate, threads = Gate(monkeypatch), threading.active_count()  # other tests, or JAX, may have left some
    _, updater, keeper = made(tmp_path, every=1, keep=None)
    for _ in range(2):
        update(updater)
        keeper.step()
    assert gate.begun.acquire(timeout=20)
    release = threading.Timer(0.2, gate.open.release)
    release.start()
    update(updater)
    with pytest.warns(UserWarning, match="due faster than they are written: the run waited for one"):
        keeper.step()
    assert keeper._writer.waited > 0.1
    gate.open.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(updater)
        keeper.step()
    gate.open.release(2)
    keeper.close()
    assert names(tmp_path) == numbered(1, 2, 3, 4)
    assert threading.active_count() == threads


@pytest.mark.parametrize("by", ["step", "save", "close"])
def test_an_error_comes_back_at_the_next_call(by, tmp_path, monkeypatch):
    """And the record of a best that was not written is none."""
    _, updater, keeper = made(tmp_path, every=1, best=("score", "min"))
    keeper.step(score=2.0)
    keeper._writer.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        update(updater)
        keeper.step(score=1.0)
        keeper._writer.wait()
    with pytest.raises(OSError, match=r"best_score.pt' cannot be written: No space left on device"):
        getattr(keeper, by)()
    if by == "close":
        return
    assert keeper.step(score=1.5).name == "best_score.pt"
    keeper.close()
    assert (
        gch.chain(gch.adamw(0.1), gch.average_params(0.9))
        .bind(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        .load(tmp_path / "best_score.pt")["score"]
        == 1.5
    )


BEGIN = """
import os, sys, time, torch, gradchain as gch
from gradchain.updater import sealed
folder, write = sys.argv[1], sealed.write
def slowly(path, put):
    time.sleep(0.3)
    write(path, put)
sealed.write = slowly
model = torch.nn.Linear(2, 2)
updater = gch.sgd(0.1).bind(model)
keeper = gch.Checkpointer(folder, updater=updater, every=1, background=True)
def once():
    updater.step({n: torch.ones_like(p) for n, p in model.named_parameters()})
    return keeper.step()
"""


def alone(folder, code):
    done = subprocess.run([sys.executable, "-c", BEGIN + code, str(folder)], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_the_interpreter_waits_as_it_ends(tmp_path):
    code, _ = alone(tmp_path, "once(); once()\n1 / 0")
    assert code == 1
    assert names(tmp_path) == numbered(1, 2)


def test_a_forked_child_leaves_it_alone(tmp_path):
    """Made while a file is being written, it ends at once, and may not save."""
    code = """
once()
child = os.fork()
if not child:
    try:
        once()
    except RuntimeError as error:
        print(error)
    keeper.close()
    raise SystemExit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
once()
keeper.close()
"""
    code, said = alone(tmp_path, code)
    assert code == 0 and "Checkpointer.step: must be called in the process that made it, got a forked child" in said
    assert "\n5" in said and names(tmp_path) == numbered(1, 2)
